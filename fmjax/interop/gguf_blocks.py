"""GGUF's blocks as weights of few bits (`fmjax.layers.quantized.QTensor`) of exactly the values of the blocks.

https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h has the types' structures. Where their bits lie is left
to the `gguf` package: blocks whose scales are one are unpacked to their whole numbers.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from fmjax.gguf_file import Tensor, package
from fmjax.layers.codes import FORMATS, pack
from fmjax.layers.quantized import QTensor, Quantization
from fmjax.layers.scales import SuperScales

ONE = np.float16(1.0).reshape(1).view(np.uint8)


@dataclasses.dataclass(frozen=True)
class BlockType:
    """A type of blocks.

    Attributes:
      format: of the whole numbers (`fmjax.layers.codes.FORMATS`).
      block: numbers that share a scale.
      read: from blocks uint8 [N, bytes]: (scales, offsets or None), each an array [N, scales a block], or the pair of
        whole numbers of that shape and what they are multiplied with [N, 1].
      ones: bytes that make a block's scales one and its offsets zero, from one byte to another.
    """

    format: str
    block: int
    read: Callable
    ones: dict[tuple[int, int], np.ndarray]


def _half(blocks: np.ndarray, start: int) -> np.ndarray:
    return np.ascontiguousarray(blocks[:, start : start + 2]).view(np.float16)


def _scale(blocks):
    return _half(blocks, 0), None


def _scale_and_least(blocks):
    return _half(blocks, 0), _half(blocks, 2)


def _k_scales(blocks):
    """Of Q4_K and Q5_K: scales and offsets of six bits."""
    scales, least = package().quants.Q4_K.get_scale_min(np.ascontiguousarray(blocks[:, 4:16]))
    return (scales.astype(np.int8), _half(blocks, 0)), (least.astype(np.int8), -_half(blocks, 2))


def _q2_k(blocks):
    both = blocks[:, :16]
    return ((both & 15).astype(np.int8), _half(blocks, 80)), ((both >> 4).astype(np.int8), -_half(blocks, 82))


def _q3_k(blocks):
    """Sixteen scales of six bits: the lower four in eight bytes, the upper two in four."""
    low, high = blocks[:, 96:104], blocks[:, 104:108]
    low = np.concatenate([low & 15, low >> 4], axis=1)
    high = np.concatenate([(high >> shift) & 3 for shift in (0, 2, 4, 6)], axis=1)
    return ((low | (high << 4)).astype(np.int8) - np.int8(32), _half(blocks, 108)), None


def _q6_k(blocks):
    return (np.ascontiguousarray(blocks[:, 192:208]).view(np.int8), _half(blocks, 208)), None


_FIRST, _NONE = {(0, 2): ONE}, np.zeros(2, np.uint8)
# Scales of six bits in twelve bytes: the first four and, below them, the last four, are 1; offsets are 0.
_K_ONES = {(0, 2): ONE, (2, 4): _NONE, (4, 16): np.uint8([1] * 4 + [0] * 4 + [1] * 4)}
# Scales of 33, which stand for 1: the lower bits 1, the upper ones 2.
_Q3_ONES = {
    (96, 104): np.full(8, 0x11, np.uint8), (104, 108): np.full(4, 0xAA, np.uint8), (108, 110): ONE,
}  # fmt: skip
TYPES = {
    "Q8_0": BlockType("int8", 32, _scale, _FIRST),
    "Q4_0": BlockType("int4", 32, _scale, _FIRST),
    "Q5_0": BlockType("int5", 32, _scale, _FIRST),
    "Q4_1": BlockType("uint4", 32, _scale_and_least, _FIRST | {(2, 4): _NONE}),
    "Q5_1": BlockType("uint5", 32, _scale_and_least, _FIRST | {(2, 4): _NONE}),
    "Q2_K": BlockType(
        "uint2", 16, _q2_k, {(0, 16): np.ones(16, np.uint8), (80, 82): ONE, (82, 84): _NONE}
    ),
    "Q3_K": BlockType("int3", 16, _q3_k, _Q3_ONES),
    "Q4_K": BlockType("uint4", 32, _k_scales, _K_ONES),
    "Q5_K": BlockType("uint5", 32, _k_scales, _K_ONES),
    "Q6_K": BlockType("int6", 16, _q6_k, {(192, 208): np.ones(16, np.uint8), (208, 210): ONE}),
}
"""By the format's word."""


@dataclasses.dataclass(frozen=True)
class Blocks(Tensor):
    """A tensor [out, in] of a type of blocks."""

    @property
    def quantization(self) -> Quantization:
        """How the kernel [in, out] is quantized."""
        kind = TYPES[self.kind]
        scales = "super" if self.kind.endswith("_K") else "float16"
        return Quantization(kind.format, kind.block, scales=scales, offsets="float")

    def few_bits(self) -> QTensor:
        """The kernel [in, out], of NumPy's arrays."""
        kind = TYPES[self.kind]
        _, width = package().GGML_QUANT_SIZES[package().GGMLQuantizationType[self.kind]]
        blocks = np.ascontiguousarray(self.rows()).reshape(-1, width)
        turned = lambda x: np.ascontiguousarray(x.reshape(self.shape[0], -1).T)

        def kept(scales):
            if not isinstance(scales, tuple):
                return None if scales is None else turned(scales)
            return SuperScales(*map(turned, scales))

        scales, offsets = map(kept, kind.read(blocks))
        codes = turned(_whole_numbers(blocks, self.kind))
        if FORMATS[kind.format].bits < 8:
            codes = pack((codes - FORMATS[kind.format].low).astype(np.uint8), FORMATS[kind.format].bits)
        return QTensor(codes, scales, kind.format, kind.block, offsets)


def _whole_numbers(blocks: np.ndarray, name: str) -> np.ndarray:
    """int8 [N, numbers]: what blocks with scales of one stand for."""
    gguf, step = package(), 1 << 14
    found = []
    for start in range(0, len(blocks), step):
        bare = blocks[start : start + step].copy()
        for (start_byte, end_byte), ones in TYPES[name].ones.items():
            bare[:, start_byte:end_byte] = ones
        found.append(gguf.quants.dequantize(bare, gguf.GGMLQuantizationType[name]).astype(np.int8))
    return np.concatenate(found)
