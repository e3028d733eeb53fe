"""What an evaluation reports: the contents of `results.json`, and the tables of the terminal."""

import functools
import json
import math
import pathlib
import platform
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from fmjax.layers.weights import count
from fmjax.small_files import write_whole


def make_report(
    model,
    found: Mapping[str, Any],
    *,
    limit: int | None,
    seed: int,
    fingerprint: str | None,
    data_dir: str | pathlib.Path | None = None,
    is_complete: bool = True,
) -> dict[str, Any]:
    """What `results.json` holds: {"results": {task: {metric: value, metric + "_stderr": value}}, ...}.

    Args:
      model: the `fmjax.load.Model` that was evaluated.
      found: `fmjax.tasks.runner.TaskResult` by task.
      limit, seed, data_dir: as given to `fmjax.evaluate`.
      fingerprint: of the model's content (`model_fingerprint`), None where it was not worked out.
      is_complete: whether these are all of the tasks.
    """
    return {
        "results": {name: result.metrics for name, result in found.items()},
        "tasks": {name: result.given for name, result in found.items()},
        "task_versions": {name: result.version for name, result in found.items()},
        "num_documents": {name: result.num_documents for name, result in found.items()},
        "num_shots": {name: result.num_shots for name, result in found.items()},
        "seconds": {name: round(result.seconds, 3) for name, result in found.items()},
        "details": {name: result.details for name, result in found.items() if result.details},
        "cost": {name: _cost(result) for name, result in found.items()},
        "complete": is_complete,
        "limit": limit or None,
        "seed": seed,
        "data_dir": None if data_dir is None else str(data_dir),
        "model": _describe(model) | {"fingerprint": fingerprint},
        "config": model.config,
        "versions": _versions(),
    }


def write_report(report: Mapping[str, Any], folder: pathlib.Path) -> None:
    """Writes `folder/results.json`."""
    # JSON has no infinity, which is what the perplexity of a hopeless model overflows to.
    finite = {name: {k: _finite(v) for k, v in metrics.items()} for name, metrics in report["results"].items()}
    write_whole(folder / "results.json", json.dumps({**report, "results": finite}, indent=2, default=str) + "\n")


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the header first, as text whose columns are aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    ruled = [rows[0], tuple("-" * width for width in widths), *rows[1:]]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in ruled)


def table(report: dict[str, Any]) -> str:
    """The results as aligned text, a metric a line."""
    rows = [("task", "version", "documents", "metric", "value", "stderr")]
    for task, metrics in report["results"].items():
        for name in metrics:
            if not name.endswith("_stderr"):
                error = metrics.get(f"{name}_stderr")
                shown = number(metrics[name]), "" if error is None else number(error)
                rows.append((task, report["task_versions"][task], str(report["num_documents"][task]), name, *shown))
    return aligned(rows)


def number(value: float) -> str:
    """As a table shows it: four decimals, or six digits from 10,000 on."""
    return f"{value:.4f}" if abs(value) < 10_000 else f"{value:.6g}"


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
    if unfinished := sum(cost["unfinished_answers"] for cost in costs):
        parts.append(f"{unfinished:,} answers ended early, where the model's context was full")
    return " | ".join(parts)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _cost(result) -> dict[str, Any]:
    """What a task took. Answers that were already on disk cost nothing and are counted apart."""
    work = result.work
    return {
        "requests": work.requests,
        "stored_requests": work.stored,
        "truncated_requests": work.truncated,
        "unfinished_answers": work.unfinished,
        "tokens": work.num_tokens,
        "flops": result.flops,
        **({"flops_note": result.flops_note} if result.flops_note else {}),
        "joules": result.energy.joules,
        "energy_source": result.energy.source,
    }


def _describe(model) -> dict[str, Any]:
    leaves = jax.tree.leaves(model.params)
    return {
        "source": model.source,
        "step": model.step,
        "module": type(model.module).__name__,
        "parameters": count(model.params),
        "dtype": str(leaves[0].dtype) if leaves else None,
        "context_length": model.context_length,
        "tokenizer": getattr(model.tokenizer, "fingerprint", None),
    }


def _versions() -> dict[str, str | None]:
    import flax
    import jax
    import numpy

    import fmjax

    modules = {"fmjax": fmjax, "jax": jax, "flax": flax, "numpy": numpy}
    versions = {name: module.__version__ for name, module in modules.items()}
    return versions | {"fmjax_commit": commit(), "python": platform.python_version()}


@functools.cache
def commit() -> str | None:
    """The commit of the git checkout that fmjax runs from, "+" behind it where files have changed since; else None."""
    root = pathlib.Path(__file__).parents[2]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        # Not that of a checkout that merely holds the place where fmjax is installed.
        if pathlib.Path(git("rev-parse", "--show-toplevel")).resolve() != root.resolve():
            return None
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--", "fmjax") else "")
    except (OSError, subprocess.SubprocessError):
        return None
