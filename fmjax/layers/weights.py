"""What a parameter may be instead of an array: a small pytree that `dense` understands."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from fmjax.layers.quantized import QTensor


@struct.dataclass
class LoRAWeight:
    """base + scale * a @ b, without computing the sum (Hu et al. 2021, https://arxiv.org/abs/2106.09685, section 4.1).

    Attributes:
      base: [..., in, out], an array or another weight.
      a, b: [..., in, rank] and [..., rank, out].
      scale: alpha / rank.
    """

    base: Any
    a: jax.Array
    b: jax.Array
    scale: float = struct.field(pytree_node=False, default=1.0)


@struct.dataclass
class DoRAWeight:
    """base + scale * a @ b with its columns brought to the lengths `magnitude` (Liu et al. 2024,
    https://arxiv.org/abs/2402.09353, equation 5).

    The columns' lengths before that are taken as constants by the gradient (section 4.3).

    Attributes:
      base, a, b, scale: as of `LoRAWeight`.
      magnitude: [..., out].
    """

    base: Any
    a: jax.Array
    b: jax.Array
    magnitude: jax.Array
    scale: float = struct.field(pytree_node=False, default=1.0)


@struct.dataclass
class ScaledWeight:
    """base with its columns multiplied: what the product with a `DoRAWeight` is computed by, its factors from the
    magnitude.

    Attributes:
      base: [..., in, out], an array or another weight.
      columns: [..., out].
    """

    base: Any
    columns: jax.Array


@struct.dataclass
class Turned:
    """A kernel that lies in memory as [out, in], for products of few rows on CPUs.

    Such a product takes as long as reading the kernel, and a row of it here is what one output is made of.
    """

    weight: jax.Array


ADAPTED = (LoRAWeight, DoRAWeight, ScaledWeight)
"""Weights that are made around a base."""


def is_weight(x) -> bool:
    """Whether x is a weight that is more than an array."""
    return isinstance(x, (*ADAPTED, QTensor))


def bare(tree):
    """A tree of parameters, or of anything told a parameter, with what each weight is made around in its place."""
    is_adapted = lambda x: isinstance(x, ADAPTED)
    return jax.tree.map(lambda x: bare(x.base) if is_adapted(x) else x, tree, is_leaf=is_adapted)


def merged(tree):
    """A tree of parameters with every weight computed, every kernel as [in, out]: arrays alone."""
    return jax.tree.map(value_of, tree, is_leaf=lambda x: is_weight(x) or isinstance(x, Turned))


def value_of(x) -> jax.Array:
    """What a weight stands for, as an array [..., in, out] in the dtype of its base; float32 of a quantized one."""
    if isinstance(x, Turned):
        return x.weight.T
    if isinstance(x, QTensor):
        return x.value()
    if not isinstance(x, ADAPTED):
        return x
    base = value_of(x.base)
    if isinstance(x, ScaledWeight):
        return (base * x.columns[..., None, :]).astype(base.dtype)
    total = base + x.scale * (x.a @ x.b).astype(base.dtype)
    if isinstance(x, DoRAWeight):
        total *= column_factors(x.magnitude, total)[..., None, :]
    return total.astype(base.dtype)


def column_factors(magnitude: jax.Array, kernel: jax.Array) -> jax.Array:
    """float32 [..., out]: what brings a kernel's columns to lengths `magnitude`; 1 for a column of zeros, which has no
    direction (a kernel that is zero at first)."""
    lengths = column_lengths(kernel)
    return jnp.where(lengths > 0, magnitude / jnp.where(lengths > 0, lengths, 1.0), 1.0)


def column_lengths(kernel: jax.Array) -> jax.Array:
    """float32 [..., out]: the Euclidean lengths of a kernel's columns."""
    return jnp.sqrt(jnp.sum(jnp.square(kernel.astype(jnp.float32)), axis=-2))
