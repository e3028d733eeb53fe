"""What attention computes, literally: masks, and the definition with all logits at once. Backends lean on it."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

# Finite, so that a row with nothing to attend gives numbers rather than NaN.
MASKED = -1e30


class Forked(NamedTuple):
    """Segments of packed rows that fork: a beginning, and branches that attend it and themselves, not each other.

    Attributes:
      segment_ids: int32 [B, T], 0 = padding.
      branches: int32 [B, T]; 0 is the segment's beginning, which stands before its branches 1, 2, ...
      positions: int32 [B, T], in which every branch continues its beginning.
    """

    segment_ids: jax.Array
    branches: jax.Array
    positions: jax.Array


class Ordered(NamedTuple):
    """Segments whose tokens stand in an order of their own: a causal mask allows what is not later by it.

    Attributes:
      segment_ids: as for `attention`, or None.
      order: int32 [B, T]. Tokens of one number see each other, whichever comes first: a row of zeros is attended whole,
        one that begins with zeros has a prefix that is, and 0, 1, 2, ... is the mask by index.
    """

    segment_ids: jax.Array | None
    order: jax.Array


def attention_mask(
    t: int, s: int, *, segment_ids, positions, causal: bool, window: int | None, branches=None, mask=None
) -> jax.Array | None:
    """Which keys each query may attend: bool [B or 1, T, S], or None for all. `branches`: a pair as the others."""
    allowed = []
    if segment_ids is not None:
        allowed.append(segment_ids[0][:, :, None] == segment_ids[1][:, None, :])
    if branches is not None:
        query, key = branches[0][:, :, None], branches[1][:, None, :]
        allowed.append((key == 0) | (key == query))
    if causal or window is not None or mask is not None:
        if positions is None:
            query, key = lax.iota(jnp.int32, t)[None, :, None], lax.iota(jnp.int32, s)[None, None, :]
        else:
            query, key = positions[0][:, :, None], positions[1][:, None, :]
        if causal:
            allowed.append(key <= query)
        if window is not None:
            allowed.append(query - key < window)
            if not causal:
                allowed.append(key - query < window)
        if mask is not None:
            allowed.append(mask.allowed(query, key))
    return functools.reduce(jnp.logical_and, allowed) if allowed else None


def reference(
    q, k, v, *, segment_ids, positions, causal, window, scale, dropout_rate=0.0, dropout_key=None, branches=None,
    mask=None,
):  # fmt: skip
    """The definition, with the whole [B, K, G, T, S] array of logits. Arguments as `attention`, pairs resolved."""
    b, t, h, d = q.shape
    kv_heads = k.shape[2]
    grouped = q.reshape(b, t, kv_heads, h // kv_heads, d)
    logits = jnp.einsum("btkgd,bskd->bkgts", grouped, k, preferred_element_type=jnp.float32) * scale
    masks = dict(segment_ids=segment_ids, branches=branches, positions=positions, causal=causal, window=window)
    allowed = attention_mask(t, k.shape[1], mask=mask, **masks)
    if allowed is not None:
        logits = jnp.where(allowed[:, None, None], logits, MASKED)
    probabilities = jax.nn.softmax(logits, axis=-1)
    if dropout_rate > 0.0:
        keep = jax.random.bernoulli(dropout_key, 1.0 - dropout_rate, probabilities.shape)
        probabilities = jnp.where(keep, probabilities / (1.0 - dropout_rate), 0.0)
    out = jnp.einsum("bkgts,bskd->btkgd", probabilities.astype(v.dtype), v)
    return out.reshape(b, t, h, d)
