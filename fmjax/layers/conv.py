"""Convolutions of images [B, H, W, C], with what shrinks and grows them by two."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from fmjax.layers.norm import Norm
from fmjax.parallel.logical import constrain

WHOLE = ("batch", None, None, "act_embed")
"""Logical axes of an activation [B, H, W, C]."""


class Conv(nn.Module):
    """A convolution with padding "SAME": parameters `kernel` [size, size, in, features], drawn by He's rule (He et al.
    2015), and `bias` [features], initially 0, in float32.

    Attributes:
      features: channels of the output.
      size: side of the kernel in pixels.
      stride: the output's sides are the input's divided by it; with `transpose` multiplied by it.
      names: logical names of the kernel's last two axes; the bias carries the second.
      transpose: the transposed convolution.
      dtype: dtype of the product.
    """

    features: int
    size: int = 3
    stride: int = 1
    names: tuple[str | None, str | None] = ("embed", "mlp")
    transpose: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.size, self.size, x.shape[-1], self.features)
        init = nn.with_logical_partitioning(nn.initializers.he_normal(), (None, None, *self.names))
        kernel = self.param("kernel", init, shape, jnp.float32).astype(self.dtype)
        init = nn.with_logical_partitioning(nn.initializers.zeros, self.names[1:])
        bias = self.param("bias", init, (self.features,), jnp.float32).astype(self.dtype)
        layout = dict(strides=(self.stride, self.stride), padding="SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = x.astype(self.dtype)
        if self.transpose:
            y = lax.conv_transpose(x, kernel, **layout)
        else:
            layout["window_strides"] = layout.pop("strides")
            y = lax.conv_general_dilated(x, kernel, **layout)
        return constrain(y + bias, WHOLE)


class ResidualBlock(nn.Module):
    """x + Conv1x1(relu(Conv3x3(relu(x)))), as in van den Oord et al. 2017, with a normalisation of each pixel in front
    where `norm` names one.

    Attributes:
      inner_size: channels between the two convolutions.
      norm: as in `fmjax.layers.norm.Norm`; None for none.
      dtype: dtype of the products.
    """

    inner_size: int
    norm: str | None = None
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = x if self.norm is None else Norm(self.norm, name="norm")(x)
        y = Conv(self.inner_size, 3, dtype=self.dtype, name="inner")(jax.nn.relu(y))
        return x + Conv(x.shape[-1], 1, names=("mlp", "embed"), dtype=self.dtype, name="outer")(jax.nn.relu(y))


def conv_flops(side: int, size: int, inputs: int, outputs: int, stride: int = 1, first: bool = False) -> float:
    """FLOPs of forward and backward over one square image, by the convention of `fmjax.layers.flops`: products with
    what the padding adds do not count.

    Args:
      side: pixels of the smaller side: a convolution's output, a transposed one's input.
      first: whether it reads the images themselves, for which there is no gradient.
    """
    larger = side * stride
    before = max((side - 1) * stride + size - larger, 0) // 2
    inside = sum(0 <= place * stride - before + tap < larger for place in range(side) for tap in range(size))
    return (4.0 if first else 6.0) * inside**2 * inputs * outputs
