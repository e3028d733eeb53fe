"""Runs tasks on a model: requests grouped by kind, answers added up, standard errors, sample logs."""

import dataclasses
import json
import pathlib
import re
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fmjax.errors import DataError, InputError
from fmjax.tasks.catalogue import get_task
from fmjax.tasks.protocol import Generate, Rolling, RollingAnswer, Score, ScoreAnswer, Task, TaskContext

REPLICATES = 1000
"""Bootstrap resamples of the documents behind each standard error."""


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """What a task gave.

    Attributes:
      metrics: name to value, and name + "_stderr" to its standard error (None for a single document).
      headline: one line for the terminal.
      version: the task's.
      num_documents: documents evaluated.
      samples: one JSON-able object a document: index, document, requests, answers, statistics.
      seconds: wall time.
    """

    metrics: dict[str, float | None]
    headline: str
    version: str
    num_documents: int
    samples: list[dict[str, Any]]
    seconds: float


def run_tasks(
    model,
    tasks: Sequence[str | Task],
    *,
    data=None,
    limit: int | None = None,
    num_shots: int | None = None,
    data_dir: str | pathlib.Path | None = None,
    task_path: Sequence[str | pathlib.Path] = (),
    seed: int = 0,
    progress: bool = False,
) -> dict[str, TaskResult]:
    """Evaluates a model, freshly loaded or in the middle of its training.

    Args:
      model: a `fmjax.load.Model`.
      tasks: names as in `--list`, `text:PATH`, import paths, or Task objects.
      data: the `OpenData` of the run, if it is at hand; otherwise opened from the model's config when a task asks.
      limit: only the first `limit` documents of each task; None or 0 is all.
      num_shots: examples in the prompt; the tasks at hand take none.
      data_dir: folder with the tasks' files.
      task_path: Python files with further tasks.
      seed: of the bootstrap.
      progress: show progress bars on stderr.

    Returns: results by task name, in the order of `tasks`.
    Raises: InputError (unknown task, missing data, a model without tokenizer) before anything is computed.
    """
    if limit is not None and limit < 0:
        raise InputError(f"limit must be at least 1 document, or 0 for all, got {limit}")
    found: dict[str, Task] = {}
    for task in [get_task(t, task_path) if isinstance(t, str) else t for t in tasks]:
        if task.name in found:
            raise InputError(f"task {task.name!r} is given twice")
        found[task.name] = task
    if num_shots:
        raise InputError(f"{', '.join(found)}: takes no examples in the prompt, got num_shots={num_shots}")
    if model.tokenizer is None:
        raise InputError(f"the model from {model.source} has no tokenizer, which {', '.join(found)} needs")
    context = TaskContext(pathlib.Path(data_dir) if data_dir else None, lambda: data or _open_data(model))
    documents = {name: _documents(task, context, limit) for name, task in found.items()}
    return {name: _run(task, documents[name], model, seed, progress) for name, task in found.items()}


def _open_data(model):
    """The data of the run that made `model`, from its config."""
    if "data" not in model.config:
        raise InputError(f"the model from {model.source} does not say what data it was trained on")
    from fmjax.caches import cache_dir
    from fmjax.training.setup import open_data

    data = open_data(model.config, cache_dir())
    for key, before in model.identity.items():
        now = data.identity.get(key)
        # Another tokenizer of the same documents does not matter: the model brings its own.
        if key != "tokenizer" and now != before:
            raise DataError(
                f"the data are not those of the run in {model.source!r}, so what is held out now may have been trained "
                f"on: {key} was {before!r}, is {now!r}; put the data back, or score a text of your own as text:PATH"
            )
    return data


def _documents(task: Task, context: TaskContext, limit: int | None) -> list:
    try:
        documents = task.documents(context)
    except InputError as error:
        raise type(error)(f"task {task.name}: {error}") from None
    chosen = [documents[i] for i in range(min(limit or len(documents), len(documents)))]
    if not chosen:
        raise InputError(f"task {task.name}: there are no documents")
    return chosen


def _run(task: Task, documents: list, model, seed: int, progress: bool) -> TaskResult:
    begin = time.perf_counter()
    requests = [task.requests(document) for document in documents]
    answers = answer([r for group in requests for r in group], model, task.name if progress else None)
    samples, rows, at = [], [], 0
    for index, (document, group) in enumerate(zip(documents, requests)):
        mine = answers[at : at + len(group)]
        at += len(group)
        rows.append(task.statistics(document, mine) | {"documents": 1.0})
        samples.append(
            {
                "index": index,
                "document": task.record(document),
                "requests": [_logged(request) for request in group],
                "answers": mine,
                "statistics": rows[-1],
            }
        )
    names = list(rows[0])
    table = np.asarray([[row[name] for name in names] for row in rows], np.float64)

    def reduce(totals: np.ndarray) -> dict[str, float]:
        return task.reduce(dict(zip(names, totals.tolist())))

    metrics = reduce(table.sum(axis=0))
    errors = bootstrap(table, reduce, seed)
    shown = {}
    for name, value in metrics.items():
        shown |= {name: value, f"{name}_stderr": errors[name]}
    return TaskResult(shown, task.headline(metrics), task.version, len(documents), samples, time.perf_counter() - begin)


def bootstrap(table: np.ndarray, reduce: Callable[[np.ndarray], Mapping[str, float]], seed: int) -> dict:
    """Standard errors of metrics: their standard deviation over resamples of the documents.

    Args:
      table: [documents, statistics].
      reduce: totals [statistics] to metrics.

    Returns: metric to standard error; None for all where there is a single document.
    """
    count = len(table)
    if count < 2:
        return dict.fromkeys(reduce(table.sum(axis=0)))
    rng = np.random.default_rng(seed)
    values = defaultdict(list)
    for _ in range(REPLICATES):
        picked = rng.integers(0, count, count)
        for name, value in reduce(np.bincount(picked, minlength=count) @ table).items():
            values[name].append(value)
    return {name: float(np.std(sample, ddof=1)) for name, sample in values.items()}


def answer(requests: Sequence, model, progress: str | None = None) -> list:
    """Answers in the order of the requests; requests of one kind go to the model together."""
    kinds = defaultdict(list)
    for index, request in enumerate(requests):
        kind = type(request)
        if kind not in (Score, Rolling, Generate):
            raise InputError(f"a task asked for {request!r}, which is none of Score, Rolling, Generate")
        options = (request.max_new_tokens, request.temperature) if kind is Generate else ()
        kinds[kind, options].append(index)
    answers: list = [None] * len(requests)
    for (kind, options), indices in kinds.items():
        group = [requests[i] for i in indices]
        if kind is Score:
            found = model.score([(r.context, r.continuation) for r in group], progress=progress)
            found = [ScoreAnswer(*a) for a in found]
        elif kind is Rolling:
            found = [RollingAnswer(*a) for a in model.loglikelihood_rolling([r.text for r in group], progress=progress)]
        else:
            texts = model.generate([r.prompt for r in group], max_new_tokens=options[0], temperature=options[1])
            found = [_before_stop(text, r.stop) for text, r in zip(texts, group)]
        for index, one in zip(indices, found):
            answers[index] = one
    return answers


def _before_stop(text: str, stops: tuple[str, ...]) -> str:
    ends = [text.find(stop) for stop in stops if stop in text]
    return text[: min(ends)] if ends else text


def _logged(request) -> dict:
    """A request for the sample log. A whole text is logged by its document's record alone."""
    fields = {} if isinstance(request, Rolling) else dataclasses.asdict(request)
    return {"kind": type(request).__name__.lower(), **fields}


def write_samples(results: Mapping[str, TaskResult], folder: pathlib.Path) -> None:
    """Writes `folder/TASK.jsonl`, a document a line; signs that file names cannot hold become "_"."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, result in results.items():
        with (folder / f"{re.sub(r'[^A-Za-z0-9._-]+', '_', name)}.jsonl").open("w", encoding="utf-8") as file:
            for sample in result.samples:
                file.write(json.dumps(sample, ensure_ascii=False) + "\n")
