"""How the scales of blocks are kept: as floats, in eight bits of two kinds, or as powers of two."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from fmjax.layers.codes import Format, nearest

SECOND_BLOCK = 256
"""Scales that share a second scale (Dettmers et al. 2023, section 3)."""
SUPER_BLOCK = 256
"""Numbers along `in` whose blocks' scales share a second one (llama.cpp's K types)."""
FLOATS = ("float32", "float16", "bfloat16")
ROUNDINGS = ("floor", "ceil", "even", "rceil")


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


def quantize_scales(scales: jax.Array) -> QuantizedScales:
    """float32 [..., blocks, out] in eight bits, less their mean."""
    *stack, blocks, out = scales.shape
    mean = jnp.mean(scales, axis=(-2, -1))
    flat = (scales - mean[..., None, None]).swapaxes(-1, -2).reshape(*stack, blocks * out)
    padded = jnp.pad(flat, [(0, 0)] * len(stack) + [(0, -flat.shape[-1] % SECOND_BLOCK)])
    cut = padded.reshape(*stack, -1, SECOND_BLOCK)
    second = jnp.max(jnp.abs(cut), axis=-1)
    codes = nearest(cut / jnp.where(second > 0, second, 1.0)[..., None], eight_bit_levels())
    codes = codes.reshape(*stack, -1)[..., : blocks * out].reshape(*stack, out, blocks).swapaxes(-1, -2)
    return QuantizedScales(codes, second, mean)


@struct.dataclass
class SuperScales:
    """The scales of blocks as whole numbers of eight bits, times a float that the blocks of `SUPER_BLOCK` numbers share
    (llama.cpp's K types).

    Attributes:
      codes: int8 [..., blocks, out].
      second: float16 [..., in / SUPER_BLOCK, out].
    """

    codes: jax.Array
    second: jax.Array

    def value(self) -> jax.Array:
        """float32 [..., blocks, out]."""
        shared = self.codes.shape[-2] // self.second.shape[-2]
        return self.codes.astype(jnp.float32) * jnp.repeat(self.second.astype(jnp.float32), shared, axis=-2)


def super_scales(scales: jax.Array, block: int) -> SuperScales:
    """float32 [..., blocks, out] of blocks of `block` numbers, which divides `SUPER_BLOCK`, as `SuperScales`."""
    *stack, blocks, out = scales.shape
    cut = scales.reshape(*stack, blocks * block // SUPER_BLOCK, SUPER_BLOCK // block, out)
    second = (jnp.max(jnp.abs(cut), axis=-2) / 127).astype(jnp.float16)
    shared = second.astype(jnp.float32)[..., None, :]
    codes = jnp.clip(jnp.round(cut / jnp.where(shared > 0, shared, 1.0)), -127, 127)
    return SuperScales(codes.astype(jnp.int8).reshape(scales.shape), second)


@struct.dataclass
class PowerScales:
    """Scales that are powers of two, by their exponents alone (OCP Microscaling Formats 1.0: e8m0).

    Attributes:
      exponents: uint8 [..., blocks, out]; the scale is 2 ** (exponent - 127), and 0 for 0.
      rounding: how a block's largest value became a power of two, see `power_scales`.
    """

    exponents: jax.Array
    rounding: str = struct.field(pytree_node=False, default="floor")

    def value(self) -> jax.Array:
        """float32 [..., blocks, out]."""
        return jax.lax.bitcast_convert_type(self.exponents.astype(jnp.uint32) << 23, jnp.float32)


def power_scales(largest: jax.Array, kind: Format, rounding: str) -> PowerScales:
    """The scales of blocks whose largest absolute values are `largest`, for a format of floats.

    Args:
      rounding: "floor", the power of two at or below the largest value, over that of the format's largest number (OCP
        1.0, section 6.3: values between are clipped); "ceil", the one at or above it; "even", the one at or below it
        once it is rounded to as many bits as the format's numbers have; "rceil", the least under which no value is
        clipped.
    """
    bits = jax.lax.bitcast_convert_type(jnp.abs(largest.astype(jnp.float32)), jnp.uint32)
    down = kind.exponent
    if rounding == "rceil":
        bits, down = jax.lax.bitcast_convert_type(jnp.abs(largest) / jnp.float32(kind.top), jnp.uint32), 0
    if rounding == "even":
        bits += 1 << (22 - kind.fraction)
    exponent = (bits >> 23).astype(jnp.int32)
    if rounding in ("ceil", "rceil"):
        exponent += (bits & (2**23 - 1) > 0).astype(jnp.int32)
    return PowerScales(jnp.clip(exponent - down, 1, 254).astype(jnp.uint8), rounding)


def scale_values(scales) -> jax.Array:
    """float32 [..., in / block, out / tile] of scales or offsets, however they are kept."""
    is_kept = isinstance(scales, QuantizedScales | SuperScales | PowerScales)
    return scales.value() if is_kept else scales.astype(jnp.float32)
