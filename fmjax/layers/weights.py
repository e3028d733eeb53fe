"""What a parameter may be instead of an array: a small pytree that `dense` understands."""

from typing import Any

import jax
from flax import struct


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
class Turned:
    """A kernel that lies in memory as [out, in], for products of few rows on CPUs.

    Such a product takes as long as reading the kernel, and a row of it here is what one output is made of.
    """

    weight: jax.Array


def is_weight(x) -> bool:
    """Whether x is a weight that is more than an array."""
    return isinstance(x, LoRAWeight)


def bare(tree):
    """A tree of parameters, or of anything told a parameter, with what each weight is made around in its place."""
    return jax.tree.map(lambda x: bare(x.base) if is_weight(x) else x, tree, is_leaf=is_weight)


def merged(tree):
    """A tree of parameters with every weight computed, every kernel as [in, out]: arrays alone."""
    return jax.tree.map(_value, tree, is_leaf=lambda x: is_weight(x) or isinstance(x, Turned))


def _value(x):
    if isinstance(x, Turned):
        return x.weight.T
    if not is_weight(x):
        return x
    base = _value(x.base)
    return (base + x.scale * (x.a @ x.b).astype(base.dtype)).astype(base.dtype)
