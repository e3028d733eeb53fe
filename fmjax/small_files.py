"""Small files: JSON read with an error that names it, text written whole or not at all."""

import json
import os
import pathlib
import types
from typing import Any

from fmjax.errors import ConfigError


def read_json(
    path: pathlib.Path, expected: type | types.UnionType = dict, error: type[Exception] = ConfigError
) -> Any:
    """The contents of a JSON file. Raises `error` where they are not JSON, or not of the type expected."""
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as reason:
        raise error(f"{path} is not readable JSON: {reason}; mend it, or fetch it again") from None
    if not isinstance(contents, expected):
        raise error(f"{path} holds a {type(contents).__name__}, expected a {getattr(expected, '__name__', expected)}")
    return contents


def write_whole(path: pathlib.Path, text: str) -> None:
    """Writes a file such that it is there with all of the text or stays as it was, whatever happens."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
