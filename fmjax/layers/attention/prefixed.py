"""Attention with keys and values in front that no token has: learned ones, which every query attends."""

import jax
import jax.numpy as jnp

from fmjax.layers.attention.reference import MASKED, Forked, Ordered, attention_mask


def prefixed_attention(q, k, v, prefix, *, segment_ids, causal: bool, window: int | None, mask, scale) -> jax.Array:
    """softmax(scale * q [K; k]^T) [V; v] of packed rows, with all logits at once.

    Args:
      q [B, T, H, D], k, v [B, T, K, D], segment_ids, causal, window, mask, scale: as for `attention`.
      prefix: (keys [N, K, D], values [N, K, D]), which queries of all segments attend.

    Returns: [B, T, H, D] in q's dtype. Logits and softmax are float32.
    """
    t, masks = q.shape[1], dict(causal=causal, window=window, mask=mask)
    if isinstance(segment_ids, Forked):
        ids, branches, positions = ((x, x) for x in segment_ids)
        allowed = attention_mask(t, t, segment_ids=ids, branches=branches, positions=positions, **masks)
    elif isinstance(segment_ids, Ordered):
        ids = None if segment_ids.segment_ids is None else (segment_ids.segment_ids,) * 2
        allowed = attention_mask(t, t, segment_ids=ids, positions=(segment_ids.order,) * 2, **masks)
    else:
        ids = None if segment_ids is None else (segment_ids, segment_ids)
        allowed = attention_mask(t, t, segment_ids=ids, positions=None, **masks)
    return attend_beside(q, k, v, prefix, jnp.ones((1, t, t), bool) if allowed is None else allowed, scale)


def attend_beside(q, k, v, prefix, allowed, scale) -> jax.Array:
    """As `prefixed_attention`, with the mask of the other keys given: bool [B or 1, T, S]."""
    b, t, h, d = q.shape
    kv_heads = k.shape[2]
    keys, values = (
        jnp.concatenate([jnp.broadcast_to(own.astype(x.dtype)[None], (b, *own.shape)), x], axis=1)
        for own, x in zip(prefix, (k, v))
    )
    allowed = jnp.concatenate([jnp.ones((*allowed.shape[:2], len(prefix[0])), bool), allowed], axis=2)
    grouped = q.reshape(b, t, kv_heads, h // kv_heads, d)
    logits = jnp.einsum("btkgd,bskd->bkgts", grouped, keys, preferred_element_type=jnp.float32)
    logits *= d**-0.5 if scale is None else scale
    weights = jax.nn.softmax(jnp.where(allowed[:, None, None], logits, MASKED), axis=-1)
    return jnp.einsum("bkgts,bskd->btkgd", weights.astype(v.dtype), values).reshape(b, t, h, d)


def in_front(entry: dict, allowed: jax.Array, prefix) -> tuple[dict, jax.Array]:
    """What a cache holds of a layer, and which of its slots a row's tokens may attend [B, T, S], with a prefix in
    front."""
    rows = entry["key"].shape[0]
    key, value = (jnp.broadcast_to(x[None], (rows, *x.shape)) for x in prefix)
    found = {
        "key": jnp.concatenate([key.transpose(0, 2, 3, 1).astype(entry["key"].dtype), entry["key"]], axis=3),
        "value": jnp.concatenate([value.swapaxes(1, 2).astype(entry["value"].dtype), entry["value"]], axis=2),
    }
    return found, jnp.concatenate([jnp.ones((*allowed.shape[:2], len(prefix[0])), bool), allowed], axis=2)
