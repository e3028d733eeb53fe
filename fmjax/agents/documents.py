"""Search over a local folder of texts: passages by the cosine of their vectors with that of the query."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fmjax.agents.tools import ToolError
from fmjax.errors import DataError, InputError
from fmjax.inference.nearest import nearest

SUFFIXES = (".txt", ".md", ".rst")
PASSAGE, SHOWN = 600, 3
"""Characters of a passage at most, and passages that a search gives."""


class Search:
    """Finds passages of a folder's texts.

    Args:
      passages: (name of the file, text of the passage).
      embed: list of texts to vectors float [N, D], such as `Model.embed`.
    """

    name = "search"
    description = "Finds passages in the documents that are about the query."
    parameters = {"query": {"type": "string"}}

    def __init__(self, passages: Sequence[tuple[str, str]], embed: Callable[[list[str]], np.ndarray]):
        self._passages, self._embed = list(passages), embed
        self._vectors = _lengths_one(embed([text for _, text in self._passages]))

    def call(self, arguments: Mapping[str, Any]) -> str:
        """The nearest passages, each under the name of its file. Raises ToolError for an empty query."""
        query = arguments["query"].strip()
        if not query:
            raise ToolError("an empty query; say what to look for")
        places, _ = nearest(self._vectors, self._embed([query]), min(SHOWN, len(self._passages)))
        found = (self._passages[place] for place in places[0])
        return "\n\n".join(f"[{name}]\n{text}" for name, text in found)


def _lengths_one(vectors: np.ndarray) -> np.ndarray:
    vectors = np.asarray(vectors, np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def passages(folder: str | pathlib.Path) -> list[tuple[str, str]]:
    """The passages of a folder's texts (SUFFIXES), in order of their names: paragraphs joined up to PASSAGE characters.

    Raises InputError for what is no folder or has no such text, DataError for one that cannot be read
    or is no UTF-8.
    """
    root = pathlib.Path(folder).expanduser()
    if not root.is_dir():
        raise InputError(f"--documents={folder} is not a folder; give one with texts ({', '.join(SUFFIXES)})")
    found = []
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() in SUFFIXES and path.is_file():
            try:
                text = path.read_text(encoding="utf-8")
            except OSError as error:
                raise DataError(f"{path} cannot be read: {error.strerror}; take it out of the folder") from None
            except UnicodeDecodeError as error:
                raise DataError(f"{path} is not UTF-8: {error}; convert it, or take it out of the folder") from None
            found += [(path.relative_to(root).as_posix(), part) for part in split(text)]
    if not found:
        raise InputError(f"{folder} has no texts ({', '.join(SUFFIXES)})")
    return found


def split(text: str, longest: int = PASSAGE) -> list[str]:
    """A text in parts of at most `longest` characters, between paragraphs where it can be."""
    parts: list[str] = []
    for paragraph in filter(None, (one.strip() for one in text.split("\n\n"))):
        if parts and len(parts[-1]) + 2 + len(paragraph) <= longest:
            parts[-1] += f"\n\n{paragraph}"
        else:
            parts += [paragraph[start : start + longest] for start in range(0, len(paragraph), longest)]
    return parts
