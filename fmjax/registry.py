"""Names to objects: short registered names, or import paths `package.module:Object`."""

import difflib
import importlib
import inspect
from collections.abc import Mapping

from fmjax.errors import ConfigError


def nearest(name: str, known, cutoff: float = 0.5) -> str:
    """`"; did you mean 'x'?"` for the closest of `known`, or a full stop when nothing is close.

    cutoff: how close it must be, as `difflib` counts: 1 is equal.
    """
    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=cutoff)
    return f"; did you mean {close[0]!r}?" if close else "."


def import_object(path: str, what: str = "object"):
    """The object at `package.module:Object`. Raises ConfigError naming the part that does not exist."""
    module_name, _, attribute = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        # A module that exists but fails on an import of its own is that module's fault: keep its traceback.
        if missing and not (module_name == missing or module_name.startswith(missing + ".")):
            raise
        raise ConfigError(
            f"{what} {path!r}: no module named {missing!r} can be imported; "
            "is its folder on PYTHONPATH or its package installed?"
        ) from None
    found = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ConfigError(f"{what} {path!r}: module {module_name!r} has no {part!r}{nearest(part, dir(found))}")
        found = getattr(found, part)
    return found


class Registry:
    """A table of short names of one kind of plugin, imported only when asked for.

    Args:
      kind: what the names stand for, used in messages ("model", "objective", ...).
      table: short name to import path `package.module:Object`.
      contract: import path of what every plugin of this kind must have: a `typing.Protocol`, or a class that it must
        derive from; None asks for nothing.
    """

    def __init__(self, kind: str, table: Mapping[str, str], contract: str | None = None):
        self.kind = kind
        self.table = dict(table)
        self.contract = contract

    def check(self, plugin: type) -> None:
        """Raises ConfigError saying what a class lacks of the contract, and what that is for."""
        if self.contract is None:
            return
        contract = import_object(self.contract, "contract")
        where = f"fmjax/README.md has the contract of a plugin of this kind ({self.kind}), with an example."
        if not getattr(contract, "_is_protocol", False):
            if not issubclass(plugin, contract):
                base = self.contract.replace(":", ".")
                raise ConfigError(f"{plugin.__name__} is no {base}, which it must derive from; {where}")
            return
        for method, wanted in vars(contract).items():
            if inspect.isfunction(wanted) and method not in ("__init__", "__subclasshook__"):
                problem = _problem(plugin, method, wanted, contract)
                if problem:
                    raise ConfigError(f"{problem}; {where}")

    def get(self, name: str):
        """The object registered as `name`, or found at the import path `name`. Raises ConfigError."""
        if not isinstance(name, str):
            raise ConfigError(f"{self.kind} name must be a string, got {name!r}")
        if name in self.table:
            return import_object(self.table[name], self.kind)
        if ":" in name:
            return import_object(name, self.kind)
        raise ConfigError(
            f"unknown {self.kind} {name!r}{nearest(name, self.table)} Known: {', '.join(sorted(self.table))}; "
            "or an import path 'package.module:Object'."
        )


def missing_method(plugin: type, method: str, wanted) -> str | None:
    """That a class has no method of its own like `wanted`, and what it is for; None where it has one."""
    found = next((vars(cls)[method] for cls in plugin.__mro__ if method in vars(cls)), None)
    if callable(found) and found is not wanted:
        return None
    return f"{plugin.__name__} has no method {_told(method, wanted)}"


def _problem(plugin: type, method: str, wanted, contract: type) -> str | None:
    """What is wrong with a class's method beside that of a protocol; None for nothing.

    What the protocol takes by keyword alone must be taken by that name; all else by its place.
    """
    if missing := missing_method(plugin, method, wanted):
        return missing
    found = inspect.getattr_static(plugin, method)
    if not inspect.isfunction(found):
        return None
    places, names = [], {}
    for parameter in inspect.signature(wanted).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            names[parameter.name] = None
        else:
            places.append(None)
    # Arguments that come with other methods, where the class has these.
    brought = getattr(contract, "BRINGS", {}).get(method, {})
    names |= {argument: None for other, argument in brought.items() if hasattr(plugin, other)}
    try:
        inspect.signature(found).bind(*places, **names)
    except TypeError as error:
        return f"{plugin.__name__}.{_call(method, found)} cannot be called as {_told(method, wanted)} ({error})"
    return None


def _told(method: str, wanted) -> str:
    """A method of a contract as it is called, and what it gives."""
    return f"{_call(method, wanted)}: {inspect.getdoc(wanted).splitlines()[0].rstrip('.')}"


def _call(name: str, function) -> str:
    """A method as it is called: names of its arguments, without self and annotations."""
    parameters = list(inspect.signature(function).parameters.values())[1:]
    bare = [parameter.replace(annotation=parameter.empty) for parameter in parameters]
    return f"{name}{inspect.Signature(bare)}"
