"""Depthwise convolutions of stride 1 as sums of shifted images, which XLA's own for CPUs is far slower than."""

import functools

import jax
import jax.numpy as jnp

from fmjax.layers.derivatives import with_backward


def depthwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Each channel convolved with its own kernel, with as many zeros around the image as keep its size.

    Args:
      x: float [B, H, W, C].
      kernel: [size, size, 1, C], size odd.

    Returns: [B, H, W, C].
    """
    return _depthwise()(x, kernel)[0]


@functools.cache
def _depthwise():
    return with_backward(_forward, _backward)


def _forward(x, kernel):
    return (sum(window * kernel[i, j, 0] for i, j, window in _windows(x, kernel.shape[0])),)


def _backward(args, outs, cotangents):
    (x, kernel), (dy,) = args, cotangents
    size = kernel.shape[0]
    sums = [(window * dy).sum((0, 1, 2)) for _, _, window in _windows(x, size)]
    return _forward(dy, kernel[::-1, ::-1])[0], jnp.stack(sums).reshape(kernel.shape)


def _windows(x, size: int):
    """(row, column of the kernel, the image as that tap reads it)."""
    _, height, width, _ = x.shape
    around = (size // 2, size // 2)
    x = jnp.pad(x, [(0, 0), around, around, (0, 0)])
    return [(i, j, x[:, i : i + height, j : j + width]) for i in range(size) for j in range(size)]
