"""Pooling of images [B, H, W, C] over windows, and over all of an image."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Padding = str | int
"""Pixels on each side, or "SAME" or "VALID" as `jax.lax` has them."""


def spatial_padding(padding: Padding) -> str | list[tuple[int, int]]:
    """The padding of both axes as `jax.lax` takes it."""
    return padding if isinstance(padding, str) else [(padding, padding)] * 2


def max_pool(x: jax.Array, size: int, stride: int | None = None, padding: Padding = "VALID") -> jax.Array:
    """The largest value of each window of `size` x `size` pixels; what pads an image is never it.

    stride: None is `size`: windows side by side.
    """
    lowest = -jnp.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min
    return _windows(x, np.asarray(lowest, x.dtype), lax.max, size, stride, padding)


def average_pool(
    x: jax.Array, size: int, stride: int | None = None, padding: Padding = "VALID", count_padding: bool = False
) -> jax.Array:
    """The mean of each window of `size` x `size` pixels; arguments as in `max_pool`.

    count_padding: what pads an image counts, as zeros; or else only its own pixels do.
    """
    total = _windows(x, np.zeros((), x.dtype), lax.add, size, stride, padding)
    if count_padding:
        return total / size**2
    ones = jnp.ones((1, *x.shape[1:3], 1), x.dtype)
    return total / _windows(ones, np.zeros((), x.dtype), lax.add, size, stride, padding)


def global_pool(x: jax.Array) -> jax.Array:
    """float32 [B, C]: the mean over all pixels."""
    return x.astype(jnp.float32).mean((1, 2))


def _windows(x, start, reduce, size: int, stride: int | None, padding: Padding) -> jax.Array:
    stride, padding = size if stride is None else stride, spatial_padding(padding)
    padding = padding if isinstance(padding, str) else [(0, 0), *padding, (0, 0)]
    return lax.reduce_window(x, start, reduce, (1, size, size, 1), (1, stride, stride, 1), padding)
