"""Runs tasks on a model: documents, examples, requests, answers, sums, standard errors, what it cost, sample logs."""

import contextlib
import dataclasses
import operator
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from fmjax.errors import DataError, InputError
from fmjax.inference import counted
from fmjax.inference.fingerprint import model_fingerprint
from fmjax.inference.scored_text import continuation_segments
from fmjax.registry import missing_method
from fmjax.tasks import statistics
from fmjax.tasks.answers import Work, answer, capabilities, chat_details, needed, resolve
from fmjax.tasks.catalogue import get_task
from fmjax.tasks.cost import Energy, EnergyMeter
from fmjax.tasks.few_shot import FewShot, NoExamplesError
from fmjax.tasks.perturbation import Perturbed
from fmjax.tasks.protocol import Media, Prediction, Request, Rolling, Score, Task, TaskContext, plain, request_fields
from fmjax.tasks.store import AnswerStores
from fmjax.tasks.trained import Trained


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

    def check(self, task: Task, requests: list[list[Request]]) -> None:
        """Raises InputError for a task that it can say nothing of."""

    def look(self, task: Task, model, requests: list[list[Request]], answers: list) -> None:
        """Called with the model that answered the requests, a list a document, and all answers in their order."""


@dataclasses.dataclass(frozen=True)
class _Prepared:
    """A task with everything that is known before the model computes.

    Attributes:
      documents: those that are evaluated, of `num_documents` in all.
      read: what the documents were read from (`TaskContext.read`).
      given: the name that the task was asked for by.
    """

    task: Task
    documents: list
    requests: list[list[Request]]
    num_shots: int
    num_documents: int
    read: dict[str, dict[str, Any]]
    given: str | None = None


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
    limit = _whole_number("limit", limit, "the number of documents of each task, 0 for all")
    num_shots = _whole_number("num_shots", num_shots, "the number of examples in each prompt")
    seed = _whole_number("seed", seed, "at least 0")
    if data_dir and not pathlib.Path(data_dir).is_dir():
        raise InputError(f"data_dir {str(data_dir)!r} is not a folder; give the one with the tasks' files")
    given = find_tasks(tasks, task_path)
    context = TaskContext(pathlib.Path(data_dir) if data_dir else None, lambda: data or _open_data(model), seed)
    prepared = prepare_all(list(given.values()), context, limit, num_shots)
    prepared = [dataclasses.replace(one, given=name) for name, one in zip(given, prepared)]
    check_capabilities(model, prepared)
    for one in prepared if inspect is not None else ():
        inspect.check(one.task, one.requests)
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


def find_tasks(
    tasks: Sequence[str | Task] | Mapping[str, Task] | str, task_path: Sequence[str | pathlib.Path] = ()
) -> dict[str, Task]:
    """Tasks by the names that they are asked for by.

    tasks: names, several of them separated by commas where it is one text; Task objects, by their own names; or what
      this function gave.

    Raises InputError for none, an unknown one, or one that is given twice.
    """
    if isinstance(tasks, Mapping):
        return dict(tasks)
    tasks = [name.strip() for name in tasks.split(",") if name.strip()] if isinstance(tasks, str) else list(tasks)
    task_path = [task_path] if isinstance(task_path, str | pathlib.Path) else task_path
    found: dict[str, Task] = {}
    for given in tasks:
        task = get_task(given, task_path) if isinstance(given, str) else given
        if not isinstance(task, Task):
            raise InputError(f"a task is given as {given!r}; expected its name, or an instance of a subclass of Task")
        for method in ("documents", "requests", "statistics"):
            if problem := missing_method(type(task), method, getattr(Task, method)):
                raise InputError(f"task {task.name}: {problem}; fmjax/tasks/README.md has a complete task")
        if task.name in {one.name for one in found.values()}:
            raise InputError(f"task {task.name!r} is given twice")
        found[given if isinstance(given, str) else task.name] = task
    if not found:
        raise InputError("no task is given; `python -m fmjax.evaluate --list` shows them")
    return found


def _whole_number(name: str, value, meaning: str) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < 0:
        raise InputError(f"{name} = {value!r}: expected an integer of at least 0 ({meaning})")
    return operator.index(value)


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
                f"on: {key} was {before!r}, is {now!r}; put the data back, or score a text of your own as text:PATH"
            )
    return data


def prepare_all(tasks: Sequence[Task], context: TaskContext, limit: int | None, num_shots: int | None) -> list:
    """As `prepare` for each; of several tasks, the error names all that take no examples where some are asked for."""
    prepared, without, error = [], [], None
    for task in tasks:
        try:
            prepared.append(prepare(task, context, limit, num_shots))
        except NoExamplesError as reason:
            without.append(task.name)
            error = reason
    if error is not None and len(tasks) == 1:
        raise error
    if without:
        rest = ",".join(one.task.name for one in prepared)
        take, them = ("takes", "it") if len(without) == 1 else ("take", "them")
        raise InputError(
            f"num_shots={num_shots}: {', '.join(without)} {take} no examples in the prompt; evaluate {them} without "
            f"num_shots{f', and with it tasks={rest}' if rest else ''}"
        )
    return prepared


def prepare(task: Task, context: TaskContext, limit: int | None = None, num_shots: int | None = None) -> _Prepared:
    """The task's documents and requests, with their examples.

    Raises InputError where its files or packages are missing, there are no documents, it has too few examples or
    training documents, or a perturbation changes none of the documents.
    """
    context = dataclasses.replace(context, read={})
    with _naming(task):
        task.check()
        few_shot = FewShot.make(task, num_shots, context.seed, context)
        documents = task.documents(context)
        chosen = [documents[i] for i in range(min(limit or len(documents), len(documents)))]
        requests = [few_shot.requests(document) for document in chosen]
        if isinstance(task, Trained):
            task.chosen(context)  # whose absence is an error here, before another task computes
    if not chosen:
        raise InputError(f"task {task.name}: there are no documents")
    if isinstance(task, Perturbed):
        task.check_changes(chosen)
    return _Prepared(task, chosen, requests, few_shot.num_shots, len(documents), context.read)


@contextlib.contextmanager
def _naming(task: Task, place: str = "") -> Iterator[None]:
    """Puts the task's name and `place` in front of an InputError's message that does not begin with a task."""
    try:
        yield
    except InputError as error:
        message = str(error)
        raise type(error)(message if message.startswith("task ") else f"task {task.name}: {place}{message}") from None


def check_capabilities(model, prepared: Sequence[_Prepared]) -> None:
    """Raises InputError naming every task whose requests the model cannot answer, and what it lacks.

    Also where a request names a function or an environment that is not there.
    """
    has, problems = capabilities(model), []
    for one in prepared:
        requests = [request for group in one.requests for request in group]
        with _naming(one.task):
            for request in _different(requests):
                resolve(request)
        asked = {needed(request) for request in requests} - {""}
        # A function that the task's own adaptation adds is not there yet.
        wanted = set(one.task.uses) if one.task.adapts else asked | set(one.task.uses)
        if lacks := sorted(wanted - has):
            problems.append(f"{one.task.name} needs {', '.join(lacks)}")
    if problems:
        why = "it has no tokenizer; " if model.tokenizer is None else ""
        raise InputError(
            f"{model} cannot answer: {'; '.join(problems)} ({why}what it has: {', '.join(sorted(has)) or 'nothing'})"
        )
    for one in prepared:
        if one.task.adapts:  # whose model is not there yet
            continue
        with _naming(one.task):
            _check_lengths(model, [request for group in one.requests for request in group])


def _check_lengths(model, requests: Sequence[Request]) -> None:
    """Raises InputError for a continuation that is longer than the model's context."""
    if (limit := model.context_length) is None:
        return
    scores = [(request.context, request.continuation) for request in requests if isinstance(request, Score)]
    # No more tokens than bytes, one in front aside: most need not be looked at.
    if long := [pair for pair in scores if len(pair[1].encode()) >= limit]:
        continuation_segments(model, long)


def _different(requests: Sequence[Request]) -> list[Request]:
    """One of the requests for each function and environment."""
    return list({getattr(r, "function", getattr(r, "environment", None)): r for r in requests}.values())


def _run(
    one: _Prepared, base, context: TaskContext, meter, stores, fingerprint, inspect, progress: bool
) -> TaskResult:  # fmt: skip
    task, begin, work = one.task, time.perf_counter(), Work()
    with counted.counting() as passes:
        model = task.adapt(base, context)
    if model is not base:
        work.add(passes, f"{task.name}'s adapt")
    store = None if stores is None else stores.of(model, fingerprint if model is base else None)
    flat = [request for group in one.requests for request in group]
    label = task.name if progress else None
    with _naming(task):
        answers = answer(flat, model, label, seed=context.seed, store=store, work=work)
    if inspect is not None:
        inspect.look(task, model, one.requests, answers)
    samples, predictions, at = [], [], 0
    for index, (document, group) in enumerate(zip(one.documents, one.requests)):
        mine = answers[at : at + len(group)]
        at += len(group)
        with _naming(task, f"document {index}: "):
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


def _data(one: _Prepared) -> dict[str, Any]:
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
