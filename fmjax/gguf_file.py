"""GGUF files, a tensor at a time: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.

Blocks of numbers are unpacked by the `gguf` package. Its own reader makes arrays of each entry of a list, which for a
vocabulary of 262,144 tokens takes 17 s and 700 MB; here the header is read in one pass, in 0.6 s and 46 MB.
"""

import dataclasses
import math
import pathlib
import struct
from typing import Any

import ml_dtypes
import numpy as np

from fmjax.errors import CheckpointError, ConfigError

MAGIC = b"GGUF"
PLAIN = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
"""Types whose numbers lie as they are."""
QUANTIZED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
"""Types of blocks of integers with scales, which become float32."""
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _LIST = 8, 9
_STEP = 1 << 20  # numbers that are unpacked at once


def is_gguf(path: pathlib.Path) -> bool:
    """Whether a path is a GGUF file: by its first bytes, or, of a damaged one, by its name."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return path.suffix == ".gguf" or stream.read(4) == MAGIC


def package():
    """The `gguf` package. Raises ConfigError where it is not installed."""
    try:
        import gguf
    except ModuleNotFoundError:
        raise ConfigError("GGUF files need the package gguf: pip install 'fmjax[gguf]'") from None
    return gguf


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a file.

    Attributes:
      name: in llama.cpp's words, `blk.0.attn_q.weight`.
      kind: its type in the format's words ("Q4_K").
      shape: as NumPy has it, the axis that lies contiguously last.
      start, size: its bytes.
      heads: where not 0, rows belong to so many heads and lie within each as llama.cpp turns them, pairs beside each
        other; they are given back as published, first halves before second ones.
      offset: what is added to every number.
    """

    file: pathlib.Path
    name: str
    kind: str
    shape: tuple[int, ...]
    start: int
    size: int
    heads: int = 0
    offset: float = 0.0

    @property
    def dtype(self) -> str:
        """What `map` gives, in the words of safetensors: "F32" for blocks."""
        return self.kind if self.kind in PLAIN else "F32"

    def map(self) -> np.ndarray:
        """The numbers: mapped from the file, read-only, where they lie there as they are; else unpacked."""
        if not self.size:
            return np.zeros(self.shape, PLAIN[self.dtype])
        if self.kind in PLAIN:
            found = self._in_order(np.memmap(self.file, PLAIN[self.kind], "r", self.start, self.shape))
        else:
            found = self._unpacked(self.rows())
        return found + np.asarray(self.offset, found.dtype) if self.offset else found

    def rows(self) -> np.ndarray:
        """Of a type of blocks the bytes of each row, uint8 [rows, bytes]."""
        count = math.prod(self.shape[:-1])
        return self._in_order(np.memmap(self.file, np.uint8, "r", self.start, (count, self.size // count)))

    def _in_order(self, rows: np.ndarray) -> np.ndarray:
        """Rows as published."""
        if not self.heads:
            return rows
        return rows.reshape(self.heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)

    def _unpacked(self, rows: np.ndarray) -> np.ndarray:
        """Rows of blocks as float32, some at a time: the library holds what it makes twice."""
        gguf = package()
        kind = gguf.GGMLQuantizationType[self.kind]
        found = np.empty((len(rows), self.shape[-1]), np.float32)
        step = max(1, _STEP // self.shape[-1])
        for row in range(0, len(rows), step):
            found[row : row + step] = gguf.quants.dequantize(np.asarray(rows[row : row + step]), kind)
        return found.reshape(self.shape)


def read_gguf(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(metadata, tensors by name) of a file; no numbers are read.

    Raises CheckpointError, naming the file, where it is no GGUF file, damaged or truncated, one of several, or has a
    tensor of a type that is not known.
    """
    return _Header(path).read()


class _Header:
    """The header of a file, read from its start to its end."""

    def __init__(self, path: pathlib.Path):
        self.path, self.length = path, path.stat().st_size

    def read(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        with self.path.open("rb") as self.stream:
            magic = self.stream.read(4)
            if magic != MAGIC:
                self.refuse(f"is no GGUF file: it begins with {magic!r}, not {MAGIC!r} ({self.length} bytes)")
            version = self.number("I")
            if version not in (2, 3):
                self.refuse(f"is of version {version} of the format, or of another byte order; supported: 2 and 3")
            num_tensors, num_values = self.number("Q"), self.number("Q")
            values = {}
            for _ in range(num_values):
                key = self.text()
                values[key] = self.value(self.number("I"))
            if values.get("split.count", 1) > 1:
                self.refuse(
                    f"is one of {values['split.count']} files of a model; join them with "
                    "`llama-gguf-split --merge FIRST OUTPUT`"
                )
            entries = [self.entry() for _ in range(num_tensors)]
            alignment = values.get("general.alignment", 32)
            if not isinstance(alignment, int) or alignment < 1:
                self.refuse(f"is damaged: general.alignment = {alignment!r}")
            base = -(-self.stream.tell() // alignment) * alignment
        tensors = {name: self.tensor(name, shape, kind, base + start) for name, shape, kind, start in entries}
        if len(tensors) < num_tensors:
            self.refuse("is damaged: it names a tensor twice")
        end = max((tensor.start + tensor.size for tensor in tensors.values()), default=0)
        if end > self.length:
            self.truncated(end)
        return values, tensors

    def refuse(self, why: str):
        raise CheckpointError(f"{str(self.path)!r} {why}")

    def truncated(self, expected: int):
        self.refuse(f"is truncated: {self.length} bytes, expected {expected} at least; get the file again")

    def take(self, size: int) -> bytes:
        if self.stream.tell() + size > self.length:
            self.truncated(self.stream.tell() + size)
        return self.stream.read(size)

    def number(self, code: str):
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def text(self) -> str:
        raw = self.take(self.number("Q"))
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            self.refuse(f"is damaged: a text in its header is no UTF-8 ({error}); get the file again")

    def value(self, kind: int):
        """A value of the metadata. A list of numbers is read at once."""
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _LIST:
            self.refuse(f"is damaged: its header has a value of the unknown type {kind}; get the file again")
        kind, count = self.number("I"), self.number("Q")
        if kind in _SCALARS:
            code = _SCALARS[kind]
            return list(struct.unpack(f"<{count}{code}", self.take(count * struct.calcsize(code))))
        return [self.value(kind) for _ in range(count)]

    def entry(self) -> tuple[str, tuple[int, ...], int, int]:
        """(name, shape, type, start) of a tensor."""
        name, axes = self.text(), self.number("I")
        shape = tuple(self.number("Q") for _ in range(axes))[::-1]
        return name, shape, self.number("I"), self.number("Q")

    def tensor(self, name: str, shape: tuple[int, ...], number: int, start: int) -> Tensor:
        gguf = package()
        known = ", ".join((*PLAIN, *QUANTIZED))
        try:
            kind = gguf.GGMLQuantizationType(number).name
        except ValueError:
            kind = f"number {number}"
        if kind not in PLAIN and kind not in QUANTIZED:
            self.refuse(f"has tensor {name!r} of type {kind}, which is not supported; supported: {known}")
        numbers, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(number)]
        if not shape or shape[-1] % numbers:
            self.refuse(f"is damaged: tensor {name!r} of shape {shape} has no whole blocks of {numbers} ({kind})")
        return Tensor(self.path, name, kind, shape, start, math.prod(shape) // numbers * size)
