"""Small files: JSON read with an error that names it; files and folders that are there whole or not at all."""

import contextlib
import json
import pathlib
import shutil
import types
import uuid
from collections.abc import Iterator
from typing import Any

from fmjax.errors import ConfigError


def read_json(path: pathlib.Path, expected: type | types.UnionType = dict, error: type[Exception] = ConfigError) -> Any:
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
    with replacing(path) as partial:
        partial.write_bytes(text.encode())


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Where to write a file or make a folder that takes the place of `path` when it is complete.

    It lies beside it as `.NAME.partial-...`, of the same suffix, is gone when something fails, and stays where the
    process is killed.
    """
    # Not a name of tempfile's, whose files nobody else may read.
    partial = path.with_name(f".{path.name}.partial-{uuid.uuid4().hex[:12]}{path.suffix}")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
