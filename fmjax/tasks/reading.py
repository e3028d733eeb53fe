"""Reading the files of test sets: JSON lines, CSV, plain text, gzip; a bad line is an error that names its place."""

import csv
import gzip
import io
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from fmjax.errors import DataError


def read_text(path: pathlib.Path) -> str:
    """The text of a UTF-8 file exactly as it stands there, line ends too; unpacked where its name ends in .gz.

    Raises DataError where it cannot be read, is not UTF-8 or is empty.
    """
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    except (OSError, EOFError, gzip.zlib.error) as error:
        reason = getattr(error, "strerror", None) or f"it is no whole gzip file ({error})"
        raise DataError(f"{str(path)!r} cannot be read: {reason}") from None
    return decode(data, path)


def decode(data: bytes, where) -> str:
    """UTF-8 as text. Raises DataError naming `where` it is from when it is not UTF-8 or empty."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        wrong = error.object[error.start]
        raise DataError(
            f"{str(where)!r} is not UTF-8: byte {wrong:#04x} at offset {error.start}; convert it first"
        ) from None
    if not text:
        raise DataError(f"{str(where)!r} is empty")
    return text


def read_jsonl(path: pathlib.Path, convert: Callable[[dict], Any], expected: str) -> list:
    """A document for each line that is not blank: `convert` of its JSON object.

    Args:
      convert: raises KeyError, TypeError, ValueError or IndexError for an object that is not as expected.
      expected: what a line must hold, for the message.

    Raises: DataError naming file and line.
    """
    documents = []
    # Not splitlines, which also cuts at characters that may stand within a JSON string.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            documents.append(convert(json.loads(line)))
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            raise DataError(f"{path}, line {number}: expected an object with {expected}, got {line[:80]!r}") from None
    return documents


def read_json(path: pathlib.Path) -> Any:
    """The JSON value of a file. Raises DataError."""
    try:
        return json.loads(read_text(path))
    except ValueError as error:
        raise DataError(f"{str(path)!r} is not JSON: {error}") from None


def read_csv(text: str, where, columns: Sequence[str], *, header: bool = True, delimiter: str = ",") -> list[dict]:
    """Rows of a table as dicts of `columns`.

    Args:
      text, where: the file's content, and its name for messages.
      columns: names that the header must have, or, without a header, what the columns are.

    Raises: DataError for a missing column, or a row of another length, naming its line.
    """
    reader = csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""), delimiter=delimiter)
    names = next(reader, []) if header else list(columns)
    missing = [name for name in columns if name not in names]
    if missing:
        raise DataError(f"{where}: expected the columns {', '.join(columns)}, found {', '.join(names)}")
    rows = []
    for row in reader:
        if not row:
            continue
        if len(row) != len(names):
            raise DataError(f"{where}, line {reader.line_num}: expected {len(names)} columns, got {len(row)}")
        found = dict(zip(names, row))
        rows.append({name: found[name] for name in columns})
    return rows
