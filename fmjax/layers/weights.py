"""What a parameter may be instead of an array: a small pytree that `dense` understands."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from fmjax.errors import InputError
from fmjax.layers.quantized import QTensor, Quantization


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
class FakeQuantized:
    """A kernel that trains, in whose place products take what it would be in few bits: see `rounded`.

    Attributes:
      base: [..., in, out], an array.
      quantization: how it is rounded; what it says of activations holds too.
    """

    base: jax.Array
    quantization: Quantization = struct.field(pytree_node=False)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def rounded(kernel: jax.Array, quantization: Quantization) -> jax.Array:
    """What a kernel would be in few bits; the gradient goes past it (Bengio et al. 2013,
    https://arxiv.org/abs/1308.3432)."""
    return quantization.quantize(kernel).value(kernel.dtype)


@rounded.defjvp
def _past_rounding(quantization, primals, tangents):
    return rounded(*primals, quantization), tangents[0]


@struct.dataclass
class MaskedWeight:
    """base where `kept` is true, and 0 elsewhere, whatever base becomes.

    Attributes:
      base: [..., in, out].
      kept: bool [..., in, out].
    """

    base: jax.Array
    kept: jax.Array


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
    return isinstance(x, (*ADAPTED, MaskedWeight, QTensor, FakeQuantized))


def has_adapters(tree) -> bool:
    """Whether a tree of parameters has weights that are made around a base."""
    return any(isinstance(x, ADAPTED) for x in jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, ADAPTED)))


def bare(tree):
    """A tree of parameters, or of anything told a parameter, with what each weight is made around in its place."""
    is_adapted = lambda x: isinstance(x, ADAPTED)
    return jax.tree.map(lambda x: bare(x.base) if is_adapted(x) else x, tree, is_leaf=is_adapted)


def as_computed(tree):
    """A tree of parameters with kernels as their products take them, once rounded or masked, in place of those that
    are in every product."""
    in_products = lambda x: isinstance(x, FakeQuantized | MaskedWeight)
    return jax.tree.map(lambda x: value_of(x) if in_products(x) else x, tree, is_leaf=in_products)


def merged(tree):
    """A tree of parameters with every weight computed, every kernel as [in, out]: arrays alone."""
    return jax.tree.map(value_of, tree, is_leaf=_is_leaf)


def settled(tree):
    """A tree of parameters to compute with: weights around arrays are computed (`merged`); kernels of few bits stay so,
    adapters beside them, and the columns' factors of `DoRAWeight`s, which cost as much as a product, are computed once.
    """
    return jax.tree.map(_settled, tree, is_leaf=_is_leaf)


def _settled(x):
    if not isinstance(bare(x), QTensor):
        return value_of(x)
    return scaled(x) if isinstance(x, DoRAWeight) else x


def scaled(x: DoRAWeight) -> ScaledWeight:
    """The same weight with its columns' factors computed."""
    weight = LoRAWeight(x.base, x.a, x.b, x.scale)
    return ScaledWeight(weight, _factors(x.magnitude, weight))


@jax.jit
def _factors(magnitude: jax.Array, weight: LoRAWeight) -> jax.Array:
    return column_factors(magnitude, value_of(weight))


def in_dtype(tree, dtype: str):
    """A tree of parameters in `dtype`. Integers stay as they are, and so do scales of few bits, lengths and factors of
    columns: what is computed from them is rounded last."""
    return jax.tree.map(lambda x: _in_dtype(x, dtype), tree, is_leaf=is_weight)


def _in_dtype(x, dtype: str):
    if isinstance(x, QTensor):
        return x
    if isinstance(x, (*ADAPTED, FakeQuantized)):
        parts = {name: _in_dtype(getattr(x, name), dtype) for name in ("base", "a", "b") if hasattr(x, name)}
        return x.replace(**parts)
    return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x


def _is_leaf(x) -> bool:
    return is_weight(x) or isinstance(x, Turned)


def without_adapters(tree):
    """A tree of parameters with adapters computed into their kernels, every kernel as [in, out]; a kernel of few bits
    that has none stays as it is.

    Raises InputError, naming the kernel, for an adapter beside one of few bits: its codes cannot take the sum up.
    """

    def one(path, x):
        if isinstance(x, QTensor):
            return x
        if isinstance(x, ADAPTED) and isinstance(bare(x), QTensor):
            raise InputError(
                f"the adapter of {jax.tree_util.keystr(path, simple=True, separator='/')!r} cannot be merged into a "
                f"kernel of {bare(x).format}, whose codes cannot hold the sum; save the adapter alone "
                "(format='peft'), or merge it into the model as it was before it was compressed, and compress that"
            )
        return value_of(x)

    return jax.tree_util.tree_map_with_path(one, tree, is_leaf=_is_leaf)


def count(tree) -> int:
    """How many numbers a tree of parameters stands for: of a kernel of few bits those of the kernel."""
    leaves = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, QTensor))
    return sum(math.prod(x.shape) for x in leaves)


def num_bytes(tree) -> int:
    """Bytes of a tree of arrays, weights of few bits, or their shapes."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def value_of(x) -> jax.Array:
    """What a weight stands for, as an array [..., in, out] in the dtype of its base; float32 of a quantized one."""
    if isinstance(x, Turned):
        return x.weight.T
    if isinstance(x, QTensor):
        return x.value()
    if isinstance(x, FakeQuantized):
        return rounded(x.base, x.quantization)
    if isinstance(x, MaskedWeight):
        return jnp.where(x.kept, x.base, 0)
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
