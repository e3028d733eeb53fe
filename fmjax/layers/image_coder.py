"""The convolutional encoder and decoder of VQGAN (Esser et al. 2021, https://arxiv.org/abs/2012.09841, appendix A),
which latent diffusion's autoencoders have too."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.errors import ConfigError
from fmjax.layers.checks import check_positive
from fmjax.layers.conv import Conv, conv_flops
from fmjax.layers.norm import GroupNorm
from fmjax.layers.unet_blocks import Double, Halve, PlaceAttention, TimeBlock

EPSILON = 1e-6


class Coder(nn.Module):
    """Base of both.

    Attributes:
      outputs: channels of what it returns.
      widths: channels of each level, from the image's size downwards; each level but the first halves it.
      num_blocks: residual blocks of a level; the decoder has one more.
      mid_attention: whether places attend to each other on the last level, between two blocks.
      norm_groups: of the group norms.
      dtype: dtype of the products.
    """

    outputs: int
    widths: tuple[int, ...] = (128, 256, 512, 512)
    num_blocks: int = 2
    mid_attention: bool = True
    norm_groups: int = 32
    dtype: str = "float32"

    @nn.nowrap
    def _block(self, features: int, name: str) -> TimeBlock:
        return TimeBlock(features, self.norm_groups, EPSILON, dtype=self.dtype, name=name)

    @nn.nowrap
    def _middle(self, x: jax.Array) -> jax.Array:
        x = self._block(self.widths[-1], "mid_block_0")(x)
        if self.mid_attention:
            x = PlaceAttention(1, self.norm_groups, EPSILON, self.dtype, name="mid_attention_0")(x)
        return self._block(self.widths[-1], "mid_block_1")(x)

    @nn.nowrap
    def _head(self, x: jax.Array) -> jax.Array:
        x = nn.silu(GroupNorm(self.norm_groups, EPSILON, name="last_norm")(x))
        return Conv(self.outputs, 3, names=("embed", None), name="head")(x.astype(jnp.float32))


class ImageEncoder(Coder):
    """Images float32 [B, H, W, C] to float32 [B, h, w, outputs]; h is H halved once a level but the first."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = Conv(self.widths[0], 3, names=(None, "mlp"), dtype=self.dtype, name="start")(images)
        for level, width in enumerate(self.widths):
            for i in range(self.num_blocks):
                x = self._block(width, f"down_{level}_block_{i}")(x)
            if level < len(self.widths) - 1:
                x = Halve("SAME", self.dtype, name=f"down_{level}_resize")(x)
        return self._head(self._middle(x))


class ImageDecoder(Coder):
    """float32 [B, h, w, D] to images float32 [B, H, W, outputs], the mirror of `ImageEncoder`."""

    @nn.compact
    def __call__(self, latents: jax.Array) -> jax.Array:
        x = Conv(self.widths[-1], 3, names=(None, "mlp"), dtype=self.dtype, name="start")(latents)
        x = self._middle(x)
        for level, width in enumerate(reversed(self.widths)):
            for i in range(self.num_blocks + 1):
                x = self._block(width, f"up_{level}_block_{i}")(x)
            if level < len(self.widths) - 1:
                x = Double(self.dtype, name=f"up_{level}_resize")(x)
        return self._head(x)


def check_coder(module) -> None:
    """Raises ConfigError where a module's widths, norm_groups or image_size do not fit each other."""
    check_positive(num_blocks=module.num_blocks, norm_groups=module.norm_groups)
    check_positive(**{f"widths[{i}]": width for i, width in enumerate(module.widths)})
    for width in module.widths:
        if width % module.norm_groups:
            raise ConfigError(
                f"model.norm_groups = {module.norm_groups} does not divide model.widths = {module.widths}"
            )
    size, halvings = module.image_size, len(module.widths) - 1
    if size is not None and size % 2**halvings:
        raise ConfigError(
            f"model.widths = {module.widths}: images of {size}x{size} pixels cannot be halved {halvings} times"
        )


def coder_flops(module, inputs: int, outputs: int, decodes: bool) -> float:
    """FLOPs of forward and backward of one coder over one image, by the convention of `fmjax.layers.flops`."""
    widths, last = module.widths, len(module.widths) - 1
    order = [*reversed(range(last + 1))] if decodes else [*range(last + 1)]
    side = lambda level: module.image_size // 2**level
    pair = lambda at, before, after: (
        conv_flops(at, 3, before, after) + conv_flops(at, 3, after, after)
        + (conv_flops(at, 1, before, after) if before != after else 0.0)
    )  # fmt: skip
    width, small = widths[order[0]], side(last)
    total = conv_flops(side(order[0]), 3, inputs, width, first=not decodes)
    for level in order:
        for _ in range(module.num_blocks + decodes):
            total += pair(side(level), width, widths[level])
            width = widths[level]
        if level != order[-1]:
            total += conv_flops(side(level - 1 if decodes else level + 1), 3, width, width, 1 if decodes else 2)
    total += 2 * pair(small, widths[last], widths[last])
    if module.mid_attention:
        total += 3.0 * (8 * small**2 * widths[last] ** 2 + 4 * small**4 * widths[last])
    return total + conv_flops(side(order[-1]), 3, width, outputs)
