"""Positions of rows, some at a time: what goes through a vocabulary in chunks is cut and joined here."""

import jax
import jax.numpy as jnp

from fmjax.objectives.cross_entropy import default_chunk_size


def positions_at_once(rows: int, length: int, chunk_size: int | None) -> int:
    """How many positions of each row a chunk has; None goes by the platform."""
    return min(chunk_size or default_chunk_size(rows, length), length)


def cut(x: jax.Array, size: int) -> jax.Array:
    """[B, T, ...] -> [chunks, B, size, ...], the last one filled up with zeros."""
    x = jnp.pad(x, [(0, 0), (0, -x.shape[1] % size)] + [(0, 0)] * (x.ndim - 2))
    return jnp.swapaxes(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 0, 1)


def joined(x: jax.Array, length: int) -> jax.Array:
    """What `cut` made, as it was: [chunks, B, size, ...] -> [B, length, ...]."""
    x = jnp.swapaxes(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]
