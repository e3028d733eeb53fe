"""Convolutions 3x3 of stride 1 with a quarter of the products: Winograd's minimal filtering F(4x4, 3x3) (Lavin & Gray
2016, https://arxiv.org/abs/1509.09308).

Outputs are made in tiles of 4x4 of 6x6 inputs. The tiles' pixels are values of polynomials: a convolution multiplies
them, which takes one product a point, 36 in place of 144, and the rest are sums. The points decide what float32 loses
(Barabasz et al. 2020, https://arxiv.org/abs/1803.10986); these are oneDNN's. Outputs of 256 channels differ from exact
ones by 8e-7 of their deviation, those of the sum over windows by 4e-7, with the usual points 0, 1 and 2 by 2e-6.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fmjax.layers.derivatives import with_backward
from fmjax.parallel.platform import target_platform

TILE, SIZE = 4, 3
POINTS = np.array([0.0, 0.625, -0.625, 1.5, -1.5])  # and infinity


def _matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(B^T [6, 6], G [6, 3], A^T [4, 6]) of the paper's equation 8: Y = A^T ((G g G^T) * (B^T d B)) A."""

    def values(terms: int) -> np.ndarray:
        """Of x^0, x^1, ... at the points; at infinity that of the last."""
        return np.vstack([np.vander(POINTS, terms, increasing=True), np.eye(terms)[-1:]])

    inputs = np.linalg.inv(values(TILE + SIZE - 1)).T
    # A power of two moved from one factor to the other changes no digit, and keeps both near 1.
    sizes = 2.0 ** np.round(np.log2(np.abs(inputs).max(axis=1, keepdims=True)))
    return inputs / sizes, values(SIZE) * sizes, values(TILE).T


INPUT, KERNEL, OUTPUT = _matrices()
POINTS_2D = len(INPUT) ** 2


LEAST_TILES, LEAST_CHANNELS, LEAST_PRODUCTS = 2, 64, 2**16
"""Of an image. Below these XLA's own convolution is as fast, or too little of a step to be worth the longer
compilation."""

LONGEST_PRODUCT = 32
"""Rows of pixels up to which a product with a matrix that is mostly zeros is faster than sums; XLA computes what it is
of once, and sums of it once a term."""


def is_worthwhile(x: jax.Array, kernel: jax.Array) -> bool:
    """Whether `conv3x3` computes x [B, H, W, C] with a kernel [n, n, C, F] faster than XLA does: on CPUs, in float32,
    3x3 and large enough. Libraries of other platforms choose for themselves.

    B has no say in it: an image must not depend on how many are made beside it.
    """
    if target_platform() != "cpu" or kernel.shape[:2] != (SIZE, SIZE) or not x.dtype == kernel.dtype == jnp.float32:
        return False
    tiles = _tiles(x.shape[1]) * _tiles(x.shape[2])
    enough = tiles * kernel.shape[2] * kernel.shape[3] >= LEAST_PRODUCTS
    return enough and tiles >= LEAST_TILES and min(kernel.shape[2:]) >= LEAST_CHANNELS


def conv3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The convolution with as many zeros around the image as keep its size.

    Args:
      x: float32 [B, H, W, C].
      kernel: float32 [3, 3, C, F].

    Returns: float32 [B, H, W, F].
    """
    return _conv3x3()(x, kernel)[0]


@functools.cache
def _conv3x3():
    return with_backward(_forward, _backward, _tangent)


def _forward(x, kernel):
    batch, height, width, _ = x.shape
    tiles = _tiles(height), _tiles(width)
    features = kernel.shape[-1]
    factors = _on_kernel(KERNEL, kernel)
    products = lax.dot_general(_windows(x), factors, (((2,), (1,)), ((0,), (0,))))
    # One small product makes the 16 outputs of a tile of its 36 products.
    y = np.kron(OUTPUT, OUTPUT).astype(np.float32) @ products.reshape(POINTS_2D, -1)
    y = y.reshape(TILE, TILE, batch, *tiles, features).transpose(2, 3, 0, 4, 1, 5)
    return (y.reshape(batch, TILE * tiles[0], TILE * tiles[1], features)[:, :height, :width],)


def _backward(args, outs, cotangents):
    (x, kernel), (dy,) = args, cotangents
    sums = lax.dot_general(_windows(x), _at_points(dy, OUTPUT.T, 0), (((1,), (1,)), ((0,), (0,))))
    back = kernel[::-1, ::-1].swapaxes(2, 3)
    return conv3x3(dy, back), _on_kernel(KERNEL.T, sums.reshape(6, 6, *kernel.shape[2:])).reshape(kernel.shape)


def _tangent(args, outs, tangents):
    (x, kernel), (dx, d_kernel) = args, tangents
    return (conv3x3(dx, kernel) + conv3x3(x, d_kernel),)


def _tiles(length: int) -> int:
    return -(-length // TILE)


def _on_kernel(matrix, kernel):
    """[n * n, C, F] of [m, m, C, F]: the matrix [n, m] on both sides."""
    both = np.kron(matrix, matrix).astype(np.float32) @ kernel.reshape(-1, kernel[0, 0].size)
    return both.reshape(-1, *kernel.shape[2:])


def _windows(x):
    """[36, B * tiles, C]: B^T d B of each window d of 6x6 pixels, one around each tile."""
    return _at_points(x, INPUT, 1)


def _at_points(x, matrix, before: int):
    """[36, B * tiles, C] of [B, H, W, C]: the matrix on both axes of the pixels of each tile, from `before` pixels
    before it on."""
    if x.shape[1] <= LONGEST_PRODUCT:
        band = _band(matrix, before, x.shape[1])
        flat = x.reshape(*x.shape[:2], -1)
        rows = lax.dot_general(jnp.broadcast_to(band, (len(x), *band.shape)), flat, (((2,), (1,)), ((0,), (0,))))
        rows = rows.reshape(-1, len(band), *x.shape[2:])
    else:
        # What is put together of parts XLA keeps; one sum it would compute anew for each column that reads it.
        rows = jnp.concatenate([_along(x, 1, _band(part, before, x.shape[1])) for part in np.split(matrix, 2)], axis=1)
    both = _along(rows, 2, _band(matrix, before, x.shape[2]))
    both = both.reshape(len(x), len(matrix), _tiles(x.shape[1]), len(matrix), _tiles(x.shape[2]), -1)
    return both.transpose(1, 3, 0, 2, 4, 5).reshape(POINTS_2D, -1, x.shape[-1])


def _band(matrix, before: int, length: int):
    """float32 [n * tiles, length]: what makes the matrix [n, m] times the m values from `before` before each tile on,
    of an axis outside of which there are zeros."""
    band = np.zeros((len(matrix), _tiles(length), length), np.float32)
    for tile in range(_tiles(length)):
        start = TILE * tile - before
        low, high = max(start, 0), min(start + matrix.shape[1], length)
        band[:, tile, low:high] = matrix[:, low - start : high - start]
    return band.reshape(-1, length)


def _along(x, axis: int, band):
    """The band [n, length] times an axis of x, as sums of what constant indices look up: one loop over the outputs for
    XLA, where slices would be many."""
    taps = np.count_nonzero(band, axis=1).max()
    places = np.argsort(band == 0, axis=1, kind="stable")[:, :taps]  # those that are not 0 first
    factors = np.take_along_axis(band, places, axis=1).reshape(-1, taps, *(1,) * (x.ndim - axis - 1))
    return sum(jnp.take(x, places[:, tap], axis=axis, mode="clip") * factors[:, tap] for tap in range(taps))
