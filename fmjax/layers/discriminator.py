"""A critic of patches (Isola et al. 2017, https://arxiv.org/abs/1611.07004, section 3.2)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.layers.conv import Conv
from fmjax.layers.norm import GroupNorm


class PatchDiscriminator(nn.Module):
    """How true the patches of images look: convolutions 4x4, of stride 2 but for the last two, with leaky ReLUs.

    Norms are of groups of one image's channels, where the paper's are of the batch: no row knows of another.

    Attributes:
      width: channels of the first convolution; each next one of stride 2 has twice as many, up to 8 times as many.
      num_halvings: convolutions of stride 2.
      groups: of the norms.
      dtype: dtype of the products.
    """

    width: int = 64
    num_halvings: int = 3
    groups: int = 8
    dtype: str = "float32"

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """float32 [B, H, W, C] images to float32 [B, H', W'], above 0 for what looks true."""
        x = images
        for i in range(self.num_halvings + 1):
            last = i == self.num_halvings
            features = self.width * min(2**i, 8)
            names, stride = ("embed" if i else None, "mlp"), 1 if last else 2
            x = Conv(features, 4, stride, names, dtype=self.dtype, use_bias=i == 0, name=f"conv_{i}")(x)
            x = GroupNorm(self.groups, name=f"norm_{i}")(x) if i else x
            x = jax.nn.leaky_relu(x, 0.2)
        return Conv(1, 4, names=("embed", None), name="head")(x.astype(jnp.float32))[..., 0]
