"""`fmjax.generate` for models that do more than continue texts: flags from the generator's options, values to a file.

--output=FILE.png [--prompt=PROMPT ...] [--image=FILE ...] [--OPTION=VALUE ...]
--rerank=RUN --best=N                       of the images of each prompt, those that a model of pairs finds nearest
--prompts=FILE.jsonl --output=FOLDER        a file for each; a second call goes on where a first one stopped
--image=FILE                                texts, of a model that writes captions: printed, or to --output=FILE.txt
"""

import argparse
import dataclasses
import inspect
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from fmjax.commands import cli, launch, media, rerank, step_bar, value_folder
from fmjax.commands.config_meanings import meanings
from fmjax.config_fields import field_types
from fmjax.config_values import FlagText, coerce
from fmjax.errors import InputError
from fmjax.inference.generators import GENERATORS
from fmjax.load import described
from fmjax.small_files import replacing


def generator_named_by(argv: list[str]) -> type | None:
    """The generator of the model that `--model` names, from its config alone; None for one that continues texts."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--model")
    path = parser.parse_known_args(argv)[0].model
    if path is None:
        return None
    kind = getattr(described(path)[0], "generator", "autoregressive")
    return None if kind == "autoregressive" else GENERATORS.get(kind)


def parse(argv: list[str], generator: type):
    """(flags, options of the generator) of a command line. Raises InputError for what is wrong with them."""
    parser = cli.ArgumentParser(
        "python -m fmjax.generate", "Make values and write them to a file.", argument_default=argparse.SUPPRESS,
        formatter_class=argparse.HelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--model", required=True, help="workdir of a run, one of its checkpoints, or a saved model")
    add("--dtype", default="float32", help="float32 (default), bfloat16 or float16")
    add("--mesh", type=cli.mesh, default=None, help="split the model over devices, such as fsdp:2,tensor:2")
    about = "what to make, such as a label; repeatable (default: some of all)"
    add("--prompt", action="append", default=None, help=about)
    add("--prompts", help='JSONL, on each line {"prompt": TEXT} or a JSON string; --output is a folder')
    add("--output", help="file to write, several values go into it together; texts (.txt) are printed without one")
    media.add_flags(parser)
    rerank.add_flags(parser)
    told = meanings(generator.Options)
    for name, (_, default) in field_types(generator.Options).items():
        add(f"--{name}", type=FlagText, help=f"{told.get(name, '')} (default: {default})")
    launch.add_flags(parser)
    flags = parser.parse_args(argv)
    fields = field_types(generator.Options)
    options = {name: coerce(getattr(flags, name), fields[name][0], f"--{name}") for name in fields if name in flags}
    generator.Options(**options)  # refuses what is out of range before anything slow
    rerank.check(flags, options)
    if "prompts" in flags:
        if flags.prompt or media.given(flags):
            raise InputError("--prompts has all the prompts; leave --prompt, --image and --audio out")
        if "rerank" in flags:
            raise InputError("--rerank is for images that go into one file; leave it out with --prompts")
        if "only" not in inspect.signature(generator.run).parameters:
            raise InputError(f"--prompts={flags.prompts}: this model makes no folder of values; give --prompt")
        if "output" not in flags:
            raise InputError("--prompts needs an --output=FOLDER")
    return flags, options


def main(argv: list[str], generator: type) -> None:
    """Writes what a model makes to `--output`; without one texts are printed."""
    flags, options = parse(argv, generator)
    cli.log_to_stderr()
    output = pathlib.Path(flags.output).expanduser() if "output" in flags else None
    if "prompts" in flags:
        value_folder.check_output(output)
        flags.prompts = value_folder.read_prompts(flags.prompts)
    else:
        _check_output(output, flags.model)
    from fmjax.cache_folder import use_compilation_cache

    use_compilation_cache()
    with launch.together(flags):
        (_write_folder if "prompts" in flags else _write)(flags, options, output, generator)


def _check_output(output: pathlib.Path | None, path: str) -> None:
    """Raises InputError, before anything slow, for a file that cannot be written or is none of the model's kind, and
    for none where what is made cannot be printed."""
    objective, codecs = described(path)
    makes = getattr(objective, "makes", None)
    if output is None:
        if makes is not None:
            raise InputError(f"{path!r} makes values of the kind {makes!r}: give --output=FILE to write them to")
        return
    if not output.parent.is_dir():
        raise InputError(f"--output={str(output)!r}: the folder {str(output.parent)!r} does not exist")
    if output.is_dir():
        raise InputError(f"--output={str(output)!r} is a folder; give a file to write")
    codec = codecs.get(makes) if makes is not None else TextFile
    if codec is None:
        raise InputError(f"{path!r} has no codec {makes!r} to write its values with; was it saved without codecs.json?")
    if output.suffix != codec.suffix:
        raise InputError(f"--output={str(output)!r}: this model's values are written as {codec.suffix} files")


def _load(flags):
    from fmjax.load import load

    return load(flags.model, dtype=flags.dtype, mesh=flags.mesh, progress=sys.stderr.isatty())


def _write_folder(flags, options: dict, output: pathlib.Path, generator: type) -> None:
    import jax

    if jax.process_count() > 1:
        raise InputError(f"--prompts is for one process, here are {jax.process_count()}; give --coordinator=none to it")
    model, chosen = _load(flags), generator.Options(**options)
    model.can("generate")

    def write(value, path: pathlib.Path, facts: dict) -> None:
        with replacing(path) as partial:
            model.codec.write(value, partial)
            if path.suffix == ".png":
                about = {"model": model.source, "step": model.step} | dataclasses.asdict(chosen) | facts
                write_metadata(partial, about)

    try:
        with step_bar.shown():
            added = value_folder.complete_folder(
                model, flags.prompts, output, generator, chosen, write, progress=sys.stderr.isatty()
            )
    except KeyboardInterrupt:
        print(f"\nstopped; the same command completes {output}", file=sys.stderr)
        raise
    print(f"{output} is complete: {added} files added" if added else f"{output} was complete already")


def _write(flags, options: dict, output: pathlib.Path | None, generator: type) -> None:
    import jax

    scorer, model = rerank.opened(flags), _load(flags)
    prompts = media.prompts(flags, model, flags.prompt or [], getattr(generator, "takes", ()))
    with step_bar.shown():
        values = model.generate(prompts or None, **options)
    values = rerank.kept(scorer, flags, options, values)
    if jax.process_index() == 0 and output is None:
        print(*values, sep="\n")
    elif jax.process_index() == 0:
        codec = model.codec or TextFile
        with replacing(output) as partial:
            if len(values) == 1:
                codec.write(values[0], partial)
            else:
                codec.write_all(values, partial)
            if output.suffix == ".png":
                described = {"model": model.source, "step": model.step, "prompt": flags.prompt or []}
                described |= {name: getattr(flags, name, None) for name in ("rerank", "best")}
                write_metadata(partial, described | dataclasses.asdict(generator.Options(**options)))
        what = f"{model.objective.makes} of {' x '.join(map(str, codec.shape))}" if model.codec else "text"
        print(f"wrote {output} ({output.stat().st_size:,} bytes): {len(values)} x {what}")


def write_metadata(path: pathlib.Path, facts: Mapping[str, Any]) -> None:
    """Puts facts into a PNG file as text under their names (`PIL.Image.open(path).text`); lists and numbers as JSON has
    them, and what is None left out."""
    from PIL import Image, PngImagePlugin

    told = PngImagePlugin.PngInfo()
    for name, value in facts.items():
        if value is not None:
            told.add_itxt(name, value if isinstance(value, str) else json.dumps(value))
    with Image.open(path) as picture:
        picture.load()
        picture.save(path, format="PNG", pnginfo=told)


class TextFile:
    """How texts are written, in place of a codec."""

    suffix = ".txt"

    @staticmethod
    def write(value: str, path: pathlib.Path) -> None:
        TextFile.write_all([value], path)

    @staticmethod
    def write_all(values: Sequence[str], path: pathlib.Path) -> None:
        path.write_bytes("".join(f"{value}\n" for value in values).encode())
