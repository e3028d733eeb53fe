"""Swin (Liu et al. 2021), and CoSwin, Florence's image tower (Yuan et al. 2021): stages of attention within windows."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.errors import ConfigError
from fmjax.layers.checks import check_choice, check_positive, check_rate
from fmjax.layers.conv import Conv, conv_flops
from fmjax.layers.dense import Init, Linear
from fmjax.layers.norm import Norm
from fmjax.layers.patchify import patchify
from fmjax.layers.tap import tap
from fmjax.layers.window_attention import WindowConfig, WindowStage, window_flops
from fmjax.models.images import ImageModule

EMBEDDINGS = ("patches", "convolutions")


class Swin(ImageModule):
    """An image classifier; the defaults are Swin-T without its image size and classes.

    Each stage has a map half as wide and twice as deep as the one before it. The vector of an image is the mean over
    the last one, after a LayerNorm.

    Attributes:
      num_classes: logits of an image; None until the data are known, 0 for a model without a head, which gives vectors.
      embed_size: channels of the first stage.
      depths: blocks of each stage.
      num_heads: of the blocks of each stage.
      mlp_ratio: channels inside a block's MLP, by those of its stage.
      window: side of a window; a stage whose map is smaller has one window.
      patch_size: the first map's sides are the image's divided by it.
      embeddings: what makes the first map, and each stage's from that of the one before. "patches": products of patches
        that do not overlap, with a LayerNorm behind the first and in front of the others. "convolutions": those of CvT
        (Wu et al. 2021), whose patches overlap, each with a LayerNorm behind it.
      stem_size, kernel_size: of convolutions, the side of the first kernel and of the others.
      activation: "gelu", or another of `fmjax.layers.mlp.ACTIVATIONS` with one input.
      qkv_bias, dropout, attention_dropout: as in WindowConfig.
      drop_path: rate of stochastic depth of the last block; it rises from 0 at the first one.
      norm_eps: epsilon of the blocks' and the last LayerNorm; 1e-5 is that of the embeddings'.
      init_std: standard deviation of the kernels of products.
      dtype: of the products.
      remat: as in TransformerConfig.
    """

    RESUME_FREE = ("remat",)

    num_classes: int | None = None
    embed_size: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    mlp_ratio: float = 4.0
    window: int = 7
    patch_size: int = 4
    embeddings: str = "patches"
    stem_size: int = 7
    kernel_size: int = 3
    activation: str = "gelu"
    qkv_bias: bool = True
    dropout: float = 0.0
    attention_dropout: float = 0.0
    drop_path: float = 0.0
    norm_eps: float = 1e-5
    init_std: float = 0.02
    dtype: str = "float32"
    remat: str = "none"

    def __post_init__(self):
        super().__post_init__()
        check_choice("model.embeddings", self.embeddings, EMBEDDINGS)
        check_positive(embed_size=self.embed_size, window=self.window, patch_size=self.patch_size)
        check_positive(stem_size=self.stem_size, kernel_size=self.kernel_size)
        check_rate("drop_path", self.drop_path)
        if len(self.depths) != len(self.num_heads) or not self.depths:
            raise ConfigError(
                f"model.depths = {self.depths} and model.num_heads = {self.num_heads}: a number a stage each"
            )
        sizes = {"stem_size": (self.stem_size, self.patch_size), "kernel_size": (self.kernel_size, 2)}
        for name, (size, stride) in sizes.items():
            if self.embeddings == "convolutions" and size < stride:
                raise ConfigError(
                    f"model.{name} = {size} leaves pixels out at a stride of {stride}; take at least that"
                )
        if self.image_size is not None:
            self._check_sides()
            self.stages  # checks what they are made of

    def _check_sides(self):
        factor = self.patch_size * 2 ** (len(self.depths) - 1)
        if self.image_size % factor:
            raise ConfigError(
                f"images of {self.image_size}x{self.image_size} pixels do not divide by {factor}: model.patch_size = "
                f"{self.patch_size}, halved by each of {len(self.depths)} stages but the first"
            )
        for side in self._sides:
            if side > self.window and side % self.window:
                raise ConfigError(
                    f"model.window = {self.window} does not divide a map of {side}x{side} places (those of images of "
                    f"{self.image_size} pixels have {', '.join(map(str, self._sides))}); choose one that does"
                )

    @property
    def _sides(self) -> list[int]:
        return [self.image_size // self.patch_size // 2**stage for stage in range(len(self.depths))]

    @property
    def hidden_size(self) -> int:
        """Of an image's vector."""
        return self.embed_size * 2 ** (len(self.depths) - 1)

    @property
    def stages(self) -> list[WindowConfig]:
        """What each stage is made of."""
        total, found, before = sum(self.depths), [], 0
        for stage, (side, depth, heads) in enumerate(zip(self._sides, self.depths, self.num_heads)):
            drops = tuple(self.drop_path * (before + i) / max(total - 1, 1) for i in range(depth))
            width, before = self.embed_size * 2**stage, before + depth
            found.append(WindowConfig(
                depth, side, min(self.window, side), width, int(self.mlp_ratio * width), heads, self.activation,
                self.qkv_bias, self.norm_eps, self.dropout, self.attention_dropout, drops, Init(scale=self.init_std),
                self.dtype, self.remat,
            ))  # fmt: skip
        return found

    def setup(self):
        convolve, stages = self.embeddings == "convolutions", self.stages
        stem = self.stem_size if convolve else self.patch_size
        self.stem = ConvEmbedding(self.embed_size, stem, self.patch_size, (None, "mlp"), self.dtype)
        if convolve:
            make = lambda width: ConvEmbedding(width, self.kernel_size, 2, ("embed", "mlp"), self.dtype)
        else:
            make = lambda width: PatchMerging(width, Init(scale=self.init_std), self.dtype)
        self.shrink = [make(c.hidden_size) for c in stages[1:]]
        self.stage = [WindowStage(c) for c in stages]
        self.embedding_dropout = nn.Dropout(self.dropout)
        self.last_norm = Norm("layernorm", self.norm_eps)
        if self.num_classes != 0:
            self.head = Linear(self.num_classes, ("embed", None), True, Init(scale=self.init_std), "float32")

    def __call__(self, images, train: bool = False) -> jax.Array:
        """float32 [B, H, W, C] images to float32 [B, num_classes] logits; without classes to `pooled`."""
        vector = self.pooled(images, train)
        return vector if self.num_classes == 0 else self.head(vector)

    def pooled(self, images, train: bool = False) -> jax.Array:
        """An image's vector, float32 [B, hidden_size]."""
        return self.feature_map(images, train).astype(jnp.float32).mean((1, 2))

    def feature_map(self, images, train: bool = False) -> jax.Array:
        """Features of places, float [B, H', W', hidden_size]: the last stage's."""
        x = self.embedding_dropout(tap(self, "embedded", self.stem(images)), deterministic=not train)
        for number, stage in enumerate(self.stage):
            x = stage(self.shrink[number - 1](x) if number else x, train)
        return tap(self, "features", self.last_norm(x))

    @nn.nowrap
    def flops_per_example(self, shapes: dict) -> float:
        """FLOPs of forward and backward over one image, by the convention of `fmjax.layers.flops`."""
        stages, convolve = self.stages, self.embeddings == "convolutions"
        stem = (self.stem_size, self.patch_size) if convolve else (self.patch_size,) * 2
        flops = lambda c, size, stride, inputs, first=False: conv_flops(
            c.side, size, inputs, c.hidden_size, stride, first, padding=_padding(size, stride)
        )
        total = flops(stages[0], *stem, self.num_channels, True)
        for c in stages[1:]:
            total += flops(c, self.kernel_size if convolve else 2, 2, c.hidden_size // 2)
        return total + sum(map(window_flops, stages)) + 6.0 * self.hidden_size * self.num_classes


class CoSwin(Swin):
    """Swin with the convolutional embeddings of CvT (Yuan et al. 2021, section 2.3)."""

    embeddings: str = "convolutions"


class ConvEmbedding(nn.Module):
    """A convolution with a LayerNorm behind it, whose output has the input's sides divided by the stride.

    Attributes:
      features: channels of the output.
      size: side of the kernel.
      stride: see above.
      names: as in Conv.
      dtype: of the product.
    """

    features: int
    size: int
    stride: int
    names: tuple[str | None, str | None]
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        padding = _padding(self.size, self.stride)
        options = dict(names=self.names, dtype=self.dtype, padding=padding)
        x = Conv(self.features, self.size, self.stride, **options, name="convolution")(x)
        return Norm("layernorm", name="norm")(x)


class PatchMerging(nn.Module):
    """A LayerNorm of patches of 2 x 2 places, and a product without bias (Liu et al. 2021, section 3.1).

    Attributes:
      features: channels of the output.
      init: how the kernel is drawn.
      dtype: of the product.
    """

    features: int
    init: Init = Init()
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, _ = x.shape
        x = Norm("layernorm", name="norm")(patchify(x, 2)).reshape(batch, height // 2, width // 2, -1)
        return Linear(self.features, ("embed", "mlp"), False, self.init, self.dtype, name="product")(x)


def _padding(size: int, stride: int) -> int:
    """Pixels on each side with which a convolution divides the sides of its input by the stride."""
    return -(-(size - stride) // 2)
