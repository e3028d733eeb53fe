"""DCNv3, the deformable convolution of InternImage (Wang et al. 2023)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.errors import ConfigError
from fmjax.layers.conv import WHOLE, Conv
from fmjax.layers.deformed_sum import deformed_sum, taps
from fmjax.layers.dense import Init, Linear
from fmjax.layers.mlp import gelu
from fmjax.layers.norm import Norm
from fmjax.layers.tap import tap
from fmjax.parallel.logical import constrain

SIZE = 3
"""Side of the square of taps."""


class DeformableConv(nn.Module):
    """y(p) = out(sum_k m_k(p) v(p + s (p_k + offset_k(p)))), v = value(x), in groups of channels, each with offsets and
    an m of its own: a softmax over the taps k. The scale s is of the taps' square and of the offsets.

    Offsets and m are products of GELU(LayerNorm(a depthwise convolution 3x3 of x)), of x itself and not of v, and start
    at zero: so at the start, for s = 1, the sum is an average over 3x3 pixels. Taps go through x first, offsets are
    (x, y), as the authors' code lays them out.

    Attributes:
      groups: of channels.
      offset_scale: s.
      reach: offsets of so many pixels are computed fast (`fmjax.layers.deformed_sum`), with equal results.
      norm_eps: of the LayerNorm.
      dtype: dtype of the products; the sum is float32.
    """

    groups: int
    offset_scale: float = 1.0
    reach: int | None = 2
    norm_eps: float = 1e-6
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """float [B, H, W, C] to the same in `dtype`. Raises ConfigError where C does not divide into the groups."""
        batch, height, width, channels = x.shape
        if channels % self.groups:
            raise ConfigError(f"groups={self.groups}: {channels} channels do not divide into that many groups")
        around = dict(names=(None, "embed"), groups=channels, dtype=self.dtype, name="depthwise")
        local = Norm("layernorm", self.norm_eps, name="norm")(Conv(channels, SIZE, **around)(x))
        local = gelu(local)
        zero, places = Init(scale=0.0), self.groups * SIZE**2
        offsets = Linear(2 * places, ("embed", None), True, zero, self.dtype, name="offset")(local)
        weights = Linear(places, ("embed", None), True, zero, self.dtype, name="weight")(local)
        grouped = (batch, height, width, self.groups)
        offsets = self.offset_scale * offsets.reshape(*grouped, SIZE**2, 2).astype(jnp.float32)
        offsets = tap(self, "offsets", offsets + (self.offset_scale - 1.0) * taps(SIZE))
        weights = jax.nn.softmax(weights.reshape(*grouped, SIZE**2).astype(jnp.float32), axis=-1)
        ends = dict(use_bias=True, kernel_init=Init("glorot_uniform", 1.0), dtype=self.dtype)
        value = Linear(channels, ("embed", "mlp"), **ends, name="value")(x)
        y = deformed_sum(value.reshape(*grouped, -1), offsets, weights, SIZE, self.reach)
        y = y.reshape(x.shape).astype(self.dtype)
        return constrain(Linear(channels, ("mlp", "embed"), **ends, name="out")(y), WHOLE)
