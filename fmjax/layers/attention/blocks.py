"""Exact attention in plain XLA, a block of queries and a block of keys at a time.

The places of queries in the row may be known at run time only, as on a device that holds a part of a row: the blocks of
keys that a block of queries needs are counted then, and no others are read. No array is larger than its inputs or
[rows * heads, block, block] (Dao et al. 2022, https://arxiv.org/abs/2205.14135, algorithms 1 and 4).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fmjax.layers.attention.reference import MASKED
from fmjax.layers.derivatives import with_backward
from fmjax.layers.padding import pad

BLOCK = 256, 256
"""Queries and keys of a block."""


def attend(q, k, v, index, *, segment_ids, causal, window, scale, mask=None, order=None, block=None):
    """As `fmjax.layers.attention.reference`, for queries anywhere in the row.

    Args:
      q: [B, T, H, D].
      k, v: [B, S, K, D], the row's keys and values in their order.
      index: int32 [T], where in the row each query is; fast where neighbours are neighbours.
      segment_ids: None, or the pair int32 ([B, T], [B, S]).
      order: int [shards, T], each row what `index` is on one device, for who counts what a compiled program does
        (`fmjax.planning`); None where that is not known.
      block: (queries, keys) of a block; None is BLOCK.
    """
    b, t, h, d = q.shape
    s, kv_heads = k.shape[1:3]
    ids = segment_ids or (jnp.ones((b, t), jnp.int32), jnp.ones((b, s), jnp.int32))
    rows, columns = block or BLOCK
    rows, columns = min(rows, max(1, t // 2)), min(columns, s)
    q = (q * scale).astype(q.dtype).reshape(b, t, kv_heads, h // kv_heads, d).transpose(0, 2, 3, 1, 4)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    mask = _Mask(causal, window, s, rows, columns, order, mask)
    index, query_ids = pad(index, 0, rows, mode="edge"), pad(ids[0], 1, rows)
    k, v, key_ids = pad(k, 2, columns), pad(v, 2, columns), pad(ids[1], 1, columns)
    out = _attend(pad(q, 3, rows), k, v, index, query_ids, key_ids, mask=mask)[:, :, :, :t]
    return out.transpose(0, 3, 1, 2, 4).reshape(b, t, h, d)


class _Mask:
    """Which keys a query may attend, and which blocks of them a block of queries needs."""

    def __init__(self, causal: bool, window: int | None, keys: int, rows: int, columns: int, order=None, rule=None):
        self.causal, self.window, self.keys, self.rows, self.columns = causal, window, keys, rows, columns
        self.rule = rule
        self._is_one = keys <= columns
        self._scopes = ["key_blocks"] * (1 if self._is_one else 3) if order is None else self._trips(order)

    def range(self, index, xp=jnp):
        """(first block of keys, end) for queries at `index` [..., rows]; `xp` is NumPy or `jax.numpy`."""
        low, high = 0, self.keys
        if self.window is not None:
            low = xp.maximum(xp.min(index, axis=-1) - self.window + 1, 0)
            high = xp.max(index, axis=-1) + self.window
        if self.causal:
            high = xp.max(index, axis=-1) + 1
        return low // self.columns, -(-xp.minimum(high, self.keys) // self.columns)

    def whole(self, index, xp=jnp, query_ids=None, key_ids=None):
        """(first block of keys, end) of neighbouring ones, within `range`, that need no mask: all queries at `index`
        [..., rows] may attend all of their keys.

        query_ids, key_ids: int32 [B, rows] and [B, S] of the queries at `index` [rows]; None is one segment.
        """
        block = xp.arange(-(-self.keys // self.columns))
        low, high = block * self.columns, (block + 1) * self.columns - 1
        nearest, farthest = (f(index, axis=-1)[..., None] for f in (xp.min, xp.max))
        allowed = xp.broadcast_to((high < self.keys) & (self.rule is None), (*index.shape[:-1], len(block)))
        if self.causal:
            allowed = allowed & (high <= nearest)
        if self.window is not None:
            allowed = allowed & (farthest - low < self.window) & (self.causal | (high - nearest < self.window))
        if query_ids is not None:
            own = query_ids[:, :1]
            alike = xp.all(key_ids.reshape(len(own), -1, self.columns) == own[..., None], axis=(0, 2))
            allowed = allowed & xp.all(query_ids == own) & alike
        first = xp.where(xp.any(allowed, axis=-1), xp.argmax(allowed, axis=-1), self.range(index, xp)[0])
        after = (block >= first[..., None]) & ~allowed
        return first, xp.where(xp.any(after, axis=-1), xp.argmax(after, axis=-1), len(block))

    def loop(self, index, query_ids, key_ids, body, start):
        """body(block, carry, masked) over the blocks of keys that the queries at `index` need."""
        bounds = self._bounds(index, jnp, query_ids, key_ids)
        for i, scope in enumerate(self._scopes):
            with jax.named_scope(scope):
                add = functools.partial(body, masked=i != 1)
                start = lax.fori_loop(bounds[i], bounds[i + 1], add, start)
        return start

    def _bounds(self, index, xp=jnp, query_ids=None, key_ids=None):
        """Where the loops over blocks of keys begin and end: the middle one of three without a mask. One block alone
        does not change from turn to turn, so XLA would compute it ahead of each loop, of those that never run too."""
        first, end = self.range(index, xp)
        return (first, end) if self._is_one else (first, *self.whole(index, xp, query_ids, key_ids), end)

    def _trips(self, order: np.ndarray) -> list[str]:
        """The scopes that tell `fmjax.plan` how often each loop runs, which XLA cannot know: blocks of keys in blocks
        of queries, of all devices. Segments move some from one loop to another."""
        blocks = np.pad(order, ((0, 0), (0, -order.shape[1] % self.rows)), mode="edge").reshape(-1, self.rows)
        bounds = [np.broadcast_to(x, len(blocks)) for x in self._bounds(blocks, np)]
        trips = [np.maximum(end - first, 0).sum() for first, end in zip(bounds, bounds[1:])]
        return [f"trips_{count}_in_{len(blocks)}" for count in trips]

    def allowed(self, block, index, query_ids, key_ids, masked):
        """bool [B, 1, 1, rows, columns], or None where all is allowed."""
        if not masked:
            return None
        key_ids = _cut(key_ids, block, self.columns, 1)
        key = block * self.columns + lax.iota(jnp.int32, self.columns)
        ahead = index[:, None] - key[None, :]
        allowed = jnp.broadcast_to(key < self.keys, ahead.shape)
        if self.causal:
            allowed &= ahead >= 0
        if self.window is not None:
            allowed &= (ahead if self.causal else abs(ahead)) < self.window
        if self.rule is not None:
            allowed &= self.rule.allowed(index[:, None], key[None, :])
        return (allowed & (query_ids[:, :, None] == key_ids[:, None, :]))[:, None, None]


# q is [B, K, G, T, D] for K key-value heads with G query heads each, k and v are [B, K, S, D], all in whole blocks. In
# the products the G heads of a group are further rows of one matrix.


def _product(x, y, contract_x, contract_y):
    """Batched over the first two axes, accumulated in float32."""
    dimensions = (((contract_x,), (contract_y,)), ((0, 1), (0, 1)))
    return lax.dot_general(x, y, dimensions, preferred_element_type=jnp.float32)


def _logits(q, turned_k, allowed):
    """Masked logits, float32 [B, K, G * rows, columns], of a block of queries [B, K, G * rows, D] and one of keys,
    [B, K, D, columns]: what a CPU multiplies fastest."""
    logits = _product(q, turned_k, 3, 2)
    if allowed is None:
        return logits
    b, kv_heads, _, columns = logits.shape
    by_group = logits.reshape(b, kv_heads, -1, allowed.shape[3], columns)
    return jnp.where(allowed, by_group, MASKED).reshape(logits.shape)


def _cut(x, block, size, axis):
    return lax.dynamic_slice_in_dim(x, block * size, size, axis)


def _query_blocks(x, rows):
    """[B, K, G, T, D] to [T / rows, B, K, G * rows, D]."""
    b, kv_heads, groups, t, d = x.shape
    x = x.reshape(b, kv_heads, groups, t // rows, rows, d).transpose(3, 0, 1, 2, 4, 5)
    return x.reshape(t // rows, b, kv_heads, groups * rows, d)


def _from_blocks(x, rows):
    blocks, b, kv_heads, _, d = x.shape
    x = x.reshape(blocks, b, kv_heads, -1, rows, d).transpose(1, 2, 3, 0, 4, 5)
    return x.reshape(b, kv_heads, x.shape[2], blocks * rows, d)


def _attend(*args, mask):
    own = (functools.partial(function, mask=mask) for function in (_forward, _backward, _tangent))
    return with_backward(*own)(*args)[0]


def _placed(index, query_ids, rows):
    """Index [blocks, rows] and segment ids [blocks, B, rows] of the blocks of queries."""
    return index.reshape(-1, rows), query_ids.reshape(query_ids.shape[0], -1, rows).swapaxes(0, 1)


def _forward(q, k, v, index, query_ids, key_ids, mask):
    """(output, logarithms of the softmax's denominators as of `_query_blocks`)."""
    turned_k = k.swapaxes(2, 3)

    def of_queries(block):
        query, place, own_ids = block

        def add(j, carry, masked):
            top, total, out = carry
            allowed = mask.allowed(j, place, own_ids, key_ids, masked)
            logits = _logits(query, _cut(turned_k, j, mask.columns, 3), allowed)
            new_top = jnp.maximum(top, jnp.max(logits, axis=-1, keepdims=True))
            weights, old = jnp.exp(logits - new_top), jnp.exp(top - new_top)
            new = _product(weights.astype(v.dtype), _cut(v, j, mask.columns, 2), 3, 2)
            return new_top, total * old + jnp.sum(weights, axis=-1, keepdims=True), out * old + new

        column = (*query.shape[:3], 1)
        empty = (jnp.full(column, MASKED), jnp.zeros(column), jnp.zeros(query.shape, jnp.float32))
        top, total, out = mask.loop(place, own_ids, key_ids, add, empty)
        return (out / total).astype(q.dtype), top + jnp.log(total)

    out, log_sums = lax.map(of_queries, (_query_blocks(q, mask.rows), *_placed(index, query_ids, mask.rows)))
    return _from_blocks(out, mask.rows), log_sums


def _backward(args, outs, cotangents, mask):
    """Gradients to q, k and v; probabilities are computed again from the log-sums."""
    (q, k, v, index, query_ids, key_ids), (out, log_sums), (g, g_log_sums) = args, outs, cotangents
    turned_k, turned_v = k.swapaxes(2, 3), v.swapaxes(2, 3)
    delta = jnp.sum(g.astype(jnp.float32) * out.astype(jnp.float32), axis=-1, keepdims=True)

    def of_queries(gradients, block):
        query, g_block, delta, log_sum, place, own_ids = block

        def add(j, carry, masked):
            d_query, d_k, d_v = carry
            keys = _cut(k, j, mask.columns, 2)
            across, values = (_cut(x, j, mask.columns, 3) for x in (turned_k, turned_v))
            p = jnp.exp(_logits(query, across, mask.allowed(j, place, own_ids, key_ids, masked)) - log_sum)
            d_logits = (p * (_product(g_block, values, 3, 2) - delta)).astype(q.dtype)
            new_k, new_v = _product(d_logits, query, 2, 2), _product(p.astype(q.dtype), g_block, 2, 2)
            put = lambda total, new: lax.dynamic_update_slice_in_dim(
                total, _cut(total, j, mask.columns, 2) + new, j * mask.columns, 2
            )
            return d_query + _product(d_logits, keys, 3, 2), put(d_k, new_k), put(d_v, new_v)

        start = (jnp.zeros(query.shape, jnp.float32), *gradients)
        d_query, *gradients = mask.loop(place, own_ids, key_ids, add, start)
        return tuple(gradients), d_query.astype(q.dtype)

    query, g_block, delta = (_query_blocks(x, mask.rows) for x in (q, g, delta))
    blocks = query, g_block, delta - g_log_sums
    zeros = (jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32))
    (d_k, d_v), d_q = lax.scan(of_queries, zeros, (*blocks, log_sums, *_placed(index, query_ids, mask.rows)))
    return _from_blocks(d_q, mask.rows), d_k.astype(k.dtype), d_v.astype(v.dtype)


def _tangent(args, outs, tangents, mask):
    """Of what `_forward` returns; a loop whose length is known at run time only has no transpose to take it from."""
    (q, k, v, index, query_ids, key_ids), (out, log_sums), (d_q, d_k, d_v) = args, outs, tangents
    turned_k, turned_d_k = k.swapaxes(2, 3), d_k.swapaxes(2, 3)

    def of_queries(block):
        query, d_query, out, log_sum, place, own_ids = block

        def add(j, carry, masked):
            d_log_sum, d_out = carry
            values, d_values = (_cut(x, j, mask.columns, 2) for x in (v, d_v))
            keys, d_keys = (_cut(x, j, mask.columns, 3) for x in (turned_k, turned_d_k))
            p = jnp.exp(_logits(query, keys, mask.allowed(j, place, own_ids, key_ids, masked)) - log_sum)
            change = p * (_product(d_query, keys, 3, 2) + _product(query, d_keys, 3, 2))
            new = _product(change.astype(v.dtype), values, 3, 2) + _product(p.astype(v.dtype), d_values, 3, 2)
            return d_log_sum + jnp.sum(change, axis=-1, keepdims=True), d_out + new

        start = jnp.zeros(log_sum.shape), jnp.zeros(query.shape)
        d_log_sum, d_out = mask.loop(place, own_ids, key_ids, add, start)
        return (d_out - d_log_sum * out).astype(out.dtype), d_log_sum

    blocks = (_query_blocks(x, mask.rows) for x in (q, d_q, out))
    d_out, d_log_sums = lax.map(of_queries, (*blocks, log_sums, *_placed(index, query_ids, mask.rows)))
    return _from_blocks(d_out, mask.rows), d_log_sums
