"""Random views of an image, under jit and by a key of its own: what contrastive learning calls the same."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

from fmjax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Views:
    """Images turned, scaled, moved, darkened and with a square left out; what lies beyond the border is black (-1).

    Attributes:
      rotation: up to this many degrees either way.
      scale: by up to this share larger or smaller.
      shift: by up to this many pixels along each axis.
      contrast: up to this share of the brightness above black is taken away.
      hole: side in pixels of a square that is made black; 0 for none.
    """

    rotation: float = 15.0
    scale: float = 0.2
    shift: float = 1.0
    contrast: float = 0.4
    hole: int = 2

    def __post_init__(self):
        for name in ("rotation", "shift", "hole"):
            if getattr(self, name) < 0:
                raise ConfigError(f"objective.{name} = {getattr(self, name)} must be at least 0")
        for name in ("scale", "contrast"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"objective.{name} = {getattr(self, name)} must be at least 0 and less than 1")

    def view(self, key: jax.Array, image: jax.Array) -> jax.Array:
        """One of `image`, float32 [H, W, C] in [-1, 1], drawn with `key`."""
        keys = jax.random.split(key, 5)
        height, width, _ = image.shape
        angle = jnp.deg2rad(self.rotation) * jax.random.uniform(keys[0], minval=-1.0)
        size = 1.0 + self.scale * jax.random.uniform(keys[1], minval=-1.0)
        moved = self.shift * jax.random.uniform(keys[2], (2,), minval=-1.0)
        rows, columns = jnp.arange(height), jnp.arange(width)
        y = (rows - (height - 1) / 2 - moved[0])[:, None] / size
        x = (columns - (width - 1) / 2 - moved[1])[None] / size
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        at = [cos * y - sin * x + (height - 1) / 2, sin * y + cos * x + (width - 1) / 2]
        turn = lambda channel: map_coordinates(channel, at, order=1, mode="constant", cval=0.0)
        light = jax.vmap(turn, in_axes=-1, out_axes=-1)(image + 1.0)  # 0 is black
        light = light * (1.0 - self.contrast * jax.random.uniform(keys[3]))
        corner = jax.random.randint(keys[4], (2,), 1 - self.hole, jnp.array([height, width]))
        inside = lambda place, first: (place >= first) & (place < first + self.hole)
        gone = inside(rows, corner[0])[:, None] & inside(columns, corner[1])[None]
        return jnp.where(gone[..., None], 0.0, light) - 1.0
