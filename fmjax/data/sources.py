"""Where documents come from: a source is a name, a fingerprint of its content, and a stream of documents."""

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Protocol


class Source(Protocol):
    """Documents that can be streamed any number of times.

    Attributes:
      name: what to call it in messages.
      fingerprint: changes whenever the documents or their split change.
    """

    name: str
    fingerprint: str

    def stream(self) -> Iterator[tuple[str, str]]:
        """(split, text) of every document, split "train" or "heldout", always in the same order. DataError names
        the file and record that cannot be read."""


@dataclasses.dataclass(frozen=True)
class BuiltinSource:
    """The running interpreter's standard library, through its TFDS builder."""

    cache_dir: pathlib.Path
    fingerprint: str
    name: str

    @classmethod
    def open(cls, cache_dir: pathlib.Path) -> "BuiltinSource":
        # The TFDS import is left to `stream`: a run whose corpus is cached needs none of it.
        from fmjax.data.stdlib_files import PYTHON_VERSION, library_fingerprint

        return cls(cache_dir, library_fingerprint(), f"python_stdlib:{PYTHON_VERSION}")

    def stream(self) -> Iterator[tuple[str, str]]:
        from fmjax.data import python_stdlib

        for split in ("train", "heldout"):
            documents = python_stdlib.open_split(self.cache_dir, split)
            for index in range(len(documents)):
                yield split, documents[index]["text"].decode()
