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
    kv_heads = k.shape[2]
    q = (q * scale).astype(q.dtype).reshape(b, t, kv_heads, h // kv_heads, d).transpose(0, 2, 3, 1, 4)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    out = _attend(q, k, v, segment_ids, causal, window)
    return out.transpose(0, 3, 1, 2, 4).reshape(b, t, h, d)


# q is [B, K, G, T, D] for K key-value heads with G query heads each, k and v are [B, K, S, D]. In the products the G
# heads of a group are further rows of one matrix.

_BATCH = ((0, 1), (0, 1))


def _rows_by_rows(x, y, dtype=None):
    """[B, K, M, D], [B, K, N, D] to [B, K, M, N]."""
    return lax.dot_general(x, y, (((3,), (3,)), _BATCH), preferred_element_type=dtype or x.dtype)


def _weighted_rows(x, y):
    """[B, K, M, N], [B, K, N, D] to [B, K, M, D]."""
    return lax.dot_general(x, y, (((3,), (2,)), _BATCH), preferred_element_type=y.dtype)


def _logits(q, k, segment_ids, start, first, causal, window):
    """Masked logits, float32 [B, K, G, c, s], of a block of c queries from `start` and of s keys from `first`."""
    b, kv_heads, groups, c, d = q.shape
    s = k.shape[2]
    logits = _rows_by_rows(q.reshape(b, kv_heads, groups * c, d), k, jnp.float32).reshape(b, kv_heads, groups, c, s)
    ahead = lax.iota(jnp.int32, c)[:, None] + start - lax.iota(jnp.int32, s)[None, :] - first
    allowed = []
    if causal:
        allowed.append(ahead >= 0)
    if window is not None:
        allowed.append((ahead if causal else abs(ahead)) < window)
    if segment_ids is not None:
        queries, keys = segment_ids
        same = queries[:, start : start + c, None] == keys[:, None, first : first + s]
        allowed.append(same[:, None, None])
    if not allowed:
        return logits
    return jnp.where(functools.reduce(jnp.logical_and, allowed), logits, MASKED)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attend(q, k, v, segment_ids, causal, window):
    return _forward(q, k, v, segment_ids, causal, window)[0]


def _forward(q, k, v, segment_ids, causal, window):
    b, kv_heads, groups, t, d = q.shape
    outs, log_sums = [], []
    for start, end, first, last in blocks(t, k.shape[2], causal, window):
        logits = _logits(q[:, :, :, start:end], k[:, :, first:last], segment_ids, start, first, causal, window)
        top = jnp.max(logits, axis=-1, keepdims=True)
        exponentials = jnp.exp(logits - top)
        total = jnp.sum(exponentials, axis=-1, keepdims=True)
        flat = exponentials.astype(v.dtype).reshape(b, kv_heads, groups * (end - start), last - first)
        out = _weighted_rows(flat, v[:, :, first:last]).reshape(b, kv_heads, groups, end - start, d)
        outs.append((out / total).astype(q.dtype))
        log_sums.append(top + jnp.log(total))
    out = outs[0] if len(outs) == 1 else jnp.concatenate(outs, axis=3)
    return out, (q, k, v, segment_ids, out, log_sums)


def _backward(causal, window, saved, g):
    """Probabilities are computed again from the saved log-sums (Dao et al. 2022, appendix B.4)."""
    q, k, v, segment_ids, out, log_sums = saved
    b, kv_heads, groups, t, d = q.shape
    delta = jnp.sum(g.astype(jnp.float32) * out.astype(jnp.float32), axis=-1, keepdims=True)
    d_q, d_k, d_v = [], jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    for (start, end, first, last), log_sum in zip(blocks(t, k.shape[2], causal, window), log_sums):
        rows = (b, kv_heads, groups * (end - start))
        query, keys, values = q[:, :, :, start:end], k[:, :, first:last], v[:, :, first:last]
        g_block = g[:, :, :, start:end].reshape(*rows, d)
        p = jnp.exp(_logits(query, keys, segment_ids, start, first, causal, window) - log_sum)
        d_p = _rows_by_rows(g_block, values, jnp.float32).reshape(p.shape)
        d_logits = (p * (d_p - delta[:, :, :, start:end])).astype(q.dtype).reshape(*rows, last - first)
        p = p.astype(q.dtype).reshape(*rows, last - first)
        d_q.append(_weighted_rows(d_logits, keys).reshape(query.shape))
        columns = (((2,), (2,)), _BATCH)
        new_k = lax.dot_general(d_logits, query.reshape(*rows, d), columns, preferred_element_type=jnp.float32)
        new_v = lax.dot_general(p, g_block, columns, preferred_element_type=jnp.float32)
        d_k = d_k.at[:, :, first:last].add(new_k)
        d_v = d_v.at[:, :, first:last].add(new_v)
    d_q = d_q[0] if len(d_q) == 1 else jnp.concatenate(d_q, axis=3)
    return d_q, d_k.astype(k.dtype), d_v.astype(v.dtype), None


_attend.defvjp(_forward, _backward)
