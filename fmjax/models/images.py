"""What the families that read images of one size share."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.errors import ConfigError


class ImageModule(nn.Module):
    """Base of the families that read images.

    Attributes:
      image_size: side of an image in pixels; None until the data are known.
      num_channels: of an image; None until the data are known.
    """

    image_size: int | None = None
    num_channels: int | None = None

    @nn.nowrap
    def example(self) -> dict[str, jax.ShapeDtypeStruct]:
        """What `__call__` takes, by name, as small as it can be: enough to know the parameters."""
        shape = (1, self.image_size, self.image_size, self.num_channels)
        return {"images": jax.ShapeDtypeStruct(shape, jnp.float32)}


def check_halvings(module) -> None:
    """Raises ConfigError where the sides of a module's images cannot be halved `num_halvings` times."""
    size, halvings = module.image_size, module.num_halvings
    if size is not None and size % 2**halvings:
        raise ConfigError(
            f"model.num_halvings = {halvings}: images of {size}x{size} pixels cannot be halved that often"
        )
