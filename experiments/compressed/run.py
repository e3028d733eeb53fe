"""A chat model made smaller every way there is, in one table: see README.md.

    python experiments/compressed/run.py --model=MODEL.gguf --data_dir=DATA --workdir=runs/compressed
    python experiments/compressed/run.py ... --speed [--minutes=4]

The first command compresses and asks; the second draws tokens, and needs the machine for itself. Each goes on where it
was stopped, and writes the table of what is there.
"""

import argparse
import dataclasses
import gc
import hashlib
import json
import pathlib
import shutil
import sys
import time
from collections.abc import Sequence

import numpy as np

from fmjax import cpu

cpu.set_up_training()

HERE = pathlib.Path(__file__).parent
sys.path[1:1] = [str(HERE.parent), str(HERE.parent / "generation")]

import asked  # noqa: E402
import few_bits  # noqa: E402
import runs  # noqa: E402
from shown import draw, table  # noqa: E402

from fmjax.small_files import write_whole  # noqa: E402


@dataclasses.dataclass(frozen=True)
class Way:
    """How a model is made smaller: methods in turn with their options, or the file's own types kept.

    as_fast_as: the way whose program this one runs, on arrays of the same types and shapes.
    """

    kind: str
    steps: tuple = ()
    quantized: bool = False
    as_fast_as: str | None = None


def one(kind: str, method: str, as_fast_as: str | None = None, **options) -> Way:
    """Of one method."""
    return Way(kind, ((method, options),), as_fast_as=as_fast_as)


INT4 = "int4, blocks of 64"
WAYS = {
    "float32": Way("float32"),
    "int8": one("rounding", "int8"),
    INT4: one("rounding", "int4"),
    "nf4, blocks of 64": one("rounding", "nf4"),
    "int4, tables too": one("rounding", "int4", tables=True),
    "magnitude, half": one("zeros", "magnitude", "float32"),
    "mxfp4, blocks of 32": one("rounding", "mxfp4"),
    "fp8": one("rounding", "fp8"),
    "int8 W8A8": one("rounding", "int8", activations="int8"),
    "GPTQ int4, blocks of 64": one("calibrated", "gptq", INT4),
    "Wanda, half": one("zeros", "wanda", "float32"),
    "SmoothQuant W8A8": one("calibrated", "smoothquant", "int8 W8A8"),
    "layers, 27 of 30": one("fewer", "layers", number=3),
    "AWQ int4, blocks of 64": one("calibrated", "awq", INT4),
    "2:4 (SparseGPT)": one("zeros", "2:4", "float32"),
    "rotation, GPTQ int4": Way("calibrated", (("rotate", {}), ("gptq", {}))),
    "SparseGPT, half": one("zeros", "sparsegpt", "float32"),
    "heads, 6 of 9": one("fewer", "heads", share=0.33),
    "Q4_1, the file's own": Way("file", quantized=True),
}
SHORT = ("float32", INT4, "Wanda, half")
ASKED = ("windows", "context", "questions")
CALIBRATION = ("calibration_rows", "calibration_length")
SPEEDS = {"tokens_per_second_1": (1, 64, 3), "tokens_per_second_16": (16, 24, 2)}
"""(rows, tokens of each, turns) of what is drawn."""


class Study:
    """Where what is done lies: a file for each thing that takes time, by all that it depends on."""

    def __init__(self, flags):
        self.flags, self.folder = flags, flags.workdir.absolute() / ("short" if flags.short else "")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.calibration_file = flags.data_dir / "text_c4_wiki_arxiv" / "c4_demo.jsonl"
        self.shared = {}

    def place(self, name: str, what: str, *settings) -> pathlib.Path:
        """Of a way's file."""
        told = json.dumps([self.flags.model, dataclasses.asdict(WAYS[name]), *settings], sort_keys=True)
        plain = name.translate(str.maketrans(" :", "__", ",()'"))
        return self.folder / f"{plain}-{hashlib.sha256(told.encode()).hexdigest()[:8]}.{what}"

    def made(self, name: str) -> tuple[str, pathlib.Path]:
        """(what `fmjax.load` takes, the file that says what it took to make it)."""
        place = self.place(name, "model", *self.settings(name, ()))
        return str(place) if WAYS[name].steps else self.flags.model, place.with_suffix(".made.json")

    def settings(self, name: str, names: Sequence[str]) -> list[int]:
        """Of flags: those of these names, and of calibration where the way needs it."""
        from fmjax.compress import METHODS

        is_calibrated = any(METHODS.get(method).needs_calibration for method, _ in WAYS[name].steps)
        return [getattr(self.flags, one) for one in (*names, *(CALIBRATION if is_calibrated else ()))]

    def answered(self, name: str, part: str) -> pathlib.Path:
        """The file of a way's answers to one of `asked.PARTS`."""
        return self.place(name, f"{part}.json", *self.settings(name, ASKED))

    def sped(self, name: str, speed: str) -> pathlib.Path:
        """The file of one of SPEEDS."""
        name = WAYS[name].as_fast_as or name
        return self.place(name, f"{speed}.json", *SPEEDS[speed], self.made(name)[0])

    def make(self, name: str) -> None:
        """Compresses, saves the model and what that took."""
        import jax

        import fmjax
        from fmjax.compress import METHODS
        from fmjax.layers.weights import num_bytes

        way, (path, told) = WAYS[name], self.made(name)
        if told.exists():
            return
        model = fmjax.load(self.flags.model, quantized=True) if way.quantized else self.whole()
        begin = time.process_time()
        for method, options in way.steps:
            plugin = METHODS.get(method)(**options)
            model = plugin.compress(model, self.calibration(model) if plugin.needs_calibration else None)
        jax.block_until_ready(model.params)
        seconds = time.process_time() - begin
        if way.steps:
            shutil.rmtree(path, ignore_errors=True)
            model.save(path)
        write_whole(told, json.dumps({"megabytes": num_bytes(model.params) / 1e6, "processor_seconds": seconds}))

    def whole(self):
        """The model as it is, loaded once."""
        import fmjax

        if "whole" not in self.shared:
            self.shared["whole"] = fmjax.load(self.flags.model)
        return self.shared["whole"]

    def calibration(self, model):
        """What methods are given; the same for all, since they begin with one model."""
        from fmjax.compress.calibration import read_calibration

        if "calibration" not in self.shared:
            sizes = self.flags.calibration_rows, self.flags.calibration_length
            self.shared["calibration"] = read_calibration(self.calibration_file, model, *sizes)
        return self.shared["calibration"]

    def ask(self, name: str, parts: Sequence[str]) -> None:
        """Asks the model that was saved."""
        import fmjax

        parts = [part for part in parts if not self.answered(name, part).exists()]
        if not parts:
            return
        if name == "float32":
            model = self.whole()
        else:
            model = fmjax.load(self.made(name)[0], **({"quantized": True} if WAYS[name].quantized else {}))
        if "asked" not in self.shared:
            flags = self.flags
            self.shared["asked"] = asked.read(model, flags.data_dir, flags.windows, flags.context, flags.questions)
        for part in parts:
            begin = time.process_time()
            found = asked.answers(model, self.shared["asked"], part)
            write_whole(self.answered(name, part), json.dumps(found))
            means = {key: float(np.mean(values)) for key, values in found.items()}
            print(f"{name}, {part}: {means}, {time.process_time() - begin:.0f} s", flush=True)

    def speed(self, names, minutes: float) -> None:
        """Draws tokens with every model that is there; begins with none after so many minutes."""
        begin = time.monotonic()
        for name in names:
            if WAYS[name].as_fast_as or not self.made(name)[1].exists():
                continue
            for speed, (rows, tokens, turns) in SPEEDS.items():
                file = self.sped(name, speed)
                if not file.exists() and time.monotonic() - begin < 60 * minutes:
                    case = self.made(name)[0], "file" if WAYS[name].quantized else "float32"
                    found = few_bits.measured({name: case}, rows, tokens, turns)[name]
                    write_whole(file, json.dumps(found))
                    print(name, speed, found, flush=True)

    def results(self, names) -> dict:
        """Of the ways that have read the text, what is there; says what is not."""
        files = {
            name: {"made": self.made(name)[1], **{part: self.answered(name, part) for part in asked.PARTS},
                   **{speed: self.sped(name, speed) for speed in SPEEDS}}
            for name in names
        }  # fmt: skip
        missing = [file.name for of_way in files.values() for file in of_way.values() if not file.exists()]
        if missing:
            print(f"{len(missing)} things are not there yet: {', '.join(missing[:4])}, ...")
        there = {
            name: {what: json.loads(file.read_text()) for what, file in files[name].items() if file.exists()}
            for name in names
        }  # fmt: skip
        if "text" not in (reference := there["float32"]):
            raise SystemExit("float32 has not read the text, beside which all others stand; run it first")
        ways = {}
        for name, one in there.items():
            if {"made", "text"} <= one.keys():
                rates = {speed: one[speed][0] for speed in SPEEDS if speed in one}
                ways[name] = {"kind": WAYS[name].kind, **one["made"], **asked.figures(one, reference), **rates}
        settings = {one: getattr(self.flags, one) for one in (*ASKED, *CALIBRATION)}
        scored = {unit: sum(reference["text"][unit]) for unit in ("tokens", "words", "bytes")}
        return {**settings, "scored": scored, "ways": ways}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True, help="a GGUF file of a decoder")
    about = "folder with text_wikitext2_raw, text_c4_wiki_arxiv, eval_piqa and eval_commonsense_mc"
    add("--data_dir", required=True, type=pathlib.Path, help=about)
    add("--workdir", type=pathlib.Path, default=pathlib.Path("runs/compressed"), help="of what is done")
    add("--windows", type=int, default=12, help="of the text")
    add("--context", type=int, default=512, help="tokens scored in a window")
    add("--questions", type=int, default=100, help="of each task")
    add("--calibration_rows", type=int, default=12)
    add("--calibration_length", type=int, default=512)
    add("--only", nargs="+", choices=WAYS, metavar="NAME", help=f"of {', '.join(repr(name) for name in WAYS)}")
    add("--speed", action="store_true", help="draw tokens with the models that are there; nothing else may run")
    add("--minutes", type=float, default=60, help="with --speed: after which nothing new is begun")
    add("--short", action="store_true", help="three ways, of little; what comes of it stays in the workdir")
    flags = parser.parse_args()
    flags.model, flags.data_dir = runs.found(flags.model), flags.data_dir.absolute()
    if flags.short:
        flags.windows, flags.context, flags.questions = 2, 64, 4
        flags.calibration_rows, flags.calibration_length = 4, 64
    study, names = Study(flags), SHORT if flags.short else tuple(WAYS)
    if flags.speed:
        study.speed(flags.only or names, flags.minutes)
    else:
        from fmjax.cache_folder import use_compilation_cache

        use_compilation_cache()
        for parts in (asked.PARTS[:1], asked.PARTS[1:]):  # so that what was stopped has the text of most
            for name in flags.only or names:
                study.make(name)
                gc.collect()
                study.ask(name, parts)
                gc.collect()
    results, output = study.results(names), study.folder if flags.short else HERE
    runs.save(output, results)
    draw(output / "compressed.png", results["ways"])
    print(table(results["ways"]))


if __name__ == "__main__":
    main()
