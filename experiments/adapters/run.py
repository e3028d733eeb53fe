"""Adapters of several ranks, few bits and all parameters of a chat model on one task: see README.md.

    python experiments/adapters/run.py --model=MODEL --data_dir=DATA --workdir=runs/adapters [--short]
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

from fmjax import cpu

cpu.set_up_training()

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import runs  # noqa: E402

LORA, ALL = "lora_smollm2.py", "sft_smollm2.py"
WAYS = {
    **{f"LoRA, rank {rank}": (LORA, {"weights__rank": rank}) for rank in (1, 4, 16, 64)},
    "QLoRA (nf4), rank 16": (LORA, {"weights__rank": 16, "weights__base": "nf4"}),
    "DoRA, rank 16": (LORA, {"weights__rank": 16, "weights__dora": True}),
    "all parameters": (ALL, {}),
}
RATES = {LORA: 5e-4, ALL: 5e-5}
SHORT = ("LoRA, rank 16", "all parameters")


def write_records(data_dir: pathlib.Path, file: pathlib.Path) -> None:
    """SST-2's training sentences, asked and answered as the task `sst2` asks."""
    from fmjax.tasks.classification import SST2
    from fmjax.tasks.protocol import TaskContext

    task = SST2()
    with file.open("w") as lines:
        for document in task.training(TaskContext(data_dir=data_dir)):
            record = {"prompt": task.prompt(document), "completion": f" {task.classes[document['label']]}"}
            lines.write(json.dumps(record) + "\n")


def accuracy(model: pathlib.Path, folder: pathlib.Path, data_dir: pathlib.Path, limit: int) -> dict[str, float]:
    """What `fmjax.evaluate` finds of the task, of sentences that nothing trained on; found once."""
    if not (folder / "results.json").exists():
        command = ["fmjax.evaluate", f"--model={model}", "--tasks=sst2", f"--data_dir={data_dir}", f"--limit={limit}"]
        subprocess.run([sys.executable, "-m", *command, f"--output={folder}"], cwd=runs.ROOT, check=True)
    found = json.loads((folder / "results.json").read_text())["results"]["sst2"]
    return {name: found[name] for name in ("acc", "acc_stderr")}


def trained_parameters(config: str, workdir: pathlib.Path) -> int:
    """How many numbers a run trained."""
    import jax

    from fmjax.checkpoint_files import load_params
    from fmjax.interop.adapters import run_adapter

    trained = load_params(workdir)[0] if config == ALL else dict(run_adapter(workdir).weights)
    return sum(x.size for x in jax.tree.leaves(trained))


def measured(name: str, place: pathlib.Path, flags, records: pathlib.Path) -> dict[str, float]:
    """One way: its run, and what its model gets right."""
    config, options = WAYS[name]
    metrics, peak = runs.train_measured(
        f"{config}:{flags.model}", place, data__source=records, data__chat_template=HERE / "bare.jinja",
        data__sequence_length=flags.length, data__heldout_fraction=0.001, train__batch_size=flags.batch,
        train__steps=flags.steps, train__log_every=1, train__checkpoint_every=flags.steps, train__eval_every=-1,
        train__sample_every=-1, optimizer__learning_rate=RATES[config],
        optimizer__schedule__warmup_steps=max(1, flags.steps // 10), **options,
    )  # fmt: skip
    return {
        "trained_parameters": trained_parameters(config, place),
        "peak_bytes": peak,
        "seconds_per_step": statistics.median(runs.curve(metrics, "perf/seconds_per_step")[1]),
        "loss": statistics.mean(runs.curve(metrics, "train/loss")[1][-10:]),
        **accuracy(place, place / "sst2", flags.data_dir, flags.limit),
    }


def draw(file: pathlib.Path, zero_shot: float, found: dict[str, dict]) -> None:
    """Accuracy and memory over what is trained."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4))
    for index, (name, one) in enumerate(found.items()):
        style = dict(marker="o" if name.startswith("LoRA") else "s", color=f"C{index}", label=name, linestyle="none")
        left.errorbar(one["trained_parameters"], one["acc"], yerr=one["acc_stderr"], capsize=3, **style)
        right.plot(one["seconds_per_step"], one["peak_bytes"] / 1e9, **style)
    left.axhline(zero_shot, color="gray", linestyle="--", linewidth=1, label="untrained")
    left.set(xscale="log", xlabel="trained parameters", ylabel="accuracy on SST-2")
    right.set(xlabel="seconds a step", ylabel="memory of the process at most, GB", ylim=(0, None))
    left.legend(fontsize=8)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(file, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a chat model: a GGUF file, a Hugging Face folder or a hub id")
    parser.add_argument("--data_dir", required=True, type=pathlib.Path, help="folder with eval_sst2")
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/adapters"), help="of runs")
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--batch", type=int, default=2, help="rows of a step")
    parser.add_argument("--length", type=int, default=256, help="tokens of a row")
    parser.add_argument("--limit", type=int, default=400, help="sentences evaluated")
    parser.add_argument("--short", action="store_true", help="two ways, for a few steps; results stay in the workdir")
    flags = parser.parse_args()
    flags.model = runs.found(flags.model)
    if flags.short:
        flags.steps, flags.batch, flags.length, flags.limit = 3, 1, 64, 16
    flags.data_dir, folder = flags.data_dir.absolute(), flags.workdir.absolute() / ("short" if flags.short else "")
    settings = {name: getattr(flags, name) for name in ("steps", "batch", "length", "limit")}
    files = runs.digest(HERE / "bare.jinja")
    runs.keyed(folder, {**settings, "model": flags.model, "learning_rates": RATES, "files": files})
    records = folder / "sst2.jsonl"
    write_records(flags.data_dir, records)
    zero_shot = accuracy(flags.model, folder / "untrained", flags.data_dir, flags.limit)
    found = {}
    for name in SHORT if flags.short else WAYS:
        place = folder / name.translate(str.maketrans(" ", "_", "(),"))
        found[name] = measured(name, place, flags, records)
        print(name, json.dumps(found[name]), flush=True)
    output = folder if flags.short else HERE
    runs.save(output, {**settings, "learning_rates": RATES, "untrained": zero_shot, "ways": found})
    draw(output / "adapters.png", zero_shot["acc"], found)


if __name__ == "__main__":
    main()
