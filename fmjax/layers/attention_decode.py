"""Attention of a few new tokens a row over what a cache holds: the memory's bandwidth is what it costs."""

import jax
import jax.numpy as jnp

from fmjax.layers.attention import MASKED


def decode_attention(q: jax.Array, key: jax.Array, value: jax.Array, allowed: jax.Array, *, scale=None) -> jax.Array:
    """softmax(scale * q k^T) v over the allowed slots.

    Args:
      q: [B, T, H, D].
      key, value: [B, K, S, D], where K divides H: query head h reads key-value head h // (H // K).
      allowed: bool [B, S], for all of a row's queries. A row without any gets a finite value without meaning.
      scale: None is 1 / sqrt(D).

    Returns: [B, T, H, D] in q's dtype. Logits and softmax are float32.
    """
    b, t, h, d = q.shape
    kv_heads = key.shape[1]
    rows = q.reshape(b, t, kv_heads, h // kv_heads, d).transpose(0, 2, 3, 1, 4).reshape(b, kv_heads, -1, d)
    scale = d**-0.5 if scale is None else scale
    logits = jnp.einsum("bkrd,bksd->bkrs", rows, key.astype(q.dtype), preferred_element_type=jnp.float32) * scale
    logits = jnp.where(allowed[:, None, None], logits, MASKED)
    probabilities = jax.nn.softmax(logits, axis=-1).astype(q.dtype)
    out = jnp.einsum("bkrs,bksd->bkrd", probabilities, value.astype(q.dtype))
    return out.reshape(b, kv_heads, h // kv_heads, t, d).transpose(0, 3, 1, 2, 4).reshape(b, t, h, d)
