"""Attention for CPUs: a few rows at a time, blocks of queries against only the keys they can reach.

XLA's CPU backend does not skip masked work and is slow where matrix products have axes to be moved, so heads are moved
to the front once, and each block of queries is multiplied with the slice of keys that a causal mask or window leaves.
A loop takes as many rows at a time as have their logits in the caches of the cores: all rows at once would send every
array of logits through main memory several times, which takes longer than the products.

Rows so long that a block's logits are in no cache go through blocks of keys as well (`blocks`), which takes
memory by their length, not its square. Inside `jax.shard_map` that path needs `check_vma=False`.
"""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fmjax.layers.attention.blocks import attend
from fmjax.layers.attention.reference import MASKED
from fmjax.layers.derivatives import with_backward

MIN_BLOCK = 128
MAX_BLOCKS = 16  # blocks are unrolled: bounds the size of the program for long sequences
LOGITS_BYTES = 3 * 2**19  # of a block's logits in one core's cache
MAX_PARTS = 4  # of a turn of the loop: unrolled too
LONG = 2048  # the square root of the pairs of a query and a key in a row from which both go in blocks
LONG_BLOCK = 512  # keys of a block; queries are half as many where a group has several, further rows of one matrix
LONG_LOGITS_BYTES = 2**24  # of the blocks of all rows that go together, if more than one does


def unsupported(q, k, *, segment_ids, positions, causal, window, mask, dropout_rate) -> str | None:
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


def run(q, k, v, *, segment_ids, positions, causal, window, scale, mask=None):
    """Arguments as `fmjax.layers.attention.reference`, without positions."""
    if q.shape[1] * k.shape[1] >= LONG**2:
        return _attend_long(q, k, v, segment_ids, causal=causal, window=window, scale=scale, mask=mask)
    return _attend((q * scale).astype(q.dtype), k, v, segment_ids, causal, window, mask)


def _attend_long(q, k, v, segment_ids, **options):
    b, t, h, _ = q.shape
    index = np.arange(t)
    queries = LONG_BLOCK // min(2, h // k.shape[2])

    def rows(q, k, v, segment_ids):
        place = jnp.asarray(index, jnp.int32)
        own = dict(segment_ids=segment_ids, order=index[None], block=(queries, LONG_BLOCK))
        return attend(q, k, v, place, **own, **options)

    size = _divisor(b, LONG_LOGITS_BYTES // (4 * h * LONG_BLOCK**2))
    return _in_turns(rows, (q, k, v, segment_ids), size)


# Inside, q is [N, G, T, D] for the N = b K key-value heads of b rows with G = H / K query heads each, k and v are
# [N, S, D], and segment ids [N, T] and [N, S]. In the products the G heads of a group are further rows of one matrix.


def _queries_first(q, kv_heads: int):
    """[b, T, H, D] to [N, G, T, D]."""
    b, t, h, d = q.shape
    q = q.reshape(b, t, kv_heads, h // kv_heads, d).transpose(0, 2, 3, 1, 4)
    return q.reshape(b * kv_heads, h // kv_heads, t, d)


def _keys_first(k):
    """[b, S, K, D] to [N, S, D]."""
    return k.swapaxes(1, 2).reshape(-1, k.shape[1], k.shape[3])


def _queries_back(q, b: int):
    """[N, G, T, D] to [b, T, H, D]."""
    n, groups, t, d = q.shape
    return q.reshape(b, n // b, groups, t, d).transpose(0, 3, 1, 2, 4).reshape(b, t, n // b * groups, d)


def _keys_back(k, b: int):
    """[N, S, D] to [b, S, K, D]."""
    return k.reshape(b, -1, *k.shape[1:]).swapaxes(1, 2)


_BATCH = ((0,), (0,))


def _rows_by_rows(x, y):
    """float32 [N, A, B] from [N, A, D], [N, B, D]."""
    return lax.dot_general(x, y, (((2,), (2,)), _BATCH), preferred_element_type=jnp.float32)


def _weighted_rows(x, y, dtype=None):
    """[N, A, D] from [N, A, B], [N, B, D]."""
    return lax.dot_general(x, y, (((2,), (1,)), _BATCH), preferred_element_type=dtype or y.dtype)


def _in_parts(function, arrays, causal: bool, window: int | None, mask):
    """function(*arrays), as many rows at a time as LOGITS_BYTES leaves; the first two arrays are queries and keys.

    What is computed of so few rows is too little for XLA to divide among cores, so each turn of the loop has a part for
    every core, none of which depends on another.
    """
    q, k = arrays[:2]
    b, t, h, _ = q.shape
    pairs = max((end - start) * (last - first) for start, end, first, last in blocks(t, k.shape[1], causal, window))
    size = _divisor(b, LOGITS_BYTES // (4 * h * pairs))
    at_once = _divisor(b // size, _num_cores())

    def turn(rows):
        parts = [jax.tree.map(lambda x: x[i * size : (i + 1) * size], rows) for i in range(at_once)]
        found = [function(*part) for part in parts]
        return found[0] if at_once == 1 else jax.tree.map(lambda *x: jnp.concatenate(x), *found)

    return _in_turns(lambda *rows: turn(rows), arrays, size * at_once)


def _in_turns(function, arrays, size: int):
    """function(*arrays), `size` rows at a time."""
    b = arrays[0].shape[0]
    if size == b:
        return function(*arrays)
    rows = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), arrays)
    return jax.tree.map(lambda x: x.reshape(b, *x.shape[2:]), lax.map(lambda part: function(*part), rows))


def _divisor(n: int, largest: int) -> int:
    """The largest divisor of n that is at most `largest`, or 1."""
    return next(size for size in range(max(1, min(n, largest)), 0, -1) if n % size == 0)


def _num_cores() -> int:
    """Cores that this process may use, as far as unrolled parts of a program for each are sensible."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MAX_PARTS)


def _ids_of_heads(segment_ids, kv_heads: int):
    """[b, T], [b, S] to [N, T], [N, S]."""
    return segment_ids and tuple(jnp.repeat(ids, kv_heads, axis=0) for ids in segment_ids)


def _allowed(segment_ids, queries, keys, causal, window, mask):
    """Which keys of a block each query of a block may attend: bool [N or 1, c, s], or None for all.

    Args:
      segment_ids: None, or those of all queries and of all keys.
      queries, keys: start and end of the block's queries, and of its keys.
    """
    query = lax.broadcasted_iota(jnp.int32, (1, queries[1] - queries[0], 1), 1) + queries[0]
    key = lax.broadcasted_iota(jnp.int32, (1, 1, keys[1] - keys[0]), 2) + keys[0]
    ahead = query - key
    allowed = []
    if causal:
        allowed.append(ahead >= 0)
    if window is not None:
        allowed.append((ahead if causal else abs(ahead)) < window)
    if mask is not None:
        allowed.append(mask.allowed(query, key))
    if segment_ids is not None:
        own, other = (ids[:, slice(*part)] for ids, part in zip(segment_ids, (queries, keys)))
        allowed.append(own[:, :, None] == other[:, None, :])
    return functools.reduce(jnp.logical_and, allowed) if allowed else None


def _attend(q, k, v, segment_ids, causal, window, mask):
    return _function(causal, window, mask)(q, k, v, *(segment_ids or (None, None)))[0]


@functools.lru_cache(maxsize=None)
def _function(causal, window, mask):
    """(q, k, v, ids of queries, ids of keys) -> what `_forward_part` returns, with `_backward_part` as its gradient."""
    options = dict(causal=causal, window=window, mask=mask)

    def forward(q, k, v, *ids):
        ids = None if ids[0] is None else ids
        return _in_parts(functools.partial(_forward_part, **options), (q, k, v, ids), **options)

    def backward(args, outs, cotangents):
        q, k, v, *ids = args
        arrays = q, k, v, None if ids[0] is None else tuple(ids), *outs, *cotangents
        return _in_parts(functools.partial(_backward_part, **options), arrays, **options)

    return with_backward(forward, backward)


def _forward_part(q, k, v, segment_ids, causal, window, mask):
    """(output [b, T, H, D], logarithms of the softmax's denominators [b, K, G, T]) of b rows."""
    b, t, _, d = q.shape
    s, kv_heads = k.shape[1:3]
    q, k, v = _queries_first(q, kv_heads), _keys_first(k), _keys_first(v)
    segment_ids = _ids_of_heads(segment_ids, kv_heads)
    n, groups = q.shape[:2]
    outs, log_sums = [], []
    for start, end, first, last in blocks(t, s, causal, window):
        query = q[:, :, start:end].reshape(n, -1, d)
        logits = _rows_by_rows(query, k[:, first:last]).reshape(n, groups, end - start, last - first)
        allowed = _allowed(segment_ids, (start, end), (first, last), causal, window, mask)
        if allowed is not None:
            logits = jnp.where(allowed[:, None], logits, MASKED)
        top = jnp.max(logits, axis=-1, keepdims=True)
        exponentials = jnp.exp(logits - top)
        total = jnp.sum(exponentials, axis=-1, keepdims=True)
        flat = exponentials.astype(v.dtype).reshape(n, -1, last - first)
        out = _weighted_rows(flat, v[:, first:last]).reshape(n, groups, end - start, d)
        outs.append((out / total).astype(q.dtype))
        log_sums.append((top + jnp.log(total))[..., 0])
    log_sums = jnp.concatenate(log_sums, axis=2).reshape(b, kv_heads, groups, t)
    return _queries_back(jnp.concatenate(outs, axis=2), b), log_sums


def _backward_part(q, k, v, segment_ids, out, log_sums, g, g_log_sums, causal, window, mask):
    """Gradients to q, k and v; probabilities are computed again from the log-sums (Dao et al. 2022, appendix B.4).
    `g` and `g_log_sums` are the gradients to `out` and `log_sums`.

    Logits are turned here, a row a key and a column a query: then every product has its factors in the order in which
    XLA multiplies them without a copy, the queries' gradient after one of the keys.
    """
    b, t, _, d = q.shape
    s, kv_heads = k.shape[1:3]
    delta = jnp.sum(g.astype(jnp.float32) * out.astype(jnp.float32), axis=-1, keepdims=True)
    q, g, delta = (_queries_first(x, kv_heads) for x in (q, g, delta))
    k, v, segment_ids = _keys_first(k), _keys_first(v), _ids_of_heads(segment_ids, kv_heads)
    n, groups = q.shape[:2]
    delta, log_sums = delta[..., 0] - g_log_sums.reshape(n, groups, t), log_sums.reshape(n, groups, t)
    turned_k = k.swapaxes(1, 2)
    d_q, d_k, d_v = [], jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    for start, end, first, last in blocks(t, s, causal, window):
        query, g_block = (x[:, :, start:end].reshape(n, -1, d) for x in (q, g))
        log_sum, delta_block = (x[:, None, :, start:end] for x in (log_sums, delta))
        shape = (n, last - first, groups, end - start)
        logits = _rows_by_rows(k[:, first:last], query).reshape(shape)
        allowed = _allowed(segment_ids, (start, end), (first, last), causal, window, mask)
        if allowed is not None:
            logits = jnp.where(allowed.swapaxes(1, 2)[:, :, None], logits, MASKED)
        p = jnp.exp(logits - log_sum)
        d_logits = p * (_rows_by_rows(v[:, first:last], g_block).reshape(shape) - delta_block)
        p, d_logits = (x.astype(q.dtype).reshape(n, last - first, -1) for x in (p, d_logits))
        d_q.append(_weighted_rows(turned_k[:, :, first:last], d_logits).reshape(n, d, groups, end - start))
        d_k = d_k.at[:, first:last].add(_weighted_rows(d_logits, query, jnp.float32))
        d_v = d_v.at[:, first:last].add(_weighted_rows(p, g_block, jnp.float32))
    d_q = jnp.concatenate(d_q, axis=-1).transpose(0, 2, 3, 1)
    return _queries_back(d_q, b), _keys_back(d_k.astype(k.dtype), b), _keys_back(d_v.astype(v.dtype), b)
