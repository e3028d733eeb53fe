"""Reading test sets: JSON lines, CSV, plain text, gzip, zip, TFDS; a bad line is an error that names its place."""

import csv
import gzip
import io
import json
import logging
import pathlib
import zipfile
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from fmjax.errors import DataError, InputError

log = logging.getLogger("fmjax")


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


def read_records(
    context,
    folder: str,
    names: Sequence[str],
    expected: str,
    from_file: Callable,
    words: str,
    from_tfds: Callable,
    read: Callable[[pathlib.Path, Callable, str], list] = read_jsonl,
) -> list:
    """Documents of the first of `folder/name` that exists, else of a TFDS split.

    Args:
      context: the task's `TaskContext`.
      words: the split, "NAME[/CONFIG]:SPLIT".
      expected: what a record must hold, for messages.
      from_file, from_tfds: a document from a record of each, as `convert` of `read_jsonl`.
      read: reads the file, where it is not JSON lines: called as `read_jsonl`.

    Raises: DataError where there is neither, or naming the record that is not as expected.
    """
    if path := context.find(folder, *names):
        return read(path, from_file, expected)
    return convert_records(context.tfds(words, f"{folder}/{names[0]}"), from_tfds, expected, f"TFDS {words}")


def convert_records(records: Iterable[dict], convert: Callable[[dict], Any], expected: str, where) -> list:
    """A document for each record, as `read_jsonl` makes them. Raises DataError naming `where` and the record."""
    documents = []
    for number, record in enumerate(records, start=1):
        try:
            documents.append(convert(record))
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            raise DataError(f"{where}, record {number}: expected {expected}, got {str(record)[:80]}") from None
    return documents


def read_zip(path: pathlib.Path, names: Sequence[str]) -> dict[str, str]:
    """The texts of a zip file's members. Raises DataError where it is no zip file, lacks one or one is not UTF-8."""
    try:
        with zipfile.ZipFile(path) as file:
            missing = [name for name in names if name not in file.namelist()]
            if missing:
                raise DataError(
                    f"{str(path)!r} has no {missing[0]!r} ({len(missing)} of {len(names)} files are missing)"
                )
            return {name: decode(file.read(name), f"{path}/{name}") for name in names}
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{str(path)!r} cannot be read: {error}") from None


def read_csv(text: str, where, columns: Sequence[str], *, header: bool = True) -> list[dict]:
    """Rows of a table as dicts of `columns`.

    Args:
      text, where: the file's content, and its name for messages.
      columns: names that the header must have, or, without a header, what the columns are.

    Raises: DataError for a missing column, or a row of another length, naming its line.
    """
    reader = csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""))
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


def read_tfds(words: str, instead: str, data_dir: pathlib.Path | None) -> list[dict[str, Any]]:
    """All records of "NAME[/CONFIG]:SPLIT", texts as strings and arrays as lists.

    Prepared datasets are looked for in `data_dir/tfds`, if there is one, else in fmjax's cache folder, where a missing
    one is downloaded to.

    Raises: DataError naming `instead`, the file that would do as well.
    """
    from fmjax.cache_folder import cache_dir
    from fmjax.data.tfds_source import open_builder, parse

    folder = cache_dir() if data_dir is None or not (data_dir / "tfds").is_dir() else data_dir
    name, split = parse(f"tfds:{words}")
    if not (folder / "tfds" / name.split("/")[0]).is_dir():
        log.warning("%s is not in the folder of --data_dir or FMJAX_DATA: asking TFDS to download %s", instead, words)
    try:
        builder = open_builder(f"tfds:{words}", name, str(folder / "tfds"))
        source = builder.as_data_source(split)
        return [_plain(source[index]) for index in range(len(source))]
    except (InputError, ValueError, NotImplementedError, KeyError) as error:
        raise DataError(
            f"needs {instead} in the folder given by --data_dir or FMJAX_DATA, or the TFDS dataset {words!r}: {error}"
        ) from None


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return _plain(value.tolist()) if hasattr(value, "tolist") else value
