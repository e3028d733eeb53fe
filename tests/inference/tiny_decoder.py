"""A decoder small enough to check by eye, with the cached protocol and nothing else (no `features`)."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


class TinyDecoder(nn.Module):
    """Two attention layers with learned positions; the cache keeps keys, values and key positions (-1 is empty)."""

    vocab_size: int = 13
    max_length: int = 48
    width: int = 16
    num_layers: int = 2

    def init_cache(self, batch_size, max_length):
        shape = (self.num_layers, batch_size, max_length)
        zeros = jnp.zeros((*shape, self.width))
        return {"keys": zeros, "values": zeros, "positions": jnp.full(shape, -1, jnp.int32)}

    @nn.compact
    def __call__(self, tokens, segment_ids=None, positions=None, train=False, cache=None):
        batch, length = tokens.shape
        if segment_ids is None:
            segment_ids = jnp.ones_like(tokens)
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(length), tokens.shape)
        normal = nn.initializers.normal(1.0)
        x = nn.Embed(self.vocab_size, self.width, name="tokens", embedding_init=normal)(tokens)
        x += nn.Embed(self.max_length, self.width, name="positions", embedding_init=normal)(positions)
        layers = []
        for layer in range(self.num_layers):
            q, k, v = (nn.Dense(self.width, name=f"{n}{layer}")(x) for n in "qkv")
            if cache is None:
                same = segment_ids[:, :, None] == segment_ids[:, None, :]
                mask = same & (positions[:, :, None] >= positions[:, None, :])
            else:
                rows = jnp.arange(batch)[:, None]
                # Padding is written out of range, which drops it.
                at = jnp.where(segment_ids > 0, positions, cache["keys"].shape[2])
                k = cache["keys"][layer].at[rows, at].set(k, mode="drop")
                v = cache["values"][layer].at[rows, at].set(v, mode="drop")
                held = cache["positions"][layer].at[rows, at].set(positions, mode="drop")
                layers.append((k, v, held))
                mask = (held[:, None, :] >= 0) & (positions[:, :, None] >= held[:, None, :])
            weights = jnp.where(mask, jnp.einsum("btd,bsd->bts", q, k) / 2, -1e9)
            x += nn.Dense(self.width, name=f"o{layer}")(jnp.tanh(jax.nn.softmax(weights) @ v))
        logits = nn.Dense(self.vocab_size, name="head", kernel_init=nn.initializers.normal(0.3))(x)
        if cache is None:
            return logits
        return logits, dict(zip(("keys", "values", "positions"), map(jnp.stack, zip(*layers))))


@functools.partial(jax.jit, static_argnames="module")
def apply(module, params, tokens):
    return module.apply({"params": params}, tokens)[0]


def full_logits(module, params, tokens):
    """float64 [T, V] without a cache; zeros after the end, which a causal model cannot see, keep one shape."""
    padded = np.zeros((1, module.max_length), np.int32)
    padded[0, : len(tokens)] = tokens
    return np.asarray(apply(module, params, padded), np.float64)[: len(tokens)]
