"""Runs tasks on a model: documents, examples, requests, answers, sums, standard errors, what it cost, sample logs."""

import contextlib
import dataclasses
import functools
import itertools
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from fmjax.errors import DataError, InputError
from fmjax.inference import counted
from fmjax.inference.fingerprint import model_fingerprint
from fmjax.tasks import statistics
from fmjax.tasks.answers import Work, answer, chat_details
from fmjax.tasks.capabilities import check_capabilities, naming
from fmjax.tasks.cost import Energy, EnergyMeter
from fmjax.tasks.prepared import Prepared, find_tasks, prepare_all, whole_number
from fmjax.tasks.protocol import (
    Media, Prediction, Request, Rolling, Task, TaskContext, plain, request_fields,
)  # fmt: skip
from fmjax.tasks.store import AnswerStores
from fmjax.tasks.trained_on import source_of


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """What a task gave.

    Attributes:
      given: the name that the task was asked for by: with its argument, and its import path where it has one.
      metrics: name to value, and name + "_stderr" to its standard error (None where there is none).
      headline: one line for the terminal.
      version: the task's.
      num_documents: documents evaluated.
      num_shots: examples in each prompt.
      samples: one JSON-able object a document: index, key, document, requests, answers, statistics.
      predictions: of each document (`Task.prediction`).
      seconds: wall time.
      work: what the answers took.
      flops: of it, None where not known; `flops_note` says why.
      energy: of the task, adaptation included.
      details: what the metrics' names leave open (`Task.details`).
    """

    given: str
    metrics: dict[str, float | None]
    headline: str
    version: str
    num_documents: int
    num_shots: int
    samples: list[dict[str, Any]]
    predictions: list[Prediction | None]
    seconds: float
    work: Work
    flops: float | None
    flops_note: str | None
    energy: Energy
    details: dict[str, Any]


class Inspect(Protocol):
    """Looks at a model while it is there: a task may have adapted one of its own."""

    def check(self, task: Task, model, requests: list[list[Request]]) -> None:
        """Raises InputError for a task that it can say nothing of; `model` is the one that is evaluated."""

    def look(self, task: Task, model, requests: list[list[Request]], answers: list) -> None:
        """Called with the model that answered the requests, a list a document, and all answers in their order."""


def run_tasks(
    model,
    tasks: Sequence[str | Task] | Mapping[str, Task] | str,
    *,
    data=None,
    limit: int | None = None,
    num_shots: int | None = None,
    data_dir: str | pathlib.Path | None = None,
    task_path: Sequence[str | pathlib.Path] = (),
    seed: int = 0,
    answers_dir: pathlib.Path | None = None,
    fingerprint: str | None = None,
    after_task: Callable[[dict[str, TaskResult]], None] | None = None,
    inspect: Inspect | None = None,
    progress: bool = False,
) -> dict[str, TaskResult]:
    """Evaluates a model, freshly loaded or in the middle of its training.

    Args:
      model: a `fmjax.load.Model`.
      tasks: names as in `--list`, `text:PATH`, import paths, or Task objects; one text, names separated by commas;
        or what `find_tasks` gave.
      data: the `OpenData` of the run, if it is at hand; otherwise opened from the model's config when a task asks.
      limit: only the first `limit` documents of each task; None or 0 is all.
      num_shots: examples in each prompt; None is each task's own number.
      data_dir: folder with the tasks' files.
      task_path: Python files with further tasks.
      seed: of the choice of examples, of continuations that are drawn, of adaptation and of the bootstrap.
      answers_dir: where answers are kept as they come, and those of an earlier run are found; None keeps none.
      fingerprint: of the model, where it is known already (`model_fingerprint`).
      after_task: called after each task with the results so far.
      inspect: looks at the model that answered; its check comes before anything is computed.
      progress: show progress bars on stderr.

    Returns: results by task name, in the order of `tasks`.
    Raises: InputError (unknown task, missing data, a model that cannot answer) before anything is computed.
    """
    limit = whole_number("limit", limit, "the number of documents of each task, 0 for all")
    num_shots = whole_number("num_shots", num_shots, "the number of examples in each prompt")
    seed = whole_number("seed", seed, "at least 0")
    if data_dir and not pathlib.Path(data_dir).is_dir():
        raise InputError(f"data_dir {str(data_dir)!r} is not a folder; give the one with the tasks' files")
    given = find_tasks(tasks, task_path)
    opened = functools.cache(lambda: data or _open_data(model))
    data_dir = pathlib.Path(data_dir) if data_dir else None
    run_data = model.config.get("data") or {}
    context = TaskContext(data_dir, opened, seed, source_of(model.config), run_data)
    prepared = prepare_all(list(given.values()), context, limit, num_shots)
    prepared = [dataclasses.replace(one, given=name) for name, one in zip(given, prepared)]
    check_capabilities(model, prepared)
    for one in prepared if inspect is not None else ():
        inspect.check(one.task, model, one.requests)
    found = {}
    if answers_dir is not None and fingerprint is None:
        fingerprint = model_fingerprint(model)
    with AnswerStores(answers_dir) if answers_dir is not None else contextlib.nullcontext() as stores:
        for one in prepared:
            with EnergyMeter() as meter:
                found[one.task.name] = _run(one, model, context, meter, stores, fingerprint, inspect, progress)
            if after_task is not None:
                after_task(found)
    return found


def _open_data(model):
    """The data of the run that made `model`, from its config."""
    if "data" not in model.config:
        raise InputError(f"the model from {model.source} does not say what data it was trained on")
    from fmjax.assemble import open_data
    from fmjax.cache_folder import cache_dir

    data = open_data(model.config, cache_dir())
    for key, before in model.identity.items():
        now = data.identity.get(key)
        # Another tokenizer of the same documents does not matter: the model brings its own.
        if key != "tokenizer" and now != before:
            raise DataError(
                f"the data are not those of the run in {model.source!r}, so what is held out now may have been trained "
                f"on: {key} was {before!r}, is {now!r}; put the data back, or give a task "
                "files of your own, such as text:PATH"
            )
    return data


def _run(
    one: Prepared, base, context: TaskContext, meter, stores, fingerprint, inspect, progress: bool
) -> TaskResult:  # fmt: skip
    task, begin, work = one.task, time.perf_counter(), Work()
    with counted.counting() as passes:
        model = task.adapt(base, context)
    if model is not base:
        work.add(passes, f"{task.name}'s adapt")
    store = None if stores is None else stores.of(model, fingerprint if model is base else None)
    flat = [request for group in one.requests for request in group]
    label = task.name if progress else None
    with naming(task):
        answers = answer(flat, model, label, seed=context.seed, store=store, work=work)
    if inspect is not None:
        inspect.look(task, model, one.requests, answers)
    rest = iter(answers)
    owned = [list(itertools.islice(rest, len(group))) for group in one.requests]
    with naming(task):
        task.gather(model, one.documents, owned)
    samples, predictions = [], []
    for index, (document, group, mine) in enumerate(zip(one.documents, one.requests, owned)):
        with naming(task, f"document {index}: "):
            measured = task.statistics(document, mine)
            predictions.append(task.prediction(document, mine))
        samples.append(
            {
                "index": index,
                "key": task.key(document),
                "document": plain(task.record(document)),
                "requests": [_logged(request) for request in group],
                "answers": mine,
                "statistics": measured | {"documents": 1.0},
                "cluster": task.cluster(document),
            }
        )
    metrics, errors = reduced(task, samples, context.seed)
    shown = {}
    for name, value in metrics.items():
        shown |= {name: value, f"{name}_stderr": errors[name]}
    return TaskResult(
        given=one.given or task.name,
        metrics=shown,
        headline=task.headline(metrics),
        version=task.version,
        num_documents=len(one.documents),
        num_shots=one.num_shots,
        samples=samples,
        predictions=predictions,
        seconds=time.perf_counter() - begin,
        work=work,
        flops=work.flops(model),
        flops_note=work.flops_note(model),
        energy=meter.read(),
        details=task.details() | chat_details(model, flat) | _data(one),
    )


def _data(one: Prepared) -> dict[str, Any]:
    """What the documents were read from, and how many there are without a limit; nothing where nothing was read."""
    return {"read": one.read, "documents": one.num_documents} if one.read else {}


def reduced(task: Task, samples: Sequence[Mapping], seed: int) -> tuple[dict, dict]:
    """Metrics of the samples' statistics, and their standard errors, both the same whatever the documents' order."""
    order = sorted(range(len(samples)), key=lambda i: samples[i]["key"])
    columns = statistics.table([samples[i]["statistics"] for i in order])
    clusters = [samples[i]["cluster"] for i in order]
    try:
        metrics = task.reduce_documents(columns)
    except KeyError as error:
        if error.args and error.args[0] in columns:
            raise
        raise InputError(
            f"task {task.name}: its metrics take a statistic {error} that its statistics() does not give; it gives "
            f"{', '.join(map(repr, columns))}"
        ) from error
    errors = statistics.bootstrap(columns, task.reduce_documents, seed, clusters, summable=task.is_summable)
    for name in task.positive:
        if errors.get(name) is not None and 2 * errors[name] >= metrics[name]:
            errors[name] = None
    return metrics, errors


def _logged(request) -> dict:
    """A request for the sample log. A whole text is logged by its document's record alone."""
    fields = {} if isinstance(request, Rolling) else request_fields(request, Media.record)
    return {"kind": type(request).__name__.lower(), **fields}
