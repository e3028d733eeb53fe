"""Attention of one or a few new tokens a row over what a cache holds: the memory's bandwidth is what it costs."""

import jax
import jax.numpy as jnp
from jax import lax

from fmjax.layers.attention.reference import MASKED
from fmjax.layers.held import Held
from fmjax.parallel.platform import target_platform

# Numbers of one head's keys in a block. On a CPU the copy of a block is to stay in the processor's caches; an
# accelerator wants few and large steps.
BLOCK_SIZE = {"cpu": 64 * 64}
DEFAULT_BLOCK_SIZE = 512 * 64
# Caches of no more blocks are read whole.
WHOLE_BLOCKS = 4


def decode_attention(q: jax.Array, key: jax.Array, value: jax.Array, allowed: jax.Array, *, scale=None) -> jax.Array:
    """softmax(scale * q k^T) v over the allowed slots.

    A long cache is read in blocks of slots up to the last that any row is allowed, with the running softmax of Dao et
    al. 2022 (https://arxiv.org/abs/2205.14135, algorithm 1): short rows do not pay for the cache's length.

    Args:
      q: [B, T, H, D].
      key, value: [B, K, D, S] and [B, K, S, D], where K divides H: query head h reads key-value head h // (H // K);
        arrays, or in few bits (`fmjax.layers.held.Held`).
      allowed: bool [B, S], for all of a row's queries, or [B, T, S]. A query without any gets a finite value without
        meaning.
      scale: None is 1 / sqrt(D).

    Returns: [B, T, H, D] in q's dtype. Logits and softmax are float32.
    """
    b, t, h, d = q.shape
    kv_heads, slots = value.shape[1:3]
    rows = q.reshape(b, t, kv_heads, h // kv_heads, d).transpose(0, 2, 3, 1, 4).reshape(b, kv_heads, -1, d)
    rows = rows * jnp.asarray(d**-0.5 if scale is None else scale, q.dtype)
    allowed = allowed[:, None] if allowed.ndim == 2 else allowed
    block = max(1, BLOCK_SIZE.get(target_platform(), DEFAULT_BLOCK_SIZE) // d)
    if slots <= WHOLE_BLOCKS * block:
        total, out = _attend(rows, key, value, allowed)[1:]
    else:
        end = jnp.max(jnp.where(allowed, jnp.arange(slots) + 1, 0))
        blocks = lambda: _attend_blocks(rows, key, value, allowed, end, block)
        if rows.shape[2] > 1:
            total, out = blocks()
        else:
            # The product with a single query reads the cache once; a block is copied first, so most of it costs more.
            whole = lambda: _attend(rows, key, value, allowed)[1:]
            total, out = lax.cond(2 * end > slots, whole, blocks)
    out = (out / total).astype(q.dtype)
    return out.reshape(b, kv_heads, h // kv_heads, t, d).transpose(0, 3, 1, 2, 4).reshape(b, t, h, d)


def _attend(rows, key, value, allowed):
    """Of queries [B, K, R, D] the largest logit, sum of exponentials and weighted values, float32 [B, K, R, 1 or D]."""
    logits = jnp.einsum("bkrd,bkds->bkrs", rows, _numbers(key, rows.dtype), preferred_element_type=jnp.float32)
    if isinstance(key, Held):  # a scale for each slot, which is that of the logit
        logits *= key.scales
    # The queries of a token, one a head of the group, are as many rows apart as there are tokens.
    by_token = logits.reshape(*logits.shape[:2], -1, *allowed.shape[1:])
    logits = jnp.where(allowed[:, None, None], by_token, MASKED).reshape(logits.shape)
    top = jnp.max(logits, axis=-1, keepdims=True)
    weights = jnp.exp(logits - top)
    scaled = weights * value.scales.swapaxes(2, 3) if isinstance(value, Held) else weights
    out = jnp.einsum(
        "bkrs,bksd->bkrd", scaled.astype(rows.dtype), _numbers(value, rows.dtype), preferred_element_type=jnp.float32
    )
    return top, jnp.sum(weights, axis=-1, keepdims=True), out


def _numbers(held, dtype) -> jax.Array:
    return held.numbers(dtype) if isinstance(held, Held) else held.astype(dtype)


def _attend_blocks(rows, key, value, allowed, end, size):
    slots = allowed.shape[2]

    def add(i, carry):
        top, total, out = carry
        start = jnp.minimum(i * size, slots - size)  # the last block may overlap the one before it
        take = lambda x, axis: jax.tree.map(lambda part: lax.dynamic_slice_in_dim(part, start, size, axis), x)
        block_key, block_value = take(key, 3), take(value, 2)
        fresh = lax.dynamic_slice_in_dim(allowed, start, size, axis=2) & (start + jnp.arange(size) >= i * size)
        block_top, block_total, block_out = _attend(rows, block_key, block_value, fresh)
        new_top = jnp.maximum(top, block_top)
        old, new = jnp.exp(top - new_top), jnp.exp(block_top - new_top)
        return new_top, total * old + block_total * new, out * old + block_out * new

    shape = (*rows.shape[:3], 1)
    empty = jnp.full(shape, MASKED), jnp.zeros(shape), jnp.zeros(rows.shape, jnp.float32)
    _, total, out = lax.fori_loop(0, jnp.maximum((end + size - 1) // size, 1), add, empty)
    return total, out
