"""The keys that a plugin's section may have: its dataclass's fields, their types, and whether any code reads them."""

import ast
import dataclasses
import functools
import inspect
import pathlib
import sys
import typing
from collections.abc import Mapping
from typing import Any

from fmjax.registry import Registry


@functools.cache
def field_types(plugin) -> dict[str, tuple[Any, Any]]:
    """Field name to (annotation, default) of a dataclass, without the two fields Linen adds to every module."""
    try:
        hints = typing.get_type_hints(plugin, include_extras=True)
    except NameError:
        hints = {}
    found = {}
    for field in dataclasses.fields(plugin):
        if not field.init or field.name in ("parent", "name"):
            continue
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        found[field.name] = (hints.get(field.name, field.type), default)
    return found


def nested_registry(annotation) -> Registry | None:
    """The registry of `Annotated[dict, REGISTRY]`, also where None is allowed beside it."""
    for part in (annotation, *typing.get_args(annotation)):
        if isinstance(part, Registry):
            return part
        for meta in getattr(part, "__metadata__", ()):
            if isinstance(meta, Registry):
                return meta
    return None


def entry_class(annotation) -> type | None:
    """The dataclass of `dict[str, SomeDataclass]`, also where None is allowed beside it."""
    for part in (annotation, *typing.get_args(annotation)):
        arguments = typing.get_args(part)
        if typing.get_origin(part) in (dict, Mapping) and dataclasses.is_dataclass(arguments[1]):
            return arguments[1]
    return None


@functools.cache
def unread_fields(plugin) -> frozenset[str]:
    """Fields that no code of the plugin's own package mentions: a value set for them would do nothing."""
    names = set(field_types(plugin))
    for cls in plugin.__mro__:
        module = sys.modules.get(cls.__module__)
        if cls is object or module is None or not names:
            continue
        try:
            names -= _names_read(inspect.getsourcefile(module))
        except (OSError, TypeError):
            return frozenset()
    # A module may hand itself whole to another of its package, which then reads the field.
    package = plugin.__module__.partition(".")[0]
    for module_name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if names and file and file.endswith(".py") and module_name.partition(".")[0] == package:
            names -= _names_read(file)
    return frozenset(names)


@functools.cache
def _names_read(file: str) -> frozenset[str]:
    """Names of attributes, and texts, by which `getattr` may read one."""
    nodes = list(ast.walk(ast.parse(pathlib.Path(file).read_text())))
    texts = (n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str))
    return frozenset(n.attr for n in nodes if isinstance(n, ast.Attribute)).union(texts)
