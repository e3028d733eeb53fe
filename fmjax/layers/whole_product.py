"""Products of whole numbers: activations and a kernel of eight bits or fewer, summed in int32."""

import jax
import jax.numpy as jnp
from jax import lax

from fmjax.layers.codes import whole_numbers
from fmjax.layers.quantized import QTensor
from fmjax.layers.scales import scale_values

TOP = 127
"""The whole number that the largest activation of a row becomes."""


def whole_product(x: jax.Array, weight: QTensor, transpose: bool = False) -> jax.Array:
    """x @ weight, float32 [..., out], with x as whole numbers too (`QTensor.activations`).

    Each row of x [..., in], or x by `weight.input_scale`, is divided by a scale and rounded to -127 to 127; products of
    whole numbers are summed in int32 within a block, and blocks times their scales in float32.

    Args:
      weight: [in, out] of a format of whole numbers of at most seven bits and a sign.
      transpose: contract over the weight's last axis instead of its first.
    """
    numbers, scales = whole_numbers(weight.codes, weight.format), scale_values(weight.scales)
    offsets = None if weight.offsets is None else weight.offset_values()
    block, tile = weight.block, weight.tile
    if transpose:
        numbers, scales, block, tile = numbers.T, scales.T, tile, block
        offsets = None if offsets is None else offsets.T
    rows, scale = _whole_rows(x.reshape(-1, x.shape[-1]), weight.input_scale)
    size, out = numbers.shape
    cut = rows.reshape(len(rows), size // block, block)
    sums = lax.dot_general(
        cut, numbers.reshape(size // block, block, out), (((2,), (1,)), ((1,), (0,))), preferred_element_type=jnp.int32
    )
    y = jnp.einsum("brn,bn->rn", sums.astype(jnp.float32), jnp.repeat(scales, tile, axis=-1))
    if offsets is not None:
        totals = jnp.sum(cut, axis=-1, dtype=jnp.int32).astype(jnp.float32)
        y += totals @ jnp.repeat(offsets, tile, axis=-1)
    return (y * scale).reshape(*x.shape[:-1], out)


@jax.custom_jvp
def rounded_rows(x: jax.Array) -> jax.Array:
    """x [..., in] with each row rounded as `whole_product` rounds it; the gradient goes past that."""
    whole, scale = _whole_rows(x, None)
    return (whole.astype(jnp.float32) * scale).astype(x.dtype)


@rounded_rows.defjvp
def _past_rounding(primals, tangents):
    return rounded_rows(*primals), tangents[0]


def _whole_rows(x: jax.Array, input_scale) -> tuple[jax.Array, jax.Array]:
    """(int8 [..., in], float32 scale [..., 1] or [])."""
    x = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(x), axis=-1, keepdims=True) / TOP if input_scale is None else input_scale
    whole = jnp.round(x / jnp.where(scale > 0, scale, 1.0))
    return jnp.clip(whole, -TOP, TOP).astype(jnp.int8), scale
