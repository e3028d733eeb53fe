"""Evaluate: `python -m fmjax.evaluate --model=DIR --tasks=a,b --output=DIR`, or `fmjax.evaluate(m, tasks=["a"])`.

Writes `results.json` and `samples/TASK.jsonl` under the output folder and prints a table. `--list` prints one line a
task, its name first. This module is itself callable, as `fmjax.load` is and for the same reason.
"""

import json
import math
import os
import pathlib
import platform
import sys
import types
from collections.abc import Sequence
from typing import Any

from fmjax import cli
from fmjax.errors import InputError
from fmjax.layers.checks import COMPUTE_DTYPES


def evaluate(
    model,
    tasks: Sequence[str] | str,
    *,
    limit: int | None = None,
    num_shots: int | None = None,
    data_dir: str | pathlib.Path | None = None,
    task_path: Sequence[str | pathlib.Path] = (),
    output: str | pathlib.Path | None = None,
    answers: str | pathlib.Path | None = None,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """Evaluates a model on tasks.

    Args:
      model: from `fmjax.load`, or what it takes.
      tasks: names; `python -m fmjax.evaluate --list` shows them.
      limit: only the first `limit` documents of each task.
      num_shots: solved examples in each prompt; None is each task's own number.
      data_dir: folder with the tasks' files; None is the variable FMJAX_DATA.
      task_path: Python files with further tasks.
      output: folder to write `results.json` and `samples/` to; None writes nothing.
      answers: folder where answers are kept as they come, so that an interrupted evaluation goes on and a repeated one
        takes no time; None is `output/answers`, or none without an output.
      seed: of the choice of examples, of continuations that are drawn, of training a probe, of the bootstrap.
      progress: show progress bars on stderr.

    Returns: what `results.json` holds: {"results": {task: {metric: value, metric + "_stderr": value}}, ...}.
    Raises: InputError, before anything is computed, for an unknown task, missing files, an unusable model.
    """
    import jax

    from fmjax.load import Model, load
    from fmjax.small_files import write_whole
    from fmjax.tasks.runner import run_tasks, write_samples

    if not isinstance(model, Model):
        model = load(model)
    tasks = [tasks] if isinstance(tasks, str) else list(tasks)
    data_dir = data_dir or os.environ.get("FMJAX_DATA")
    if output is not None:
        output = pathlib.Path(output)
        if output.exists() and not output.is_dir():
            raise InputError(f"--output={str(output)!r} is a file; give a folder")
        answers = answers or output / "answers"
    found = run_tasks(
        model,
        tasks,
        limit=limit,
        num_shots=num_shots,
        data_dir=data_dir,
        task_path=task_path,
        seed=seed,
        answers_dir=pathlib.Path(answers) if answers else None,
        progress=progress,
    )
    report = {
        "results": {name: result.metrics for name, result in found.items()},
        "task_versions": {name: result.version for name, result in found.items()},
        "num_documents": {name: result.num_documents for name, result in found.items()},
        "num_shots": {name: result.num_shots for name, result in found.items()},
        "seconds": {name: round(result.seconds, 3) for name, result in found.items()},
        "details": {name: result.details for name, result in found.items() if result.details},
        "cost": {name: _cost(result) for name, result in found.items()},
        "limit": limit or None,
        "seed": seed,
        "model": _describe(model),
        "config": model.config,
        "versions": _versions(),
    }
    if output is not None and jax.process_index() == 0:
        write_samples(found, output / "samples")
        # JSON has no infinity, which is what the perplexity of a hopeless model overflows to.
        finite = {name: {k: _finite(v) for k, v in metrics.items()} for name, metrics in report["results"].items()}
        text = json.dumps({**report, "results": finite}, indent=2, default=str)
        write_whole(output / "results.json", text + "\n")
    return report


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _cost(result) -> dict[str, Any]:
    """What a task took. Answers that were already on disk cost nothing and are counted apart."""
    work = result.work
    return {
        "requests": work.requests,
        "stored_requests": work.stored,
        "truncated_requests": work.truncated,
        "tokens": work.num_tokens,
        "flops": result.flops,
        "joules": result.energy.joules,
        "energy_source": result.energy.source,
    }


def _describe(model) -> dict[str, Any]:
    import jax

    leaves = jax.tree.leaves(model.params)
    return {
        "source": model.source,
        "step": model.step,
        "module": type(model.module).__name__,
        "parameters": sum(leaf.size for leaf in leaves),
        "dtype": str(leaves[0].dtype) if leaves else None,
        "context_length": model.context_length,
        "tokenizer": getattr(model.tokenizer, "fingerprint", None),
    }


def _versions() -> dict[str, str]:
    import flax
    import jax
    import numpy

    import fmjax

    modules = {"fmjax": fmjax, "jax": jax, "flax": flax, "numpy": numpy}
    return {name: module.__version__ for name, module in modules.items()} | {"python": platform.python_version()}


def table(report: dict[str, Any]) -> str:
    """The results as aligned text, a metric a line."""
    rows = [("task", "version", "documents", "metric", "value", "stderr")]
    for task, metrics in report["results"].items():
        for name in metrics:
            if not name.endswith("_stderr"):
                error = metrics.get(f"{name}_stderr")
                shown = f"{metrics[name]:.4f}", "" if error is None else f"{error:.4f}"
                rows.append((task, report["task_versions"][task], str(report["num_documents"][task]), name, *shown))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    rows.insert(1, tuple("-" * width for width in widths))
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def listing(task_path: Sequence[str] = ()) -> str:
    """One line a task, its name first."""
    from fmjax.tasks.catalogue import catalogue

    tasks = {name: get() for name, get in sorted(catalogue(task_path).items())}
    width = max(map(len, tasks))
    return "\n".join(
        f"{name.ljust(width)}  v{task.version}  {', '.join(task.metrics)}: {task.description}; "
        f"reads {task.needs}; asks for {', '.join(task.uses)}"
        for name, task in tasks.items()
    )


def cost_line(report: dict[str, Any]) -> str:
    """What the evaluation took in all, on one line."""
    costs = list(report["cost"].values())
    tokens, stored = (sum(cost[name] for cost in costs) for name in ("tokens", "stored_requests"))
    parts = [f"{sum(report['seconds'].values()):.1f} s", f"{tokens:,} tokens"]
    if all(cost["flops"] is not None for cost in costs):
        parts.append(f"{sum(cost['flops'] for cost in costs):.3g} FLOPs")
    if all(cost["joules"] is not None for cost in costs):
        sources = ", ".join(dict.fromkeys(cost["energy_source"] for cost in costs))
        parts.append(f"{sum(cost['joules'] for cost in costs):.3g} J ({sources})")
    if stored:
        parts.append(f"{stored:,} answers were on disk already")
    if truncated := sum(cost["truncated_requests"] for cost in costs):
        parts.append(f"{truncated:,} prompts lost their beginning, too long for the model")
    return " | ".join(parts)


def print_comparison(first: str, second: str, flags) -> None:
    """The table of two evaluations; the plot goes to `--output`, if given."""
    from fmjax.tasks import compare

    differences = compare.compare(first, second, task_path=flags.task_path, seed=flags.seed)
    print(compare.table(differences))
    if flags.output:
        folder = pathlib.Path(flags.output)
        folder.mkdir(parents=True, exist_ok=True)
        compare.plot(differences, folder / "compare.png", (first, second))
        print(f"plot: {folder / 'compare.png'}")


def parse(argv: list[str]):
    parser = cli.ArgumentParser("python -m fmjax.evaluate", "Evaluate a model on tasks.")
    parser.add_argument("--model", help="workdir of a run, one of its checkpoints, or a saved model")
    parser.add_argument("--tasks", help="names separated by commas; --list shows them")
    parser.add_argument("--task_path", action="append", default=[], help="a Python file with further tasks; repeatable")
    parser.add_argument("--num_shots", type=cli.number(int, low=0), help="examples in the prompt")
    parser.add_argument("--limit", type=cli.number(int, low=1), help="only this many documents of each task")
    parser.add_argument("--data_dir", help="folder with the tasks' files (or the variable FMJAX_DATA)")
    parser.add_argument("--output", help="folder for results.json and samples/")
    parser.add_argument("--answers", help="folder where answers are kept as they come (default: OUTPUT/answers)")
    parser.add_argument("--seed", type=cli.number(int, low=0), default=0, help="of examples, draws, probes, bootstrap")
    parser.add_argument("--mesh", type=cli.mesh, help="split the model over all devices, such as fsdp:2,tensor:2")
    parser.add_argument("--dtype", default="float32", choices=COMPUTE_DTYPES, help="that is computed in")
    parser.add_argument("--compare", nargs=2, metavar=("A", "B"), help="two outputs: print their paired differences")
    parser.add_argument("--list", action="store_true", help="print the tasks, one a line, and stop")
    flags = parser.parse_args(argv)
    missing = [f"--{name}" for name in ("model", "tasks", "output") if not getattr(flags, name)]
    if missing and not (flags.list or flags.compare):
        raise InputError(f"missing {', '.join(missing)}; --list shows the tasks, --help the flags")
    return flags


def main(argv: list[str]) -> None:
    flags = parse(argv)
    if flags.list:
        print(listing(flags.task_path))
        return
    if flags.compare:
        print_comparison(*flags.compare, flags)
        return
    cli.log_to_stderr()

    import jax

    from fmjax.caches import use_compilation_cache

    use_compilation_cache()
    from fmjax.load import load

    report = evaluate(
        load(flags.model, dtype=flags.dtype, mesh=flags.mesh, progress=sys.stderr.isatty()),
        [name.strip() for name in flags.tasks.split(",") if name.strip()],
        limit=flags.limit,
        num_shots=flags.num_shots,
        data_dir=flags.data_dir,
        task_path=flags.task_path,
        output=flags.output,
        answers=flags.answers,
        seed=flags.seed,
        progress=jax.process_index() == 0,
    )
    if jax.process_index() == 0:
        print(table(report))
        print(cost_line(report))


class _CallableModule(types.ModuleType):
    """`import fmjax.evaluate` makes this module an attribute of the package, where the function is promised."""

    def __call__(self, model, tasks, **options) -> dict[str, Any]:
        return evaluate(model, tasks, **options)


_CallableModule.__call__.__doc__ = evaluate.__doc__
sys.modules[__name__].__class__ = _CallableModule

if __name__ == "__main__":
    cli.leave(cli.run(main))
