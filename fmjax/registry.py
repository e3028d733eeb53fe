"""Names to objects: short registered names, or import paths `package.module:Object`."""

import difflib
import importlib
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
    """

    def __init__(self, kind: str, table: Mapping[str, str]):
        self.kind = kind
        self.table = dict(table)

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
