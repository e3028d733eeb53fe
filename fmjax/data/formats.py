"""Reading one local file of documents: plain text, .jsonl, .json and .parquet, all but the last also as .gz or .zst.

Text is kept as it stands in the file: line ends are not translated and a byte-order mark is not dropped. Files are
streamed; only plain text without `document_separator` (one document) and a `.json` array are held whole.
Every error is a DataError that names the file and the record.
"""

import codecs
import dataclasses
import json
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

from fmjax.data.blocks import read_blocks
from fmjax.errors import ConfigError, DataError
from fmjax.registry import nearest

COMPRESSIONS = (".gz", ".zst")
COMPANIONS = (".md", ".rst", ".py")  # in a folder with other kinds of files they describe those, and are no documents
KINDS = {
    **dict.fromkeys((".txt", ".text", *COMPANIONS), "text"),
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "json"),
    ".parquet": "parquet",
}
OPTIONS = {  # which options a kind of file reads
    "text": frozenset({"document_separator", "encoding"}),
    "json": frozenset({"text_field", "encoding"}),
    "parquet": frozenset({"text_field"}),
}
SUPPORTED = ".txt, .text, .md, .rst, .py, .jsonl, .ndjson, .json (each also .gz or .zst) and .parquet"
NAME_IT = "Name the one with the text: data.text_field in a config, text:PATH:FIELD of a task"


@dataclasses.dataclass(frozen=True)
class Reading:
    """How documents are taken from a file; None stands for the default.

    Attributes:
      text_field: the field, column or feature that holds the text; "text" by default.
      document_separator: what stands between the documents of plain text; by default the file is one document.
      encoding: of text and .json files; UTF-8 by default.
    """

    text_field: str | None = None
    document_separator: str | None = None
    encoding: str | None = None

    @property
    def field(self) -> str:
        return self.text_field or "text"


def file_kind(path: pathlib.PurePath) -> str | None:
    """One of "text", "json" and "parquet" by the file's name; None for one that is not supported."""
    kind = KINDS.get(_content_suffix(path))
    compressed = path.suffix.lower() in COMPRESSIONS
    return None if compressed and kind == "parquet" else kind


def is_companion(path: pathlib.PurePath) -> bool:
    """Whether a file is of the kinds that may describe other files of documents (`README.md`, `prepare.py`)."""
    return _content_suffix(path) in COMPANIONS


def _content_suffix(path: pathlib.PurePath) -> str:
    """The last suffix, in lower case, compression left out; "" for none."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def read_file(path: pathlib.Path, reading: Reading) -> Iterator[tuple[int, str]]:
    """(record number, text) of a file's documents: numbers are lines of .jsonl, rows of .parquet, else a count."""
    kind = file_kind(path)
    try:
        if kind == "text":
            yield from enumerate(_separated(_decoded(path, reading), reading.document_separator), 1)
            return
    except OSError as error:
        raise _unreadable(path, error) from None
    for number, where, record in _records(path, reading, reading.field):
        yield number, check_characters(text_of(record, reading.field, where), where)


def read_records(path: pathlib.Path, reading: Reading) -> Iterator[tuple[int, str, Any]]:
    """(record number, where it is for messages, the whole record) of a file of .jsonl, .json or .parquet."""
    return _records(path, reading, None)


def _records(path: pathlib.Path, reading: Reading, field: str | None) -> Iterator[tuple[int, str, Any]]:
    """`read_records`, of columns no more than the `field` that is wanted."""
    kind = file_kind(path)
    try:
        if kind == "json":
            yield from _json_records(path, reading)
        elif kind == "parquet":
            yield from _parquet_records(path, field)
        elif kind == "text":
            raise DataError(f"{path}: has no records; they are in .jsonl, .ndjson, .json and .parquet files")
        else:
            raise DataError(f"{path}: unsupported kind of file; supported are {SUPPORTED}")
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: pathlib.Path, error: OSError) -> DataError:
    return DataError(f"{path} cannot be read: {error}")


def read_lines(path: pathlib.Path, reading: Reading) -> Iterator[tuple[int, str]]:
    """(line number, line) of a text file of any name, also .gz or .zst; only "\n" and "\r\n" end a line, and a last
    line needs neither."""
    try:
        lines = enumerate(_separated(_decoded(path, reading), "\n"), 1)
        number, line = next(lines)
        for next_number, next_line in lines:
            yield number, line.removesuffix("\r")
            number, line = next_number, next_line
        if line:
            yield number, line.removesuffix("\r")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from None


def text_of(record: object, field: str, where: str) -> str:
    """The text of a record, or a DataError that says what is there instead."""
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected an object with a {field!r} field, found {type(record).__name__}")
    if field not in record:
        raise DataError(f"{where}: {missing_field(field, record)}")
    text = record[field]
    if not isinstance(text, str):
        raise DataError(f"{where}: field {field!r} must be a string, found {type(text).__name__}")
    return text


def check_characters(text: str, where: str) -> str:
    """The text itself, or a DataError when it has half a surrogate pair, which JSON escapes can spell and no UTF-8
    can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: the text has half a surrogate pair at character {error.start}") from None
    return text


def missing_field(field: str, known: Iterable[str]) -> str:
    """What to say when a record or table has no such field."""
    known = [str(name) for name in known]
    hint = nearest(field, known) or "."
    return f"no field {field!r}{hint} Found: {', '.join(known) or 'nothing'}. {NAME_IT}"


def check_encoding(encoding: str, key: str = "data.encoding") -> None:
    """Raises ConfigError, naming the config's `key`, unless Python knows the encoding."""
    try:
        codecs.getincrementaldecoder(encoding)
        codecs.lookup(encoding)
    except LookupError:
        raise ConfigError(
            f"{key} {encoding!r} is not known to Python; examples: 'utf-8', 'latin-1', 'utf-16', 'shift_jis'"
        ) from None


def _decoded(path: pathlib.Path, reading: Reading) -> Iterator[str]:
    """The file's text in blocks."""
    encoding = reading.encoding or "utf-8"
    decoder = codecs.getincrementaldecoder(encoding)()
    done = lines = 0  # bytes and newlines decoded so far

    def decode(block: bytes, final: bool) -> str:
        pending = len(decoder.getstate()[0])
        try:
            return decoder.decode(block, final)
        except UnicodeDecodeError as error:
            line = 1 + lines + error.object[: error.start].count(b"\n")
            raise DataError(
                f"{path} line {line}: byte {error.object[error.start]:#04x} at offset {done - pending + error.start} "
                f"is not valid {encoding} ({error.reason}); if the file has another encoding, name it with "
                "data.encoding, such as 'latin-1'"
            ) from None

    for block in read_blocks(path):
        text = decode(block, False)
        done += len(block)
        lines += text.count("\n")
        yield text
    yield decode(b"", True)


def _separated(blocks: Iterable[str], separator: str | None) -> Iterator[str]:
    """What stands between separators. Joins blocks only once they outweigh what is waiting: linear in the text."""
    if separator is None:
        yield "".join(blocks)
        return
    rest, waiting, size = "", [], 0
    for block in blocks:
        waiting.append(block)
        size += len(block)
        if size > len(rest):
            *whole, rest = "".join([rest, *waiting]).split(separator)
            waiting, size = [], 0
            yield from whole
    yield from "".join([rest, *waiting]).split(separator)


def _json_records(path: pathlib.Path, reading: Reading) -> Iterator[tuple[int, str, Any]]:
    """(record number, where it is, record) of each."""
    is_array = None
    lines = _separated(_decoded(path, reading), "\n")
    for number, line in enumerate(lines, 1):
        if number == 1:
            line = line.removeprefix("\ufeff")
        if not line.strip():
            continue
        if is_array is None:
            is_array = ".json" in path.suffixes and line.lstrip().startswith("[")
            if is_array:
                yield from _json_array(path, "\n".join([line, *lines]))
                return
        where = f"{path} line {number}"
        try:
            yield number, where, json.loads(line)
        except ValueError as error:
            raise DataError(f"{where}: not a JSON object on one line: {error}") from None


def _json_array(path: pathlib.Path, content: str) -> Iterator[tuple[int, str, Any]]:
    try:
        records = json.loads(content)
    except ValueError as error:
        raise DataError(f"{path}: not a JSON array: {error}") from None
    for number, record in enumerate(records, 1):
        yield number, f"{path} record {number}", record


def _parquet_records(path: pathlib.Path, field: str | None) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """(row number, where it is, its fields, or the one of that name)."""
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        file = pyarrow.parquet.ParquetFile(path)
        with file:
            if field is not None and field not in file.schema_arrow.names:
                raise DataError(f"{path}: {missing_field(field, file.schema_arrow.names)}")
            for batch in file.iter_batches(batch_size=256, columns=None if field is None else [field]):
                for index in range(batch.num_rows):
                    number += 1
                    where = f"{path} row {number}"
                    try:
                        yield number, where, {n: c[index].as_py() for n, c in zip(batch.schema.names, batch.columns)}
                    except UnicodeDecodeError as error:
                        raise DataError(f"{where}: the text is not valid UTF-8: {error}") from None
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: truncated or damaged parquet file, after {number} rows: {error}") from None
