"""Tasks as they are before the model computes: found by name, with their documents, examples and requests."""

import dataclasses
import operator
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from fmjax.errors import InputError
from fmjax.registry import missing_method
from fmjax.tasks.capabilities import naming
from fmjax.tasks.catalogue import get_task
from fmjax.tasks.few_shot import FewShot, NoExamplesError
from fmjax.tasks.perturbation import Perturbed
from fmjax.tasks.protocol import Request, Task, TaskContext
from fmjax.tasks.trained import Trained


@dataclasses.dataclass(frozen=True)
class Prepared:
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


def whole_number(name: str, value, meaning: str) -> int | None:
    """The number. Raises InputError for what is none, or below 0."""
    if value is None:
        return None
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < 0:
        raise InputError(f"{name} = {value!r}: expected an integer of at least 0 ({meaning})")
    return operator.index(value)


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


def prepare(task: Task, context: TaskContext, limit: int | None = None, num_shots: int | None = None) -> Prepared:
    """The task's documents and requests, with their examples.

    Raises InputError where its files or packages are missing, there are no documents, it has too few examples or
    training documents, or a perturbation changes none of the documents.
    """
    context = dataclasses.replace(context, read={})
    with naming(task):
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
    return Prepared(task, chosen, requests, few_shot.num_shots, len(documents), context.read)
