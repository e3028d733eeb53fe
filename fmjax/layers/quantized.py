"""Weights of few bits: integers in blocks with a scale each, behind `fmjax.layers.dense.dense` as any other weight.

A kernel [..., in, out] is cut along `in`, for each output, into blocks. A block keeps its largest absolute value, and
of each number the nearest of the format's levels, which span -1 to 1.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from fmjax.errors import ConfigError
from fmjax.layers.checks import check_choice, check_positive

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""The levels of NormalFloat4 (Dettmers et al. 2023, https://arxiv.org/abs/2305.14314, appendix E)."""

BITS = {"int8": 8, "int4": 4, "nf4": 4}
SECOND_BLOCK = 256
"""Scales that share a second scale (Dettmers et al. 2023, section 3)."""


@functools.cache
def eight_bit_levels() -> np.ndarray:
    """The 256 levels, ascending, of the signed eight-bit float in which scales are kept (Dettmers 2015,
    https://arxiv.org/abs/1511.04561; bitsandbytes' dynamic map): its exponent has as many bits as it needs, and the
    fraction the rest."""
    levels = [0.0, 1.0]
    for exponent in range(7):
        edges = np.linspace(0.1, 1.0, 2**exponent + 1, dtype=np.float32)
        fractions = (edges[:-1] + edges[1:]) / np.float32(2.0)
        ascending = np.float32(10.0 ** (exponent - 6)) * fractions
        levels += [*ascending, *-ascending]
    return np.sort(np.asarray(levels, np.float32))


@struct.dataclass
class QuantizedScales:
    """The scales of blocks, themselves in eight bits: mean + second * level (Dettmers et al. 2023, section 3).

    Attributes:
      codes: uint8 [..., blocks, out], places among `eight_bit_levels`.
      second: float32 [..., N], of `SECOND_BLOCK` scales each, counted along the blocks of one output after another.
      mean: float32 [...].
    """

    codes: jax.Array
    second: jax.Array
    mean: jax.Array

    def value(self) -> jax.Array:
        """float32 [..., blocks, out]."""
        blocks, out = self.codes.shape[-2:]
        place = jnp.arange(out)[None] * blocks + jnp.arange(blocks)[:, None]
        second = jnp.take(self.second, place // SECOND_BLOCK, axis=-1)
        return jnp.take(jnp.asarray(eight_bit_levels()), self.codes) * second + self.mean[..., None, None]


@struct.dataclass
class QTensor:
    """A kernel [..., in, out] in 4 or 8 bits.

    Attributes:
      codes: int8 [..., in, out]; of 4 bits uint8 [..., in / 2, out], the number of the even place in the upper half.
      scales: float32 [..., in / block, out], or `QuantizedScales`: what a level is multiplied with.
      format: "int8" and "int4", whose codes are whole numbers and whose largest is the block's largest; "nf4", whose
        codes are places among `NF4`.
      block: numbers along `in` that share a scale.
    """

    codes: jax.Array
    scales: Any
    format: str = struct.field(pytree_node=False)
    block: int = struct.field(pytree_node=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the kernel."""
        *stack, rows, out = self.codes.shape
        return (*stack, rows * 8 // BITS[self.format], out)

    def value(self, dtype=jnp.float32) -> jax.Array:
        """The kernel [..., in, out], computed in float32 and rounded to `dtype`."""
        *stack, rows, out = self.shape
        levels = _levels(self.codes, self.format)
        scales = self.scales.value() if isinstance(self.scales, QuantizedScales) else self.scales
        cut = levels.reshape(*stack, rows // self.block, self.block, out)
        return (cut * scales[..., None, :]).reshape(self.shape).astype(dtype)


def _levels(codes: jax.Array, format: str) -> jax.Array:
    """float32 [..., in, out] of a tensor's codes."""
    if BITS[format] == 4:
        *stack, half, out = codes.shape
        codes = jnp.stack([codes >> 4, codes & 15], axis=-2).reshape(*stack, 2 * half, out)
    if format != "nf4":
        return codes.astype(jnp.float32) - (8.0 if format == "int4" else 0.0)
    # Bit by bit: a gather from a table of 16 is slower everywhere.
    chosen = [jnp.float32(level) for level in NF4]
    for bit in range(4):
        is_set = (codes >> bit) & 1 == 1
        chosen = [jnp.where(is_set, high, low) for low, high in zip(chosen[::2], chosen[1::2])]
    return chosen[0]


@dataclasses.dataclass(frozen=True)
class Quantization:
    """How kernels are quantized.

    Attributes:
      format: "int8", "int4" or "nf4".
      block: numbers along `in` that share a scale.
      double: whether the scales are kept in eight bits too.
    """

    format: str
    block: int = 64
    double: bool = False

    def __post_init__(self):
        check_choice("format", self.format, BITS)
        check_positive(block=self.block)
        if self.block % 2:
            raise ConfigError(f"block = {self.block} must be even: two numbers of 4 bits share a byte")

    def quantize(self, kernel: jax.Array) -> QTensor:
        """[..., in, out] to the nearest levels. Raises ConfigError where `in` does not divide into blocks."""
        *stack, rows, out = kernel.shape
        if rows % self.block:
            raise ConfigError(
                f"a kernel [{rows}, {out}] cannot be cut into blocks of {self.block} along its first axis; take a "
                f"block that divides {rows}"
            )
        cut = kernel.astype(jnp.float32).reshape(*stack, rows // self.block, self.block, out)
        largest = jnp.max(jnp.abs(cut), axis=-2)
        normal = cut / jnp.where(largest > 0, largest, 1.0)[..., None, :]
        normal = normal.reshape(*stack, rows, out)
        top = {"int8": 127, "int4": 7}.get(self.format, 1)
        if self.format == "nf4":
            codes = _nearest(normal, np.asarray(NF4, np.float32))
        else:
            codes = jnp.round(normal * top).astype(jnp.int8) + (8 if self.format == "int4" else 0)
        if BITS[self.format] == 4:
            pairs = codes.astype(jnp.uint8).reshape(*stack, rows // 2, 2, out)
            codes = (pairs[..., 0, :] << 4) | pairs[..., 1, :]
        scales = largest / top
        return QTensor(codes, quantize_scales(scales) if self.double else scales, self.format, self.block)


def quantize_scales(scales: jax.Array) -> QuantizedScales:
    """float32 [..., blocks, out] in eight bits, less their mean."""
    *stack, blocks, out = scales.shape
    mean = jnp.mean(scales, axis=(-2, -1))
    flat = (scales - mean[..., None, None]).swapaxes(-1, -2).reshape(*stack, blocks * out)
    padded = jnp.pad(flat, [(0, 0)] * len(stack) + [(0, -flat.shape[-1] % SECOND_BLOCK)])
    cut = padded.reshape(*stack, -1, SECOND_BLOCK)
    second = jnp.max(jnp.abs(cut), axis=-1)
    codes = _nearest(cut / jnp.where(second > 0, second, 1.0)[..., None], eight_bit_levels())
    codes = codes.reshape(*stack, -1)[..., : blocks * out].reshape(*stack, out, blocks).swapaxes(-1, -2)
    return QuantizedScales(codes, second, mean)


def _nearest(x: jax.Array, levels: np.ndarray) -> jax.Array:
    """uint8, the place of the nearest of ascending levels."""
    edges = jnp.asarray((levels[1:] + levels[:-1]) / 2)
    return jnp.searchsorted(edges, x, method="compare_all" if len(levels) <= 16 else "scan").astype(jnp.uint8)
