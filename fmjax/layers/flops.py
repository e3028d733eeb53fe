"""The FLOPs a model needs: the one formula behind MFU, plans and scaling fits."""

import numpy as np

from fmjax.layers.mlp import GATED


def transformer_flops(config, *, vocab_size: int, sequence_length: int, memory_length: int = 0) -> float:
    """FLOPs of one row of `sequence_length` tokens forward and backward through a stack and an output head.

    Convention:
      - only matrix products count, 2 FLOPs for a multiplication and an addition; norms, activations, softmax, rotary
        embedding and the optimizer do not;
      - embeddings are looked up, for free; the output head counts;
      - attention counts the (query, key) pairs that its mask allows, so a causal mask counts half (exactly
        T (T + 1) / 2 pairs) and a window fewer; packing is not looked at, the row counts as one document;
      - the backward pass costs twice the forward pass; what remat computes again does not count.

    Args:
      config: a `fmjax.layers.transformer_config.TransformerConfig`.
      vocab_size: columns of the output head; 0 for a model without one.
      sequence_length: T.
      memory_length: tokens that each block's cross attention attends to, where it has one.
    """
    t = sequence_length
    heads, kv_heads = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    products = config.hidden_size * (2 * heads + 2 * kv_heads)  # query and out, key and value
    gated = config.activation in GATED
    products += (3 if gated else 2) * config.hidden_size * config.intermediate_size
    kinds = [config.kind(layer) for layer in range(config.num_layers)]
    pairs = sum(allowed_pairs(t, causal=config.causal, window=kind.window, mask=kind.mask) for kind in kinds)
    forward = config.num_layers * 2 * t * products + 2 * 2 * pairs * heads  # q k^T, and probabilities times v
    if config.cross_attention:
        sides = 2 * t * config.hidden_size * 2 * heads + 2 * memory_length * config.hidden_size * 2 * kv_heads
        forward += config.num_layers * (sides + 2 * 2 * t * memory_length * heads)
    forward += 2 * t * config.hidden_size * vocab_size
    return float(3 * forward)


def allowed_pairs(length: int, *, causal: bool, window: int | None, mask=None) -> int:
    """How many (query, key) pairs an attention mask over `length` tokens allows."""
    if mask is not None:
        query, key = np.arange(length)[:, None], np.arange(length)[None]
        allowed = mask.allowed(query, key) & ((key <= query) | (not causal))
        return int((allowed & ((window is None) | (abs(query - key) < (window or 0)))).sum())
    width = length if window is None else min(window, length)
    # The first `width` queries see 1, 2, .. width keys at and before their own; all later ones see `width`.
    one_sided = width * (width + 1) // 2 + (length - width) * width
    return one_sided if causal else 2 * one_sided - length
