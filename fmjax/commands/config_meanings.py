"""What each key of a config means, from the source of the dataclass that has it.

A field's meaning stands under `Attributes:` in the docstring of its class, or in a comment: behind the field, or on the
lines right above it. "as in NAME" stands for what NAME, another class or a function, says of it. A class inherits the
meanings of those that it derives from.
"""

import ast
import dataclasses
import functools
import inspect
import re
import sys
import textwrap
import typing
from collections.abc import Mapping
from typing import Any

from fmjax.config_fields import entry_class, field_types, nested_registry
from fmjax.config_values import type_name

_ENTRY = re.compile(r"(?P<names>\w+(?:, \w+)*): (?P<text>.*)")
_REFERENCE = re.compile(r"as in `?(?P<name>\w+)`?(?P<rest>[.;].*)?")


@dataclasses.dataclass(frozen=True)
class Key:
    """A key of a section.

    Attributes:
      name: within its section.
      type: what it may be, in words.
      default: as Python writes it; None where there is none.
      meaning: in a paragraph; "" where the source says nothing.
    """

    name: str
    type: str
    default: str | None
    meaning: str


def keys_of(plugin) -> list[Key]:
    """The keys of the section that a dataclass describes, without `name`."""
    told = meanings(plugin)
    return [
        Key(name, _words(annotation), None if default is dataclasses.MISSING else _literal(default), told.get(name, ""))
        for name, (annotation, default) in field_types(plugin).items()
    ]


@functools.cache
def meanings(plugin) -> dict[str, str]:
    """Field name to its meaning, in one paragraph; a field without one is left out."""
    found = {}
    for cls in reversed(plugin.__mro__):
        if cls.__module__ != "builtins":
            found |= _comments(cls) | _entries(cls)
    return {name: found[name] for name in field_types(plugin) if name in found}


def _words(annotation) -> str:
    """A type in words: sections of plugins and of entries by what they may hold."""
    optional = "None, or " if type(None) in typing.get_args(annotation) else ""
    if (registry := nested_registry(annotation)) is not None:
        return f"{optional}a section with the name {', '.join(registry.table)}"
    if (entry := entry_class(annotation)) is not None:
        return f"{optional}sections with names of your choice and the keys {', '.join(field_types(entry))}"
    if typing.get_origin(annotation) is typing.Literal:
        return " or ".join(map(repr, typing.get_args(annotation)))
    return type_name(annotation).replace(" | ", " or ")


def _literal(default: Any) -> str:
    return "{}" if isinstance(default, Mapping) and not default else repr(default)


def _entries(documented) -> dict[str, str]:
    """The entries under `Attributes:` or `Args:` in the docstring of a class or function."""
    lines = inspect.cleandoc(documented.__dict__.get("__doc__", documented.__doc__) or "").split("\n")
    heads = [number for number, line in enumerate(lines) if line in ("Attributes:", "Args:")]
    if not heads:
        return {}
    block = []
    for line in lines[heads[0] + 1 :]:
        if line and not line.startswith(" "):
            break
        block.append(line)
    entries, names = {}, []
    for line in textwrap.dedent("\n".join(block)).split("\n"):
        if match := _ENTRY.fullmatch(line):
            names = match["names"].split(", ")
            entries |= dict.fromkeys(names, match["text"])
        elif line.strip():
            entries |= {name: f"{entries[name]} {line.strip()}" for name in names}
    return {name: _followed(name, text, documented) for name, text in entries.items()}


def _followed(name: str, text: str, documented) -> str:
    """The entry that "as in NAME" stands for, NAME being known where `documented` is."""
    match = _REFERENCE.fullmatch(text)
    target = match and getattr(sys.modules[documented.__module__], match["name"], None)
    there = _entries(target).get(name) if target else None
    return text if there is None else there.removesuffix(".") + (match["rest"] or ".")


def _comments(cls) -> dict[str, str]:
    """The comments behind and above annotated fields."""
    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):
        return {}
    lines, found = source.split("\n"), {}
    for node in ast.parse(source).body[0].body:
        if not isinstance(node, ast.AnnAssign):
            continue
        behind = re.search(r"  # (?!fmt:)(.*)$", lines[node.end_lineno - 1])
        above, number = [], node.lineno - 2
        while number >= 0 and lines[number].strip().startswith("# "):
            above.insert(0, lines[number].strip()[2:])
            number -= 1
        if behind or above:
            found[node.target.id] = behind[1] if behind else " ".join(above)
    return found
