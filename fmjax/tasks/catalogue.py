"""Finding tasks: fmjax's own, those of installed packages (entry points `fmjax.tasks`), of files, by import path."""

import hashlib
import importlib.metadata
import importlib.util
import inspect
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence

from fmjax.errors import InputError
from fmjax.registry import nearest
from fmjax.tasks import TASKS
from fmjax.tasks.perturbation import PERTURBATIONS, Perturbed
from fmjax.tasks.protocol import Task
from fmjax.tasks.voting import COUNT, VOTE, Voted


def catalogue(task_path: Sequence[str | pathlib.Path] = ()) -> dict[str, Callable]:
    """Every task by name: a function that gives its class, and raises InputError where a package's cannot be loaded.

    Raises InputError where two have one name.
    """
    found: dict[str, Callable] = {name: lambda name=name: TASKS.get(name) for name in TASKS.table}
    owners = dict.fromkeys(found, "fmjax")

    def add(name, get, owner):
        same = name if name in found else _subset_of(name, found)
        if same:
            raise InputError(f"two tasks are called {name!r}: one of {owners[same]}, one of {owner}; rename one")
        found[name], owners[name] = get, owner

    for point in importlib.metadata.entry_points(group="fmjax.tasks"):
        add(point.name, lambda point=point: _load(point), f"the entry point {point.value}")
    for path in task_path:
        for task in tasks_in_file(pathlib.Path(path)):
            add(task.name, lambda task=task: task, str(path))
    return found


def _load(point) -> type[Task]:
    try:
        found = point.load()
    except Exception as error:  # whatever another package does when it is imported
        raise InputError(
            f"task {point.name!r} of the entry point {point.value!r} cannot be loaded: {type(error).__name__}: "
            f"{error}; mend or uninstall the package"
        ) from error
    return _checked(found, f"task {point.name!r} of the entry point {point.value!r}")


def _checked(found, what: str) -> type[Task]:
    """Raises InputError for what is no class of a task. A name may be given to it when it is made."""
    if inspect.isclass(found) and issubclass(found, Task) and found is not Task:
        return found
    raise InputError(f"{what} is {found!r}; expected a subclass of fmjax.tasks.protocol.Task with a name")


def tasks_in_file(path: pathlib.Path) -> list[type[Task]]:
    """The task classes that a Python file defines. Raises InputError when there is none or it does not run."""
    if not path.is_file():
        raise InputError(f"--task_path: {str(path)!r} does not exist; give a Python file with tasks")
    if path.suffix != ".py":
        raise InputError(f"--task_path: {str(path)!r} is not a Python file (.py) with tasks")
    # A name for each file, among the modules: the digest of a task's code finds the file by it.
    name = f"fmjax_task_file_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise InputError(f"--task_path: {str(path)!r} does not run: {type(error).__name__}: {error}") from error
    classes = [value for value in vars(module).values() if inspect.isclass(value) and issubclass(value, Task)]
    # Not those it imports, and not a base class without a name.
    tasks = [task for task in classes if task.__module__ == module.__name__ and hasattr(task, "name")]
    if not tasks:
        raise InputError(f"--task_path: {str(path)!r} defines no subclass of fmjax.tasks.protocol.Task with a name")
    return tasks


def get_task(name: str, task_path: Sequence[str | pathlib.Path] = ()) -> Task:
    """The task called `name`.

    A known name; `NAME:ARGUMENT` for those that take one; `NAME_SUBSET` for one of a task's subsets (`mmlu_anatomy`);
    `package.module:Class`; any of them with `+PERTURBATION` behind it (`fmjax.tasks.perturbation`),
    or `+vote:COUNT` (`fmjax.tasks.voting`).

    Raises InputError with the nearest known name.
    """
    inner, _, perturbation = name.rpartition("+")
    if inner and perturbation in PERTURBATIONS:
        return Perturbed(get_task(inner, task_path), perturbation)
    if inner and perturbation.partition(":")[0] == VOTE:
        return Voted(get_task(inner, task_path), perturbation.partition(":")[2] or COUNT)
    known = catalogue(task_path)
    if inner in known or _subset_of(inner, known):
        raise InputError(
            f"task {name!r}: no perturbation {perturbation!r}{nearest(perturbation, (*PERTURBATIONS, VOTE))} "
            f"Known: {', '.join((*PERTURBATIONS, VOTE))}"
        )
    base, _, argument = name.partition(":")
    if base in known:
        return _make(base, known[base](), argument)
    if whole := _subset_of(name, known):
        return known[whole]()(name.removeprefix(f"{whole}_"))
    if argument and ("." in base or (base and importlib.util.find_spec(base))):
        return _make(name, _checked(TASKS.get(name), f"task {name!r}"), "")
    names = [*known, *(f"{whole}_{subset}" for whole, get in known.items() for subset in _subsets(get))]
    close = nearest(base, names).removesuffix(".")
    raise InputError(
        f"unknown task {name!r}{close or ';'} `python -m fmjax.evaluate --list` shows all; a file's tasks are found "
        "with --task_path, others by import path 'package.module:Class'"
    )


def _subset_of(name: str, known: Mapping[str, Callable]) -> str | None:
    """The task of which `name` is a subset: `mmlu` of `mmlu_anatomy`."""
    wholes = (whole for whole in known if name.startswith(f"{whole}_"))
    return next((whole for whole in wholes if name.removeprefix(f"{whole}_") in _subsets(known[whole])), None)


def _subsets(get: Callable) -> Sequence[str]:
    try:
        return get().subsets
    except InputError:  # a package's that cannot be loaded, which may not be the one that is looked for
        return ()


def _make(name: str, task: Callable, argument: str) -> Task:
    parameters = inspect.signature(task).parameters.values()
    if argument and not parameters:
        raise InputError(f"task {name!r} takes no argument, got '{name}:{argument}'")
    if argument:
        return _named(task(argument), name)
    if any(parameter.default is parameter.empty for parameter in parameters):
        raise InputError(f"task {name!r} needs an argument: {task.description}")
    return _named(task(), name)


def _named(task: Task, name: str) -> Task:
    """Raises InputError for a task that says no name."""
    if not isinstance(getattr(task, "name", None), str):
        raise InputError(f"task {name!r}: {type(task).__name__} has no name; give its class one: name = 'my_task'")
    return task
