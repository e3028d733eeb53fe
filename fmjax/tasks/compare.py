"""Two evaluations side by side: differences paired by document, with their errors, as a table and a plot."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from fmjax.errors import InputError
from fmjax.small_files import read_json
from fmjax.tasks import statistics
from fmjax.tasks.catalogue import get_task
from fmjax.tasks.report import aligned, number
from fmjax.tasks.sample_log import read_samples


@dataclasses.dataclass(frozen=True)
class Difference:
    """A metric of one task in two evaluations, on the documents that both have.

    Attributes:
      task, metric: their names.
      first, second: the metric's values.
      stderr: of `second - first`; None for a single document or cluster.
      num_documents: how many documents both have.
    """

    task: str
    metric: str
    first: float
    second: float
    stderr: float | None
    num_documents: int

    @property
    def difference(self) -> float:
        return self.second - self.first

    @property
    def z(self) -> float | None:
        """The difference in standard errors."""
        return self.difference / self.stderr if self.stderr else None


def compare(first: str | pathlib.Path, second: str | pathlib.Path, *, task_path=(), seed: int = 0) -> list[Difference]:
    """Differences of every metric of every task that two evaluations share.

    Documents are paired by content and resampled together, so what makes a document hard for both does not count as
    noise.

    Args:
      first, second: output folders of `python -m fmjax.evaluate`.
      task_path: Python files with the tasks that are not fmjax's own.
      seed: of the resampling.

    Raises: InputError for folders without results or without a task in common, or where a task's version, its card or
      all of its documents differ. What else differs, `notes` says.
    """
    reports = [read_report(folder) for folder in (first, second)]
    shared = [name for name in reports[0]["results"] if name in reports[1]["results"]]
    if not shared:
        names = [", ".join(report["results"]) for report in reports]
        raise InputError(f"no task in common: {str(first)!r} has {names[0]}; {str(second)!r} has {names[1]}")
    found = []
    for name in shared:
        versions = [report["task_versions"][name] for report in reports]
        if versions[0] != versions[1]:
            raise InputError(
                f"task {name}: version {versions[0]} in {str(first)!r} and {versions[1]} in {str(second)!r} do not "
                "compare; evaluate one of them again"
            )
        _check_cards(name, [report.get("details", {}).get(name, {}).get("card") for report in reports])
        task = get_task(reports[0]["tasks"][name], task_path)
        if task.version != versions[0]:
            raise InputError(
                f"task {name}: {str(first)!r} and {str(second)!r} are of version {versions[0]}, and the task as it is "
                f"now of version {task.version}; evaluate both again"
            )
        samples = [read_samples(folder, name) for folder in (first, second)]
        found += _compare_task(name, task, samples, seed)
    return found


def _check_cards(name: str, cards: list[Mapping[str, Any] | None]) -> None:
    """Raises InputError where two scores of one name were measured by protocols that differ (`Task.details`)."""
    if unlike := _differences(*(card or {} for card in cards)):
        raise InputError(
            f"task {name}: the cards of the two evaluations are unlike, so their scores do not compare: "
            f"{'; '.join(unlike)}. Evaluate one of them again as the other was"
        )


def notes(first: str | pathlib.Path, second: str | pathlib.Path) -> list[str]:
    """What differs between two evaluations besides the model and so has a part in their differences, a line each.

    Raises InputError as `compare`.
    """
    one, other = (read_report(folder) for folder in (first, second))
    found = []
    for name in one["results"].keys() & other["results"].keys():
        shots, details = ([r.get(field, {}).get(name) for r in (one, other)] for field in ("num_shots", "details"))
        if shots[0] != shots[1]:
            found.append(f"task {name}: {shots[0]} examples in the prompts of the first, {shots[1]} of the second")
        found += [f"task {name}: {line}" for line in _differences(*(details or {} for details in details))]
    found.sort()
    for this, that, which in ((one, other, "first"), (other, one, "second")):
        if alone := sorted(this["results"].keys() - that["results"].keys()):
            found.append(f"left out, as the {which} alone has them: {', '.join(alone)}")
        if not this.get("complete", True):
            found.append(f"the {which} was interrupted: not all of its tasks are there")
    if one.get("seed") != other.get("seed"):
        found.append(
            f"seed {one.get('seed')} of the first, {other.get('seed')} of the second: other examples in prompts, other "
            "draws, other training of probes"
        )
    if one.get("limit") != other.get("limit"):
        limits = ["all documents" if report.get("limit") is None else report["limit"] for report in (one, other)]
        found.append(f"limit: {limits[0]} of the first, {limits[1]} of the second; compared is what both have")
    return found


def _differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """What two evaluations say under "details" that is not the same, a line each."""
    found = []
    for name in sorted(first.keys() | second.keys()):
        one, other = first.get(name), second.get(name)
        if name == "read":
            one, other = one or {}, other or {}
            for file in sorted(one.keys() | other.keys()):
                if file not in one or file not in other:
                    found.append(f"only the {'first' if file in one else 'second'} read {file}")
                elif one[file] != other[file]:
                    found.append(f"{file} held something else for the second than for the first")
        elif one != other:
            found.append(f"{name}: {one} of the first, {other} of the second")
    return found


def _compare_task(name: str, task, samples, seed: int) -> list[Difference]:
    keys = sorted(samples[0].keys() & samples[1].keys())
    if not keys:
        raise InputError(f"task {name}: the two evaluations have no document in common")
    columns = {}
    for order, side in enumerate(samples):
        rows = [side[key]["statistics"] for key in keys]
        columns |= {f"{order}/{name}": column for name, column in statistics.table(rows).items()}

    def reduce(table: Mapping[str, np.ndarray]) -> dict[str, float]:
        sides = [
            task.reduce_documents({name[2:]: column for name, column in table.items() if name.startswith(f"{number}/")})
            for number in (0, 1)
        ]
        # A metric that the documents say nothing about is left out, and may be so on one side alone.
        shared = [metric for metric in sides[0] if metric in sides[1]]
        return {f"0/{k}": sides[0][k] for k in shared} | {k: sides[1][k] - sides[0][k] for k in shared}

    clusters = [_hashable(samples[0][key].get("cluster")) for key in keys]
    values = reduce(columns)
    errors = statistics.bootstrap(columns, reduce, seed, clusters, summable=task.is_summable)
    found = [metric for metric in values if not metric.startswith("0/")]
    first = [metric for metric in task.metrics if metric in found]
    return [
        Difference(name, k, values[f"0/{k}"], values[f"0/{k}"] + values[k], errors.get(k), len(keys))
        for k in (*first, *sorted({*found} - {*first}))  # those of subsets last
    ]


def _hashable(value: Any) -> Any:
    """A cluster as JSON gives it back: tuples have become lists."""
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def read_report(folder: str | pathlib.Path) -> dict[str, Any]:
    """What `results.json` holds. Raises InputError where there is none, or it is another file."""
    path = pathlib.Path(folder) / "results.json"
    if not path.is_file():
        raise InputError(f"{str(folder)!r} is not the output of an evaluation: it has no results.json")
    report = read_json(path, dict, InputError)
    missing = [name for name in ("results", "task_versions", "num_shots") if name not in report]
    if missing:
        raise InputError(f"{str(path)!r} is not of an evaluation: it has no {missing[0]!r}; evaluate again")
    return {"tasks": {name: name for name in report["results"]}} | report


def table(differences: list[Difference]) -> str:
    """The differences as aligned text; * marks one of more than two standard errors, as a last line then says."""
    rows = [("task", "metric", "documents", "first", "second", "difference", "stderr", "")]
    for d in differences:
        error = "" if d.stderr is None else number(d.stderr)
        mark = "*" if d.z is not None and abs(d.z) > 2 else ""
        sign = "+" if d.difference >= 0 else ""
        values = number(d.first), number(d.second), f"{sign}{number(d.difference)}"
        rows.append((d.task, d.metric, str(d.num_documents), *values, error, mark))
    legend = "\n* more than two standard errors" if any(row[-1] == "*" for row in rows) else ""
    return aligned(rows) + legend


def plot(differences: list[Difference], path: str | pathlib.Path, names: tuple[str, str]) -> None:
    """Draws each task's first metric: both values, and the difference with two standard errors."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    first = {}
    for d in differences:
        if math.isfinite(d.first) and math.isfinite(d.second):
            first.setdefault(d.task, d)
    shown = list(first.values())[::-1]
    labels = [f"{d.task}\n{d.metric}" for d in shown]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 1.2 + 0.55 * len(shown)), sharey=True, layout="constrained")
    for values, name, marker in (([d.first for d in shown], names[0], "o"), ([d.second for d in shown], names[1], "s")):
        left.plot(values, range(len(shown)), marker, label=name)
    left.set_yticks(range(len(shown)), labels)
    left.legend(fontsize="small")
    left.set_title("value", fontsize="medium")
    right.errorbar(
        [d.difference for d in shown], range(len(shown)), xerr=[2 * (d.stderr or 0) for d in shown], fmt="D", capsize=3
    )
    right.axvline(0, color="grey", linewidth=0.8)
    right.set_title("difference, ± 2 standard errors", fontsize="medium")
    figure.savefig(path, dpi=120)
    plt.close(figure)
