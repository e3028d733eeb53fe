"""Attention for CPUs: blocks of queries against only the keys they can reach.

XLA's CPU backend does not skip masked work and is slow where matrix products have axes to be moved, so heads are moved
to the front once, and each block of queries is multiplied with the slice of keys that a causal mask or window leaves.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from fmjax.layers.attention import MASKED

MIN_BLOCK = 128
MAX_BLOCKS = 16  # blocks are unrolled: bounds the size of the program for long sequences


def unsupported(q, k, *, segment_ids, positions, causal, window, dropout_rate) -> str | None:
    """Why this backend cannot do what is asked, or None."""
    if positions is not None:
        return "masks by index in the row and takes no positions (cached decoding)"
    if dropout_rate > 0.0:
        return "has no dropout of attention probabilities"
    return None


def blocks(t: int, s: int, causal: bool, window: int | None) -> list[tuple[int, int, int, int]]:
    """(query start, query end, first key, end of keys) of each block, covering all queries and every allowed key."""
    if not causal and window is None:
        return [(0, t, 0, s)]
    size = max(MIN_BLOCK, -(-t // MAX_BLOCKS))
    found = []
    for start in range(0, t, size):
        end = min(start + size, t)
        first = 0 if window is None else max(0, start - window + 1)
        last = end if causal else s if window is None else min(s, end - 1 + window)
        found.append((start, end, first, last))
    return found


def run(q, k, v, *, segment_ids, positions, causal, window, scale):
    """Arguments as `fmjax.layers.attention.reference`, without positions."""
    b, t, h, d = q.shape
    s, kv_heads = k.shape[1:3]
    groups = h // kv_heads
    q = (q * scale).astype(q.dtype).reshape(b, t, kv_heads, groups, d).transpose(0, 2, 3, 1, 4)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    out = []
    for start, end, first, last in blocks(t, s, causal, window):
        query = q[:, :, :, start:end].reshape(b * kv_heads, groups * (end - start), d)
        key, value = (x[:, :, first:last].reshape(b * kv_heads, last - first, d) for x in (k, v))
        logits = lax.dot_general(query, key, (((2,), (2,)), ((0,), (0,))), preferred_element_type=jnp.float32)
        logits = logits.reshape(b, kv_heads, groups, end - start, last - first)
        index_q = lax.iota(jnp.int32, end - start)[:, None] + start
        index_k = lax.iota(jnp.int32, last - first)[None, :] + first
        mask = None
        if causal:
            mask = index_k <= index_q
        if window is not None:
            near = index_q - index_k < window
            near = near if causal else near & (index_k - index_q < window)
            mask = near if mask is None else mask & near
        if segment_ids is not None:
            same = segment_ids[0][:, start:end, None] == segment_ids[1][:, None, first:last]
            mask = (same if mask is None else same & mask)[:, None, None]
        if mask is not None:
            logits = jnp.where(mask, logits, MASKED)
        probabilities = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
        probabilities = probabilities.reshape(b * kv_heads, groups * (end - start), last - first)
        out.append(lax.batch_matmul(probabilities, value).reshape(b, kv_heads, groups, end - start, d))
    out = out[0] if len(out) == 1 else jnp.concatenate(out, axis=3)
    return out.transpose(0, 3, 1, 2, 4).reshape(b, t, h, d)
