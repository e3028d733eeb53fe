"""Convolutions of images [B, H, W, C]."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from fmjax.errors import ConfigError
from fmjax.layers.dense import dense
from fmjax.layers.depthwise import depthwise
from fmjax.layers.norm import Norm
from fmjax.layers.pooling import Padding, spatial_padding
from fmjax.layers.winograd import conv3x3, is_worthwhile
from fmjax.parallel.logical import constrain

WHOLE = ("batch", None, None, "act_embed")
"""Logical axes of an activation [B, H, W, C]."""


class Conv(nn.Module):
    """A convolution: parameters `kernel` [size, size, in / groups, features], drawn by He's rule (He et al. 2015), and
    `bias` [features], initially 0, in float32.

    Attributes:
      features: channels of the output.
      size: side of the kernel in pixels.
      stride: the output's sides are the input's divided by it; with `transpose` multiplied by it.
      names: logical names of the kernel's last two axes; the bias carries the second.
      transpose: the transposed convolution.
      dtype: dtype of the product.
      use_bias: whether there is a bias.
      groups: of channels, each made of its own inputs alone; as many as channels is a depthwise convolution.
      padding: "SAME" or "VALID" as `jax.lax` has them, or pixels on each side, as PyTorch counts. The two differ where
        a stride leaves pixels over: "SAME" then pads the end more than the beginning.
      zero: the kernel is 0 at the start.
    """

    features: int
    size: int = 3
    stride: int = 1
    names: tuple[str | None, str | None] = ("embed", "mlp")
    transpose: bool = False
    dtype: str = "float32"
    use_bias: bool = True
    groups: int = 1
    padding: Padding = "SAME"
    zero: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """float [B, H, W, C] to [B, H', W', features] in `dtype`.

        Raises ConfigError where the channels do not divide into the groups, or a transposed convolution has groups.
        """
        self._check(x.shape[-1])
        shape = (self.size, self.size, x.shape[-1] // self.groups, self.features)
        init = nn.initializers.zeros if self.zero else nn.initializers.he_normal()
        init = nn.with_logical_partitioning(init, (None, None, *self.names))
        kernel = self.param("kernel", init, shape, jnp.float32).astype(self.dtype)
        padding = spatial_padding(self.padding)
        layout = dict(padding=padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
        strides, x = (self.stride, self.stride), x.astype(self.dtype)
        if self.transpose:
            y = lax.conv_transpose(x, kernel, strides, **layout)
        elif self._is_depthwise(x.shape[-1]):
            y = depthwise(x, kernel)
        elif self.size == 1 and self.groups == 1 and self.padding in ("SAME", "VALID", 0):
            y = dense(x[:, :: self.stride, :: self.stride], kernel[0, 0])
        elif self.groups == 1 and self._keeps_size and is_worthwhile(x, kernel):
            y = conv3x3(x, kernel)
        else:
            y = lax.conv_general_dilated(x, kernel, strides, **layout, feature_group_count=self.groups)
        if self.use_bias:
            init = nn.with_logical_partitioning(nn.initializers.zeros, self.names[1:])
            y = y + self.param("bias", init, (self.features,), jnp.float32).astype(self.dtype)
        return constrain(y, WHOLE)

    @property
    def _keeps_size(self) -> bool:
        """Whether it has stride 1 and as many zeros around the image as keep its size."""
        return self.stride == 1 and self.size % 2 == 1 and self.padding in ("SAME", self.size // 2)

    def _is_depthwise(self, inputs: int) -> bool:
        """Whether each channel is convolved with one kernel of its own and the image keeps its size."""
        return self._keeps_size and self.groups == inputs == self.features

    def _check(self, inputs: int) -> None:
        if inputs % self.groups or self.features % self.groups:
            raise ConfigError(
                f"groups={self.groups}: {inputs} channels to {self.features} do not divide into that many groups"
            )
        if self.transpose and self.groups > 1:
            raise ConfigError(f"groups={self.groups}: a transposed convolution has one group here")


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


def conv_flops(
    side: int, size: int, inputs: int, outputs: int, stride: int = 1, first: bool = False, padding: int | None = None
) -> float:
    """FLOPs of forward and backward over one square image, by the convention of `fmjax.layers.flops`: products with
    what the padding adds do not count.

    Args:
      side: pixels of the smaller side: a convolution's output, a transposed one's input.
      inputs: channels that each of the outputs is made of: those of a group.
      first: whether it reads the images themselves, for which there is no gradient.
      padding: pixels on each side; None is "SAME".
    """
    larger = side * stride
    before = max((side - 1) * stride + size - larger, 0) // 2 if padding is None else padding
    inside = sum(0 <= place * stride - before + tap < larger for place in range(side) for tap in range(size))
    return (4.0 if first else 6.0) * inside**2 * inputs * outputs
