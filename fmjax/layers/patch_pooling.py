"""An image's features by places, as means over the patches of several grids."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fmjax.errors import ConfigError


def multiscale_patches(x: jax.Array, grids: Sequence[int]) -> jax.Array:
    """Multi-scale patch pooling (Fei et al. 2022): of each grid g the means of a feature map over g x g patches.

    Patches are as even as whole places allow: number i of g along H places has floor(i H / g) to ceil((i + 1) H / g).

    Args:
      x: float [B, H, W, D].
      grids: such as (1, 6), the paper's: the whole image, and 36 patches of it.

    Returns: [B, sum of g * g, D] in x's dtype, the patches of a grid row by row. Raises ConfigError for a grid with
      more patches along a side than the map has places.
    """
    height, width = x.shape[1:3]
    parts = []
    for grid in grids:
        if not 1 <= grid <= min(height, width):
            raise ConfigError(
                f"a grid of {grid}x{grid} patches does not fit a feature map of {height}x{width} places; take at most "
                f"{min(height, width)}, or an image tower that keeps more places"
            )
        rows, columns = (jnp.asarray(_means(places, grid)) for places in (height, width))
        pooled = jnp.einsum("gh,bhwd,kw->bgkd", rows, x.astype(jnp.float32), columns)
        parts.append(pooled.reshape(x.shape[0], grid * grid, x.shape[-1]))
    return jnp.concatenate(parts, axis=1).astype(x.dtype)


def _means(places: int, grid: int) -> np.ndarray:
    """float32 [grid, places]: each row the weights of a mean over its patch."""
    found = np.zeros((grid, places), np.float32)
    for i in range(grid):
        inside = slice(i * places // grid, -(-(i + 1) * places // grid))
        found[i, inside] = 1 / (inside.stop - inside.start)
    return found
