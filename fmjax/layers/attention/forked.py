"""Causal attention of packed rows whose segments fork: a shared beginning, and branches that continue it side by side.

One forward pass over such a row computes what several rows with the same beginning would (the tree attention of Miao et
al. 2023, https://arxiv.org/abs/2305.09781, section 4.2, of trees that fork once). It is written for inference, in plain
XLA for every platform: blocks of queries against the keys that come before them.
"""

import jax.numpy as jnp
from jax import lax

from fmjax.layers.attention.reference import MASKED, Forked, attention_mask
from fmjax.parallel.platform import target_platform

# Queries of a block at least: on a CPU few, whose logits stay in the caches, and which leave out more keys after them.
BLOCK = {"cpu": 32}
DEFAULT_BLOCK = 128
MAX_BLOCKS = 16  # blocks are unrolled: bounds the size of the program for long sequences

_BATCH = ((0, 1), (0, 1))


def forked_attention(q, k, v, forked: Forked, *, window, scale):
    """Arguments as `fmjax.layers.attention.attention`, causal, with the scale resolved.

    Returns: [B, T, H, D] in q's dtype. Logits and softmax are float32.
    """
    b, t, h, d = q.shape
    kv_heads = k.shape[2]
    groups = h // kv_heads
    q = (q * scale).astype(q.dtype).reshape(b, t, kv_heads, groups, d).transpose(0, 2, 3, 1, 4)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    size = max(BLOCK.get(target_platform(), DEFAULT_BLOCK), -(-t // MAX_BLOCKS))
    outs = []
    for start in range(0, t, size):
        end = min(start + size, t)
        rows = q[:, :, :, start:end].reshape(b, kv_heads, -1, d)
        logits = lax.dot_general(rows, k[:, :, :end], (((3,), (3,)), _BATCH), preferred_element_type=jnp.float32)
        # Added rather than selected: XLA's CPU backend makes one loop of the sum and what follows.
        bias = jnp.where(_mask(forked, start, end, window), 0.0, MASKED)[:, None, None]
        logits = logits.reshape(b, kv_heads, groups, end - start, end) + bias
        weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
        flat = weights.astype(v.dtype).reshape(b, kv_heads, -1, end)
        out = lax.dot_general(flat, v[:, :, :end], (((3,), (2,)), _BATCH), preferred_element_type=v.dtype)
        out = out.reshape(b, kv_heads, groups, end - start, d) / jnp.sum(weights, axis=-1, keepdims=True)
        outs.append(out.astype(q.dtype))
    out = outs[0] if len(outs) == 1 else jnp.concatenate(outs, axis=3)
    return out.transpose(0, 3, 1, 2, 4).reshape(b, t, h, d)


def _mask(forked: Forked, start: int, end: int, window):
    """Which of the keys before `end` the queries `start` to `end` may attend: bool [B, end - start, end]."""
    segment_ids, branches, positions = ((x[:, start:end], x[:, :end]) for x in forked)
    # Within a segment and branch the order of positions is that of the row.
    return attention_mask(
        end - start, end, segment_ids=segment_ids, branches=branches, positions=positions, causal=True, window=window
    )
