"""Whole attention heads and whole layers: what they are worth, and the parameters without them."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fmjax.layers.transformer_config import TransformerConfig


def head_importance(kernel: jax.Array, gram: jax.Array, kv_heads: int) -> jax.Array:
    """What heads of queries that share keys and values add to the residual stream together: the sum over calibration of
    the square of their part of attention's output, float32 [kv_heads].

    Args:
      kernel: [heads * head_dim, out], of attention's output.
      gram: float32 [heads * head_dim, heads * head_dim], the sum of x x^T of what it is given.
    """
    size = len(kernel) // kv_heads
    kernels = kernel.astype(jnp.float32).reshape(kv_heads, size, -1)
    own = jnp.stack([gram[i * size : (i + 1) * size, i * size : (i + 1) * size] for i in range(kv_heads)])
    return jnp.einsum("hio,hij,hjo->h", kernels, own, kernels, precision=jax.lax.Precision.HIGHEST)


def zeroed_heads(block: Mapping[str, Any], config: TransformerConfig, groups: Sequence[int]) -> dict[str, Any]:
    """A block whose heads of these groups (`head_importance`) add nothing: their rows of attention's output kernel are
    zero."""
    kernel = block["attention"]["out"]["kernel"]
    gone = jnp.zeros(config.num_kv_heads, bool).at[jnp.asarray(groups, jnp.int32)].set(True)
    rows = jnp.repeat(gone, len(kernel) // config.num_kv_heads)
    out = {**block["attention"]["out"], "kernel": jnp.where(rows[:, None], 0, kernel)}
    return {**block, "attention": {**block["attention"], "out": out}}


def without_heads(block: Mapping[str, Any], config: TransformerConfig, groups: Sequence[int]) -> dict[str, Any]:
    """A block without the heads of these groups, for a stack of so many fewer: the function of `zeroed_heads`."""
    kept = jnp.asarray([i for i in range(config.num_kv_heads) if i not in set(groups)], jnp.int32)
    held = block["attention"]

    def cut(x, axis):
        shape = x.shape[:axis] + (config.num_kv_heads, -1) + x.shape[axis + 1 :]
        taken = jnp.take(x.reshape(shape), kept, axis=axis)
        return taken.reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :])

    attention = dict(held)
    for name in ("query", "key", "value"):
        # kernel [in, heads * head_dim], bias [heads * head_dim]
        attention[name] = {part: cut(x, x.ndim - 1) for part, x in held[name].items()}
    attention["out"] = {**held["out"], "kernel": cut(held["out"]["kernel"], 0)}
    return {**block, "attention": attention}


def change_of_direction(before: jax.Array, after: jax.Array, counted: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """(sum over positions of 1 - cos(before, after), number of positions): block influence (Men et al. 2024,
    https://arxiv.org/abs/2403.03853, equation 1), of what is no padding.

    Args:
      before, after: [B, T, D] in front of a block and after it.
      counted: bool [B, T] or None.
    """
    a, b = before.astype(jnp.float32), after.astype(jnp.float32)
    lengths = jnp.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    cosine = jnp.where(lengths > 0, (a * b).sum(-1) / jnp.where(lengths > 0, lengths, 1.0), 1.0)
    counted = jnp.ones(cosine.shape, bool) if counted is None else counted
    return jnp.where(counted, 1.0 - cosine, 0.0).sum(), counted.sum()


def same_kinds(config: TransformerConfig, kept: Sequence[int]) -> bool:
    """Whether the layers in `kept` are of the same kinds (windows, rotary embeddings) at their new places."""
    return all(config.kind(old) == config.kind(new) for new, old in enumerate(kept))
