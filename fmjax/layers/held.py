"""Keys and values of a cache in few bits: of each position and head whole numbers, and a scale.

Per position and head, as what is written once is then never rounded again; a cache of positions that share a scale
would be (cf. Sheng et al. 2023, https://arxiv.org/abs/2303.06865, section 5, which groups along the features too).
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from fmjax.layers.checks import check_choice
from fmjax.layers.codes import FORMATS, to_codes, whole_numbers

KINDS = ("float", "int8", "int4")
"""What a cache may be kept in."""


@struct.dataclass
class Held:
    """Keys [B, K, D, S] or values [B, K, S, D].

    Attributes:
      codes: int8 of that shape; of 4 bits uint8, two numbers along D to a byte.
      scales: float32, with one number along D.
      format: "int8", of -127 to 127, or "int4", of -7 to 7.
      axis: of D.
      dtype: of what was written.
    """

    codes: jax.Array
    scales: jax.Array
    format: str = struct.field(pytree_node=False)
    axis: int = struct.field(pytree_node=False)
    dtype: Any = struct.field(pytree_node=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what it stands for."""
        shape = list(self.codes.shape)
        shape[self.axis] = shape[self.axis] * 8 // FORMATS[self.format].bits
        return tuple(shape)

    def numbers(self, dtype) -> jax.Array:
        """The whole numbers, in the shape of what they stand for."""
        if FORMATS[self.format].bits == 8:
            return self.codes.astype(dtype)
        codes = self.codes if self.axis == 2 else self.codes.swapaxes(2, 3)
        numbers = whole_numbers(codes, self.format)
        return (numbers if self.axis == 2 else numbers.swapaxes(2, 3)).astype(dtype)

    def value(self) -> jax.Array:
        """Keys or values in their dtype."""
        return (self.numbers(jnp.float32) * self.scales).astype(self.dtype)


def empty(like: jax.Array, format: str, axis: int) -> Held:
    """Zeros in place of an array of zeros."""
    whole = jax.tree.map(lambda x: jnp.moveaxis(x, -1, axis), whole_parts(jnp.moveaxis(like, axis, -1), format))
    return Held(*whole, format, axis, like.dtype)


def whole_parts(x: jax.Array, format: str) -> tuple[jax.Array, jax.Array]:
    """(codes, scales [..., 1]) of x [..., D], each by its largest value along D."""
    check_choice("cache", format, KINDS[1:])
    x, kind = x.astype(jnp.float32), FORMATS[format]
    scales = jnp.max(jnp.abs(x), axis=-1, keepdims=True) / kind.top
    levels = x / jnp.where(scales > 0, scales, 1.0)
    return to_codes(levels[..., None], format)[..., 0], scales


def value_of(held) -> jax.Array:
    """Keys or values, however they are held."""
    return held.value() if isinstance(held, Held) else held
