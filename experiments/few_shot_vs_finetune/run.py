"""Prompting, probing and fine-tuning as labelled documents grow:

    python experiments/few_shot_vs_finetune/run.py --model=MODEL --data_dir=DIR

SST-2 and AG News. Prompts hold 0 to 8 of the documents as examples; probes and fine-tuning train on 8 to 1,024. The
same documents are evaluated by all; bars are standard errors by the bootstrap over them. Writes results.json and
curves.png beside this file, or to `--output`.
"""

import argparse
import pathlib
import sys

import jax

import fmjax
from fmjax.errors import InputError
from fmjax.tasks.runner import run_tasks

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
import runs  # noqa: E402

TASKS = {"sst2": ("SST-2", 1 / 2), "ag_news": ("AG News", 1 / 4), "ag_news_half": ("AG News", 1 / 4)}


def measure(model, data_dir, task: str, shots, counts, limit: int, seed: int) -> dict[str, list]:
    """For each method (documents, accuracy, its standard error), in the order of the documents."""
    options = dict(data_dir=data_dir, limit=limit, seed=seed, progress=True)

    def accuracy(name: str, **more) -> list:
        (result,) = run_tasks(model, [name], **options, **more).values()
        return [result.metrics["acc"], result.metrics["acc_stderr"]]

    found = {"prompting": [[k, *accuracy(task, num_shots=k)] for k in shots]}
    for method in ("probe", "finetune"):
        found[method] = [[n, *accuracy(f"{task}_{method}:{n}")] for n in counts]
    return found


def draw(results: dict, path: pathlib.Path) -> None:
    """Accuracy over labelled documents, a panel a task."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(results), figsize=(5 * len(results), 4), sharey=True, layout="constrained")
    for axes, (task, methods) in zip([panels] if len(results) == 1 else panels, results.items()):
        label, chance = TASKS[task]
        for method, points in methods.items():
            numbers, values, errors = zip(*points)
            axes.errorbar(numbers, values, yerr=errors, marker="o", capsize=3, label=method)
        axes.axhline(chance, color="grey", linestyle="--", linewidth=1, label="chance")
        axes.set_xscale("symlog", base=2, linthresh=1)
        counts = sorted({number for points in methods.values() for number, *_ in points})
        axes.set_xticks(counts, labels=counts, minor=False)
        axes.set_xlim(-0.5, 1.5 * counts[-1])
        axes.set(title=label, xlabel="labelled documents", ylabel="accuracy")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=150)


def numbers(text: str) -> list[int]:
    return [int(one) for one in text.split(",")]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a run, a Hugging Face folder or a hub id")
    parser.add_argument("--data_dir", required=True, type=pathlib.Path, help="folder with eval_sst2 and eval_ag_news")
    parser.add_argument("--tasks", default="sst2,ag_news", help="names separated by commas")
    parser.add_argument("--shots", default="0,2,4,8", type=numbers, help="examples in the prompts")
    parser.add_argument("--counts", default="8,32,128,512,1024", type=numbers, help="training documents")
    parser.add_argument("--limit", default=400, type=int, help="documents evaluated; 0 is all")
    parser.add_argument("--seed", default=0, type=int, help="of the choice of documents and of training")
    parser.add_argument("--output", default=HERE, type=pathlib.Path, help="folder of results.json and curves.png")
    flags = parser.parse_args()
    unknown = set(flags.tasks.split(",")) - set(TASKS)
    if unknown:
        raise InputError(f"--tasks: {', '.join(sorted(unknown))} is not part of the study: {', '.join(TASKS)}")
    # The programs of one task's learning curve differ in nothing but their documents: compile them once.
    from fmjax.cache_folder import cache_dir

    jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
    model = fmjax.load(flags.model)
    results = {}
    for task in flags.tasks.split(","):
        results[task] = measure(model, flags.data_dir, task, flags.shots, flags.counts, flags.limit, flags.seed)
    flags.output.mkdir(parents=True, exist_ok=True)
    draw(results, flags.output / "curves.png")
    runs.save(
        flags.output,
        {"model": pathlib.Path(flags.model).name, "limit": flags.limit, "seed": flags.seed, "results": results},
    )


if __name__ == "__main__":
    main()
