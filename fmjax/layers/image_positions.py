"""Where patches of an image are: fixed sines and cosines, and learned positions carried over to another size."""

import jax
import jax.numpy as jnp
import numpy as np

from fmjax.layers.position import sinusoids

CUBIC = -0.75
"""The parameter of cubic convolution (Keys 1981) that PyTorch's interpolation has."""


def grid_sinusoids(rows: int, columns: int, features: int) -> jax.Array:
    """float32 [rows * columns, features]: sines and cosines, of the column in one half, of the row in the other."""
    row, column = jnp.divmod(jnp.arange(rows * columns), columns)
    halves = [sinusoids(place, features // 2, interleaved=False) for place in (column, row)]
    return jnp.concatenate(halves, axis=-1)


def centred_sinusoids(rows: int, columns: int, features: int, grid: int, base: int) -> jax.Array:
    """As `grid_sinusoids`, of a square of `grid` places that is as wide as `base` of them are there: those in its
    middle, float32 [rows * columns, features] (Stable Diffusion 3, whose larger images have positions around those of
    smaller ones)."""
    row, column = jnp.divmod(jnp.arange(rows * columns), columns)
    places = (column + (grid - columns) // 2, row + (grid - rows) // 2)
    halves = [sinusoids(place * (base / grid), features // 2, interleaved=False) for place in places]
    return jnp.concatenate(halves, axis=-1)


def resized_positions(table: jax.Array, rows: int, columns: int) -> jax.Array:
    """Learned positions of a square grid of patches for one of another size: float32 [rows * columns, D] of [N, D].

    Bicubic, without smoothing before, as `interpolate_pos_encoding` of the published models' classes has it: cubic
    convolution with the parameter -0.75, centres of patches at half numbers, and the outermost patches repeated.
    """
    side = int(len(table) ** 0.5)
    grid = table.reshape(side, side, -1).astype(jnp.float32)
    down, across = (jnp.asarray(_cubic(side, size)) for size in (rows, columns))
    return jnp.einsum("ij,jkd,lk->ild", down, grid, across).reshape(rows * columns, -1)


def fitted_positions(table: jax.Array, grids: jax.Array, length: int) -> jax.Array:
    """Learned positions of a square grid of patches, resized to the grid of each image: float32 [B, length, D].

    Bilinear, smoothed where the image's grid is the smaller one: `interpolate(mode="bilinear", align_corners=False,
    antialias=True)` of PyTorch, as the published NaFlex has it.

    Args:
      table: [N, D].
      grids: int32 [B, 2], rows and columns of each image's patches, which lie row by row. What is behind them has the
        position of the first.
    """
    side = int(len(table) ** 0.5)
    place = jnp.arange(length)[None]
    sizes = jnp.maximum(grids, 1)[:, None]
    rows, columns = place // sizes[..., 1], place % sizes[..., 1]
    at = jnp.where((place < sizes.prod(-1))[..., None], jnp.stack([rows, columns], axis=-1), 0)
    scale = side / sizes.astype(jnp.float32)
    distance = jnp.abs(jnp.arange(side) - ((at + 0.5) * scale - 0.5)[..., None])
    weights = jnp.maximum(1.0 - distance / jnp.maximum(scale, 1.0)[..., None], 0.0)
    weights = weights / weights.sum(-1, keepdims=True)
    grid = table.reshape(side, side, -1).astype(jnp.float32)
    return jnp.einsum("bpi,bpj,ijd->bpd", weights[:, :, 0], weights[:, :, 1], grid)


def _cubic(old: int, new: int) -> np.ndarray:
    """float32 [new, old]: how much of each old place is in each new one."""
    weights = np.zeros((new, old))
    for place in range(new):
        at = (place + 0.5) * old / new - 0.5
        first = int(np.floor(at)) - 1
        for tap in range(first, first + 4):
            weights[place, min(max(tap, 0), old - 1)] += _kernel(abs(at - tap))
    return weights.astype(np.float32)


def _kernel(distance: float) -> float:
    """Keys 1981, equation 4."""
    if distance <= 1:
        return (CUBIC + 2) * distance**3 - (CUBIC + 3) * distance**2 + 1
    if distance < 2:
        return CUBIC * (distance**3 - 5 * distance**2 + 8 * distance - 4)
    return 0.0
