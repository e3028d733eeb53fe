"""A decoder small enough to check by eye, with the protocol of fmjax/inference/decoding.py and nothing that it leaves
open: no `features`, no `unrolled`."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


class TinyDecoder(nn.Module):
    """Two attention layers with learned positions; a row of the cache holds keys and values and how many there are."""

    vocab_size: int = 13
    max_length: int = 48
    width: int = 16
    num_layers: int = 2

    def init_cache(self, batch_size, max_length):
        zeros = jnp.zeros((batch_size, self.num_layers, max_length, self.width))
        return {"keys": zeros, "values": zeros, "lengths": jnp.zeros(batch_size, jnp.int32)}

    @nn.compact
    def __call__(self, tokens, segment_ids=None, positions=None, train=False, cache=None, slots=None):
        batch, length = tokens.shape
        if segment_ids is None:
            segment_ids = jnp.ones_like(tokens)
        if cache is not None and slots is None:  # one more token a row
            positions = cache["lengths"][:, None]
            slots = jnp.broadcast_to(jnp.arange(batch)[:, None], tokens.shape)
        elif positions is None:
            positions = jnp.broadcast_to(jnp.arange(length), tokens.shape)
        if cache is not None:
            slots = jnp.where(segment_ids > 0, slots, cache["lengths"].shape[0])  # out of range: padding is dropped
            held = cache["lengths"].at[slots].set(0, mode="drop") if length > 1 else cache["lengths"]
            held = held.at[slots].max(positions + 1, mode="drop")
        normal = nn.initializers.normal(1.0)
        x = nn.Embed(self.vocab_size, self.width, name="tokens", embedding_init=normal)(tokens)
        x += nn.Embed(self.max_length, self.width, name="positions", embedding_init=normal)(positions)
        layers = []
        for layer in range(self.num_layers):
            q, k, v = (nn.Dense(self.width, name=f"{n}{layer}")(x) for n in "qkv")
            same = segment_ids[:, :, None] == segment_ids[:, None, :]
            mask = same & (positions[:, :, None] >= positions[:, None, :])
            if cache is not None:
                keys = cache["keys"].at[slots, layer, positions].set(k, mode="drop")[:, layer]
                values = cache["values"].at[slots, layer, positions].set(v, mode="drop")[:, layer]
                layers.append((keys, values))
                if length == 1:
                    k, v, mask = keys, values, jnp.arange(keys.shape[1])[None, None] < held[:, None, None]
            weights = jnp.where(mask, jnp.einsum("btd,bsd->bts", q, k) / 2, -1e9)
            x += nn.Dense(self.width, name=f"o{layer}")(jnp.tanh(jax.nn.softmax(weights) @ v))
        logits = nn.Dense(self.vocab_size, name="head", kernel_init=nn.initializers.normal(0.3))(x)
        if cache is None:
            return logits
        keys, values = (jnp.stack(parts, axis=1) for parts in zip(*layers))
        return logits, {"keys": keys, "values": values, "lengths": held}


@functools.partial(jax.jit, static_argnames="module")
def apply(module, params, tokens):
    return module.apply({"params": params}, tokens)[0]


def full_logits(module, params, tokens):
    """float64 [T, V] without a cache; zeros after the end, which a causal model cannot see, keep one shape."""
    padded = np.zeros((1, module.max_length), np.int32)
    padded[0, : len(tokens)] = tokens
    return np.asarray(apply(module, params, padded), np.float64)[: len(tokens)]
