"""Where documents come from. A source has a name, a fingerprint of its content, and a stream of its documents.

`open_source` turns a config's words into one: `builtin`, `tfds:NAME[:SPLIT]`, a file, folder or glob, or an import
path `package.module:Object`.
"""

import dataclasses
import hashlib
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Protocol

from fmjax.data import formats
from fmjax.data.prepared import fingerprint
from fmjax.data.splits import HELDOUT_FRACTION, cut_tail, is_heldout
from fmjax.errors import ConfigError, DataError
from fmjax.registry import import_object

IMPORT_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")


class Source(Protocol):
    """Documents that can be streamed any number of times, always in the same order.

    Attributes:
      name: what to call it in messages.
      label: what a run remembers it by; the same wherever the data lie.
      fingerprint: changes whenever the documents do.
      has_heldout: whether it has a held-out split of its own.
      num_documents: how many training documents, where that is known without reading; else None.
      options: the keys of `SourceSpec` that this source reads, beside heldout_fraction.
    """

    name: str
    label: str
    fingerprint: str
    has_heldout: bool
    num_documents: int | None
    options: frozenset[str]

    def read(self) -> Iterator[tuple[str, str, str]]:
        """(split, record name, text) of every document, split "train" or "heldout". Raises DataError naming the
        file and record that cannot be read."""


@dataclasses.dataclass(frozen=True)
class SourceSpec:
    """One source as a config words it; None stands for the default. Fields are documented in `TextData`."""

    source: str
    text_field: str | None = None
    document_separator: str | None = None
    encoding: str | None = None
    tfds_data_dir: str | None = None
    heldout_fraction: float | None = None

    def check(self, place: str = "data") -> None:
        """Raises ConfigError for values that no source could use; `place` is where they stand in the config."""
        if self.heldout_fraction is not None and not 0 <= self.heldout_fraction < 1:
            raise ConfigError(f"{place}.heldout_fraction must be at least 0 and below 1, got {self.heldout_fraction}")
        if self.document_separator == "":
            raise ConfigError(f"{place}.document_separator is empty; leave it at None for one document a file")
        if self.encoding is not None:
            formats.check_encoding(self.encoding, f"{place}.encoding")

    def given(self) -> set[str]:
        """The reading options that are set."""
        options = [field.name for field in dataclasses.fields(SourceSpec) if field.name != "source"]
        return {name for name in options if getattr(self, name) is not None}


@dataclasses.dataclass(frozen=True)
class MixedSource(SourceSpec):
    """One source of a mixture: a value of the config's `data.mixture`.

    Attributes:
      weight: its share of the rows, relative to the other sources' weights.
    """

    weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class SplitSource:
    """A source with its documents told apart into training and held-out ones.

    Attributes:
      source: the documents.
      heldout: "own" keeps the source's own split; "hash" holds out `fraction` by a hash of the record's name; "tail"
        holds out the last `fraction` of each document; "none" leaves held-out documents away; "all" and "only" make
        every document, or the source's own held-out ones, held out.
      fraction: see above.
    """

    source: Source
    heldout: str
    fraction: float = 0.0

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.source.fingerprint, self.heldout, self.fraction)

    def stream(self) -> Iterator[tuple[str, str]]:
        """(split, text) of every document."""
        for split, record, text in self.source.read():
            if self.heldout == "own":
                yield split, text
            elif self.heldout == "hash":
                yield ("heldout" if is_heldout(record, self.fraction) else "train"), text
            elif self.heldout == "tail":
                head, tail = cut_tail(text, self.fraction)
                yield "train", head
                yield "heldout", tail
            elif self.heldout == "none" and split == "train":
                yield split, text
            elif self.heldout == "all" or (self.heldout == "only" and split == "heldout"):
                yield "heldout", text


def split_train(source: Source, spec: SourceSpec, has_eval_source: bool) -> SplitSource:
    """Tells a training source's documents apart as its spec asks. Raises ConfigError for a fraction never read."""
    given = spec.heldout_fraction is not None
    if has_eval_source:
        if given:
            raise ConfigError("data.heldout_fraction is never read, because data.eval_source is given")
        return SplitSource(source, "none")
    if source.has_heldout:
        if given:
            raise ConfigError(f"data.heldout_fraction is never read: {source.name} has a held-out split of its own")
        return SplitSource(source, "own")
    fraction = spec.heldout_fraction if given else HELDOUT_FRACTION
    if source.num_documents is not None and source.num_documents * fraction < 1:
        # One book in one file, say: too few documents to hold whole ones out.
        return SplitSource(source, "tail", fraction) if fraction else SplitSource(source, "none")
    return SplitSource(source, "hash", fraction)


def split_evaluation(source: Source) -> SplitSource:
    """A source for evaluation alone: its own held-out split, or all of it where it has none."""
    return SplitSource(source, "only" if source.has_heldout else "all")


def open_source(spec: SourceSpec, cache_dir: pathlib.Path) -> Source:
    """Opens what a config names.

    Raises:
      DataError: nothing is there, or it cannot be read.
      ConfigError: the import path leads nowhere.
    """
    reading = formats.Reading(spec.text_field, spec.document_separator, spec.encoding)
    words = spec.source
    if words == "builtin":
        return BuiltinSource.open(cache_dir)
    if words.startswith("tfds:"):
        from fmjax.data.tfds_source import TfdsSource

        return TfdsSource.open(words, reading, spec.tfds_data_dir, cache_dir)
    if not pathlib.Path(words).expanduser().exists() and IMPORT_PATH.match(words):
        return ObjectSource.open(words)
    from fmjax.data.files import FileSource

    return FileSource.open(words, reading, cache_dir)


@dataclasses.dataclass(frozen=True)
class BuiltinSource:
    """The running interpreter's standard library, through its TFDS builder."""

    cache_dir: pathlib.Path
    name: str
    fingerprint: str
    has_heldout: bool = True
    num_documents: int | None = None
    options: frozenset[str] = frozenset()

    @classmethod
    def open(cls, cache_dir: pathlib.Path) -> "BuiltinSource":
        # The TFDS import is left to `read`: a run whose corpus is cached needs none of it.
        from fmjax.data.stdlib_files import PYTHON_VERSION, library_fingerprint

        return cls(cache_dir, f"python_stdlib:{PYTHON_VERSION}", library_fingerprint())

    @property
    def label(self) -> str:
        return self.name

    def read(self) -> Iterator[tuple[str, str, str]]:
        from fmjax.data import python_stdlib

        for split in ("train", "heldout"):
            documents = python_stdlib.open_split(self.cache_dir, split)
            for index in range(len(documents)):
                document = documents[index]
                yield split, document["name"].decode(), document["text"].decode()


@dataclasses.dataclass(frozen=True)
class ObjectSource:
    """Documents of an object named by import path `package.module:Object`.

    The object is called without arguments (a class, a function) and gives either a sequence of str, the training
    documents, or something with
      documents(split) -> Sequence[str]   for "train", and for "heldout" (None or empty: held out by hash instead);
      fingerprint: str                    which changes whenever the documents do. Without one, as for a plain
                                          sequence, all documents are hashed at every start.
    """

    name: str
    fingerprint: str
    splits: dict[str, Sequence[str]]
    options: frozenset[str] = frozenset()

    @classmethod
    def open(cls, path: str) -> "ObjectSource":
        made = import_object(path, "data source")
        if callable(made):
            made = made()
        if hasattr(made, "documents"):
            splits = {split: made.documents(split) for split in ("train", "heldout")}
        else:
            splits = {"train": made, "heldout": None}
        splits = {split: [] if documents is None else documents for split, documents in splits.items()}
        for split, documents in splits.items():
            if isinstance(documents, str) or not (hasattr(documents, "__len__") and hasattr(documents, "__getitem__")):
                raise DataError(
                    f"data source {path!r}: expected a sequence of str as {split} documents, found "
                    f"{type(documents).__name__}"
                )
        source = cls(path, "", splits)
        content = getattr(made, "fingerprint", None)
        if not isinstance(content, str):
            whole = hashlib.blake2b(digest_size=16)
            for split, _, text in source.read():
                encoded = text.encode()
                whole.update(f"{split} {len(encoded)} ".encode() + encoded)
            content = whole.hexdigest()
        return cls(path, fingerprint("object", path, content), splits)

    @property
    def label(self) -> str:
        return self.name

    @property
    def has_heldout(self) -> bool:
        return len(self.splits["heldout"]) > 0

    @property
    def num_documents(self) -> int:
        return len(self.splits["train"])

    def read(self) -> Iterator[tuple[str, str, str]]:
        for split, documents in self.splits.items():
            for index in range(len(documents)):
                text = documents[index]
                where = f"data source {self.name!r}: {split} document {index}"
                if not isinstance(text, str):
                    raise DataError(f"{where} must be a str, found {type(text).__name__}")
                yield split, str(index), formats.check_characters(text, where)


def identity_of(source: SplitSource) -> str:
    """What a run remembers a source by: its label and the hash of its content."""
    return f"{source.source.label}@{source.fingerprint}"
