"""Values of a config: against the types of their keys, from files and the command line; compared; as plain JSON."""

import ast
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from fmjax.errors import ConfigError


class FlagText(str):
    """A value typed on the command line: text until the key it belongs to says of what type it is."""


def coerce(value, annotation, path: str):
    """`value` checked against `annotation` (int for float accepted, lists for tuples). Raises ConfigError."""
    try:
        return _convert(value, annotation)
    except (ValueError, TypeError, SyntaxError):
        shown = str(value) if isinstance(value, FlagText) else value
        raise ConfigError(
            f"{path} = {shown!r} ({type(value).__name__ if not isinstance(value, FlagText) else 'text'}) "
            f"should be {type_name(annotation)}"
        ) from None


def type_name(annotation) -> str:
    """How a message calls a type."""
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return annotation.__name__
    return str(annotation).replace("typing.", "")


def _convert(value, annotation):
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _convert(value, arguments[0])
    if origin in (typing.Union, types.UnionType):
        return _convert_union(value, arguments)
    if annotation is str:
        if isinstance(value, str):
            return str(value)
        raise TypeError
    if isinstance(value, FlagText):
        value = {"true": True, "false": False, "none": None, "null": None}.get(value.lower(), value)
        if isinstance(value, FlagText):
            value = _literal(value, annotation)
    if origin is typing.Literal:
        if value in arguments:
            return value
        raise ValueError
    if annotation is None or annotation is type(None):
        if value is None:
            return None
        raise TypeError
    if annotation is bool or annotation is int:
        if type(value) is annotation:
            return value
        raise TypeError
    if annotation is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        raise TypeError
    container = origin or annotation
    if container in (tuple, list, Sequence):
        if not isinstance(value, list | tuple):
            raise TypeError
        inner = arguments[0] if arguments else Any
        return tuple(_convert(v, inner) for v in value)
    if container in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise TypeError
        return {str(k): _convert(v, arguments[1] if len(arguments) == 2 else Any) for k, v in value.items()}
    return str(value) if isinstance(value, FlagText) else value


def _convert_union(value, options):
    for option in options:
        try:
            if isinstance(value, FlagText) and option is str and any(o is type(None) for o in options):
                if value.lower() in ("none", "null"):
                    return None
            return _convert(value, option)
        except (ValueError, TypeError, SyntaxError):
            continue
    raise TypeError


def _literal(text: str, annotation):
    """A typed value from command-line text; a bare word stays text, `a,b` is a tuple where one is expected."""
    container = typing.get_origin(annotation) or annotation
    try:
        value = ast.literal_eval(str(text))
    except (ValueError, SyntaxError):
        value = str(text)
    if container in (tuple, list, Sequence) and not isinstance(value, list | tuple):
        return tuple(FlagText(part) for part in str(text).split(",")) if str(text) else ()
    return value


def differing_keys(old: Mapping, new: Mapping, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Dotted keys whose values differ, as (key, old, new); a key absent on one side has the value None there."""
    rows = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            rows += differing_keys(a, b, f"{prefix}{key}.")
        elif json_copy(a) != json_copy(b):
            rows.append((prefix + key, a, b))
    return rows


def json_copy(value):
    """A deep copy of nested dicts, tuples becoming lists."""
    if isinstance(value, Mapping):
        return {k: json_copy(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [json_copy(v) for v in value]
    return value
