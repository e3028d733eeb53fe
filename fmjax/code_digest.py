"""Names for code and values that change with them: digests of source files, descriptions without addresses."""

import dataclasses
import functools
import hashlib
import inspect
import pathlib
import sys
import types
from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import numpy as np

PACKAGE = pathlib.Path(__file__).parent
COMPUTING = (
    "agents/[!o]*.py",  # all but their objective, which answers nothing
    "diffusion", "layers", "models", "inference", "native/*.*", "parallel/logical.py", "parallel/placement.py",
    "parallel/platform.py", "data/tokenizers", "data/captions.py", "tasks/answers.py", "tasks/functions.py",
    "tasks/environments.py", "tasks/adaptation.py", "tasks/heads.py", "tasks/neighbours.py", "tasks/image_changes.py",
    "tasks/made/making.py", "tasks/named_classes.py", "tasks/retrieval.py", "tasks/sandbox.py",
    "tasks/sandbox_inside.py", "objectives/first_stage.py", "adapt/adapter.py", "rewards/maths.py",
)  # fmt: skip
"""The parts of fmjax that an answer is computed by. `tests/inference/test_fingerprint.py` finds one that is missing."""
# fmjax's own is in `own_digest`; libraries are known by their versions.
_LIBRARIES = {"fmjax", "jax", "jaxlib", "flax", "numpy", "optax", "scipy", *sys.stdlib_module_names} - {"__main__"}


@functools.cache
def own_digest() -> str:
    """Of the source files of fmjax that answers are computed by."""
    files = []
    for part in COMPUTING:
        for path in PACKAGE.glob(part):
            files += path.rglob("*.py") if path.is_dir() else [path]
    return _digest((str(file.relative_to(PACKAGE)), file.read_bytes()) for file in sorted(files))


def code_digest(things: Iterable[Any]) -> str:
    """Of the source files that classes and functions are defined in, and of those that these take names from.

    Left out are fmjax's own, and of installed packages all but those of the things themselves. The files are read now:
    what was changed on disk after it was imported is not told from what runs.
    """
    things = [getattr(thing, "func", thing) for thing in things]  # of a partial
    things = [thing if hasattr(thing, "__qualname__") else type(thing) for thing in things]
    roots = {_top(thing.__module__) for thing in things} - _LIBRARIES
    found = {f"{t.__module__}:{t.__qualname__}": _own_source(t) for t in things if _top(t.__module__) in roots}
    waiting, seen = [thing.__module__ for thing in things], set()
    while waiting:
        name = waiting.pop()
        module = sys.modules.get(name)
        file = pathlib.Path(getattr(module, "__file__", None) or "")
        if name in seen or _top(name) in _LIBRARIES or file.suffix != ".py" or not file.is_file():
            continue
        seen.add(name)
        if _top(name) in roots or not {"site-packages", "dist-packages"} & set(file.parts):
            found[name] = file.read_bytes()
            waiting += filter(None, map(_home, list(vars(module).values())))
    return _digest(sorted(found.items()))


def _top(name: str) -> str:
    return name.partition(".")[0]


def _home(value) -> str | None:
    """The name of the module that a value is, or was defined in."""
    try:
        name = value.__name__ if isinstance(value, types.ModuleType) else value.__module__
    except Exception:  # whatever an object of another package does when it is asked
        return None
    return name if isinstance(name, str) else None


def _own_source(thing) -> bytes:
    """Where there is no file of it, as in a notebook, its text."""
    if getattr(sys.modules.get(thing.__module__), "__file__", None):
        return b""
    try:
        return inspect.getsource(thing).encode()
    except (OSError, TypeError):
        functions = [thing, *(vars(thing).values() if isinstance(thing, type) else ())]
        return "".join(_describe_code(f.__code__) for f in functions if hasattr(f, "__code__")).encode()


def _digest(parts: Iterable[tuple[str, bytes]]) -> str:
    made = hashlib.sha256()
    for name, content in parts:
        made.update(f"{name} {len(content)}\n".encode() + content)
    return made.hexdigest()[:32]


def describe(value: Any, _outer: tuple[int, ...] = ()) -> str:
    """A text that equal values have in every process, whatever their addresses.

    Functions and classes are "module:qualname"; one without a name of its own (a lambda, an inner function) is told
    by its byte code and what it closes over. Modules of Flax are told by their fields.
    """
    if isinstance(value, str | bytes | int | float | complex | bool | types.NoneType):
        return repr(value)
    if id(value) in _outer:
        return "..."  # it holds itself

    def inner(part):
        return describe(part, (*_outer, id(value)))

    if hasattr(value, "shape") and hasattr(value, "dtype") and not isinstance(value, type):
        return _describe_array(value)
    if isinstance(value, functools.partial):  # and `jax.tree_util.Partial`, which is one
        return f"partial({inner(value.func)}, {inner(value.args)}, {inner(value.keywords)})"
    if isinstance(value, types.MethodType):
        return f"{inner(value.__self__)}.{value.__name__}"
    if hasattr(value, "__qualname__"):
        return _describe_named(value)
    name = _describe_named(type(value))
    if isinstance(value, Mapping):
        return f"{name}({', '.join(sorted(f'{inner(k)}: {inner(v)}' for k, v in value.items()))})"
    if isinstance(value, set | frozenset):
        return f"{name}({', '.join(sorted(map(inner, value)))})"
    if isinstance(value, list | tuple):
        return f"{name}({', '.join(map(inner, value))})"
    if dataclasses.is_dataclass(value):
        left_out = ("parent", "name") if isinstance(value, nn.Module) else ()
        names = [field.name for field in dataclasses.fields(value) if field.name not in left_out]
        return f"{name}({', '.join(f'{one}={inner(getattr(value, one, None))}' for one in sorted(names))})"
    if type(value).__repr__ is object.__repr__:
        return f"{name}({inner(vars(value)) if hasattr(value, '__dict__') else ''})"
    return repr(value)


def _describe_named(value) -> str:
    name = f"{value.__module__}:{value.__qualname__}"
    code = getattr(value, "__code__", None)
    if code is None or "<" not in name:
        return name
    inside = [cell.cell_contents for cell in value.__closure__ or ()]
    return f"{name}({_describe_code(code)}, {describe(inside)}, {describe(value.__defaults__)})"


def _describe_code(code: types.CodeType) -> str:
    constants = [_describe_code(one) if isinstance(one, types.CodeType) else describe(one) for one in code.co_consts]
    return hashlib.sha256(repr((code.co_code.hex(), code.co_names, constants)).encode()).hexdigest()[:16]


def _describe_array(value) -> str:
    try:
        content = np.asarray(value)
    except (TypeError, RuntimeError):  # not to be read here: parts of it lie on other hosts
        return f"array {value.shape} {value.dtype}"
    return f"array {content.shape} {content.dtype} {hashlib.sha256(content.tobytes()).hexdigest()[:16]}"
