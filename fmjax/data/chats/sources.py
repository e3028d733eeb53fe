"""Where chats come from: files of records, an object of one's own, or those that are built in."""

import dataclasses
import json
import logging
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fmjax.data import formats
from fmjax.data.chats.records import BadChat
from fmjax.data.files import FileSource
from fmjax.data.prepared import fingerprint
from fmjax.data.sources import IMPORT_PATH, SourceSpec
from fmjax.errors import DataError
from fmjax.registry import import_object

log = logging.getLogger("fmjax")

Reader = Callable[[Any, str], Any]
"""A record, and where it is, to what is trained on: it has `messages`, all that is said; or to a list of such. Raises
BadChat for one that may be left out, DataError for what is of no known shape."""


@dataclasses.dataclass
class LeftOut:
    """How many of a source's chats are left out as bad, and what was wrong with the first of them."""

    total: int = 0
    bad: int = 0
    first: str = ""

    def log(self, name: str) -> None:
        """Warns of those of the source `name`, if there are any."""
        if self.bad:
            told = "%s: %d of %d chats are left out, the first for this: %s"
            log.warning(told, name, self.bad, self.total, self.first)


@dataclasses.dataclass(frozen=True)
class ChatSource:
    """Records of chats: a `fmjax.data.sources.Source` whose documents are what `reader` makes of them.

    Attributes:
      records: files or an object, whose `read` gives (split, record name, where it is, record).
      reader: makes `Chat`s of records, say.
      skip_bad: whether records that are no chats to learn from are left out and counted, or an error.
      left_out: those that the latest `read` left out; whole when it has ended.
    """

    records: "ChatFiles | ChatObject"
    reader: Reader
    skip_bad: bool = False
    num_documents: int | None = None  # chats are held out whole, however few there are
    left_out: LeftOut = dataclasses.field(default_factory=LeftOut, init=False, compare=False)

    @property
    def name(self) -> str:
        return self.records.name

    @property
    def label(self) -> str:
        return self.records.label

    @property
    def fingerprint(self) -> str:
        return fingerprint("chats", self.reader.__name__, self.records.fingerprint, self.skip_bad)

    @property
    def has_heldout(self) -> bool:
        return self.records.has_heldout

    @property
    def options(self) -> frozenset[str]:
        return self.records.options

    def read(self) -> Iterator[tuple[str, str, Any]]:
        """(split, record name, chat). Raises DataError naming file and row of a record that is none."""
        counted = self.left_out
        counted.total, counted.bad, counted.first = 0, 0, ""
        for split, record_name, where, record in self.records.read():
            counted.total += 1
            try:
                yield split, record_name, self.reader(record, where)
            except BadChat as error:
                if not self.skip_bad:
                    raise BadChat(f"{error}; mend it, or leave such chats out with data.bad_chats=skip") from None
                counted.bad, counted.first = counted.bad + 1, counted.first or str(error)


@dataclasses.dataclass(frozen=True)
class ChatFiles:
    """Records of local files: .jsonl, .json and .parquet."""

    files: FileSource

    @classmethod
    def open(cls, path: str, encoding: str | None, cache_dir: pathlib.Path) -> "ChatFiles":
        """Raises DataError where there are none, or files of another kind."""
        files = FileSource.open(path, formats.Reading(encoding=encoding), cache_dir)
        for _, _, file in files.files:
            if formats.file_kind(file) == "text":
                raise DataError(f"{file}: chats are records, in .jsonl, .ndjson, .json or .parquet files")
        return cls(files)

    @property
    def name(self) -> str:
        return self.files.name

    @property
    def label(self) -> str:
        return self.files.label

    @property
    def fingerprint(self) -> str:
        return self.files.fingerprint

    @property
    def has_heldout(self) -> bool:
        return self.files.has_heldout

    @property
    def options(self) -> frozenset[str]:
        return self.files.options - {"text_field"}

    def read(self) -> Iterator[tuple[str, str, str, dict]]:
        for split, name, path in self.files.files:
            for number, where, record in formats.read_records(path, self.files.reading):
                yield split, f"{name}:{number}", where, record


@dataclasses.dataclass(frozen=True)
class ChatObject:
    """Records of an object `package.module:Object`: a sequence of them, or a function or class that gives one."""

    name: str
    rows: Sequence[dict]
    fingerprint: str
    has_heldout: bool = False
    options: frozenset[str] = frozenset()

    @classmethod
    def open(cls, path: str) -> "ChatObject":
        """Raises DataError for what is no sequence of records; ConfigError where the path leads nowhere."""
        made = import_object(path, "data source")
        rows = made() if callable(made) else made
        if not isinstance(rows, Sequence) or isinstance(rows, str):
            raise DataError(f"data source {path!r}: expected a sequence of records, found {type(rows).__name__}")
        try:
            content = fingerprint(path, list(rows))
        except TypeError as error:
            raise DataError(f"data source {path!r}: its records must be such as JSON has: {error}") from None
        return cls(path, rows, content)

    @property
    def label(self) -> str:
        return self.name

    def read(self) -> Iterator[tuple[str, str, str, dict]]:
        for index, record in enumerate(self.rows):
            yield "train", str(index), f"data source {self.name!r}: record {index}", record


def open_chats(
    spec: SourceSpec, cache_dir: pathlib.Path, reader: Reader, builtin: str, skip_bad: bool
) -> ChatSource:
    """Opens what a config names: "builtin" (the object of that import path), a file, a folder, a glob, or an import
    path.

    Raises DataError where nothing is there, or what is has no records.
    """
    words = builtin if spec.source == "builtin" else spec.source
    if words.startswith("tfds:"):
        raise DataError(f"data source {words!r}: chats are read from files and objects; write them as .jsonl")
    if not pathlib.Path(words).expanduser().exists() and IMPORT_PATH.match(words):
        return ChatSource(ChatObject.open(words), reader, skip_bad)
    return ChatSource(ChatFiles.open(words, spec.encoding, cache_dir), reader, skip_bad)


def texts(found) -> Iterator[str]:
    """What is said in what a reader made of a record, to train a tokenizer on."""
    for chat in found if isinstance(found, list) else [found]:
        for message in chat.messages:
            content = message.get("content", "")
            yield content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
