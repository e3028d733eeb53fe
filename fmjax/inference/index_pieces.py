"""Vectors by fingerprint in files that are written whole, many to a file."""

import io
import json
import pathlib
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from fmjax.errors import DataError
from fmjax.small_files import replacing

MANY = 8
"""Pieces that are not full, from which on they are made into full ones."""


class Pieces:
    """What a folder of pieces holds: a vector for each fingerprint of good contents, a reason for each of bad ones.

    A fingerprint may be in two pieces, where a process was killed while it put small ones together: what they say of it
    is the same.

    Attributes:
      bad: why contents cannot be read, by fingerprint.

    Raises DataError for a piece that is damaged, naming it.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.bad: dict[str, str] = {}
        self._pieces: dict[int, tuple[list[str], np.ndarray, dict[str, str]]] = {}
        self._vectors: dict[str, np.ndarray] = {}
        folder.mkdir(exist_ok=True)
        for leftover in folder.glob(".*.partial-*"):
            leftover.unlink()
        for path in sorted(folder.glob("*.npz")):
            self._take(int(path.stem), *_read(path))

    def __contains__(self, content: str) -> bool:
        return content in self._vectors or content in self.bad

    def vectors(self, contents: Collection[str]) -> np.ndarray:
        """float32 [N, D]."""
        return np.stack([self._vectors[content] for content in contents])

    def add(self, good: Sequence[str], vectors: np.ndarray, bad: Mapping[str, str]) -> None:
        """Writes a further piece: vectors float32 [len(good), D], and reasons of bad contents."""
        number = max(self._pieces, default=-1) + 1
        file = io.BytesIO()
        names = np.frombuffer(json.dumps({"good": list(good), "bad": dict(bad)}).encode(), np.uint8)
        np.savez(file, contents=names, vectors=vectors)
        with replacing(self._path(number)) as partial:
            partial.write_bytes(file.getvalue())
        self._take(number, list(good), vectors, dict(bad))

    def tidy(self, alive: Collection[str], size: int) -> None:
        """Removes pieces none of whose contents are alive, and makes many small ones into ones of `size`."""
        counts = {n: sum(one in alive for one in (*good, *bad)) for n, (good, _, bad) in self._pieces.items()}
        self._remove(number for number, count in counts.items() if not count)
        small = [number for number, count in counts.items() if 0 < count < size]
        if len(small) <= MANY:
            return
        whole = {one: None for number in small for one in (*self._pieces[number][0], *self._pieces[number][2])}
        whole = [one for one in whole if one in alive]
        for start in range(0, len(whole), size):
            part = whole[start : start + size]
            good = [one for one in part if one in self._vectors]
            self.add(good, self.vectors(good) if good else np.zeros((0, 0), np.float32), {
                one: self.bad[one] for one in part if one not in self._vectors
            })  # fmt: skip
        self._remove(small)

    def _take(self, number: int, good: list[str], vectors: np.ndarray, bad: dict[str, str]) -> None:
        self._pieces[number] = good, vectors, bad
        self._vectors |= dict(zip(good, vectors, strict=True))
        self.bad |= bad

    def _remove(self, numbers: Iterable[int]) -> None:
        for number in list(numbers):
            self._path(number).unlink()
            del self._pieces[number]

    def _path(self, number: int) -> pathlib.Path:
        return self.folder / f"{number:08}.npz"


def _read(path: pathlib.Path) -> tuple[list[str], np.ndarray, dict[str, str]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            named, vectors = json.loads(file["contents"].tobytes()), file["vectors"]
        good, bad = named["good"], named["bad"]
        if vectors.ndim != 2 or len(vectors) != len(good):
            raise ValueError(f"it has vectors of shape {vectors.shape} for {len(good)} images")
    except Exception as error:  # whatever zipfile, NumPy and JSON raise at a damaged file
        raise DataError(
            f"the piece {str(path)!r} of an index is damaged ({error}); remove it: it is made again"
        ) from None
    return good, vectors, bad
