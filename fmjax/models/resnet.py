"""Residual networks (He et al. 2016): those of ImageNet, and the thin ones of CIFAR-10."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.errors import ConfigError
from fmjax.layers.batch_norm import BATCH_STATS, BatchNorm
from fmjax.layers.checks import check_choice, check_positive
from fmjax.layers.conv import Conv, conv_flops
from fmjax.layers.dense import Init, Linear
from fmjax.layers.pooling import global_pool, max_pool
from fmjax.layers.tap import tap
from fmjax.models.images import ImageModule

BLOCKS = ("bottleneck", "basic")
STEMS = ("imagenet", "cifar")
SHORTCUTS = ("projection", "padded")


class ResNet(ImageModule):
    """An image classifier; the defaults are ResNet-50 without its image size and classes.

    A stage is a number of blocks at one size of the image, the first of which halves it, in all stages but the first.
    The running statistics of batch normalisation are carried (`fmjax.models.state`).

    Attributes:
      num_classes: logits of an image; None until the data are known, 0 for a model without a head, which gives vectors.
      depths: blocks of each stage.
      widths: channels of each stage's output.
      stem_size: channels of the first convolution.
      stem: "imagenet", a convolution 7x7 and a max pool 3x3, each of stride 2; or "cifar", a convolution 3x3.
      block: "bottleneck", convolutions 1x1, 3x3, 1x1, the inner ones of a quarter of the channels; or "basic", two 3x3.
      shortcut: where a block changes size or channels, what is added is a "projection" (the paper's option B) or, with
        zeros for the new channels on both sides, every second pixel ("padded", option A).
      halve_first: whether the first stage halves the image too.
      halve_early: whether the first convolution of a bottleneck halves, as in the paper, or the 3x3 one.
      zero_init: the last normalisation of a block starts with a scale of 0, so that a block begins as its shortcut.
      norm_eps: epsilon of batch normalisation.
      norm_decay: of its running statistics.
      dtype: dtype of the products.
    """

    STATE: ClassVar[tuple[str, ...]] = BATCH_STATS

    num_classes: int | None = None
    depths: tuple[int, ...] = (3, 4, 6, 3)
    widths: tuple[int, ...] = (256, 512, 1024, 2048)
    stem_size: int = 64
    stem: str = "imagenet"
    block: str = "bottleneck"
    shortcut: str = "projection"
    halve_first: bool = False
    halve_early: bool = False
    zero_init: bool = False
    norm_eps: float = 1e-5
    norm_decay: float = 0.9
    dtype: str = "float32"

    def __post_init__(self):
        super().__post_init__()
        check_choice("model.stem", self.stem, STEMS)
        check_choice("model.block", self.block, BLOCKS)
        check_choice("model.shortcut", self.shortcut, SHORTCUTS)
        check_positive(stem_size=self.stem_size, **{f"depths[{i}]": n for i, n in enumerate(self.depths)})
        check_positive(**{f"widths[{i}]": n for i, n in enumerate(self.widths)})
        if len(self.depths) != len(self.widths) or not self.depths:
            raise ConfigError(f"model.depths = {self.depths} and model.widths = {self.widths}: a number a stage each")
        narrower = [w for before, w in zip((self.stem_size, *self.widths), self.widths) if w < before]
        if self.shortcut == "padded" and narrower:
            raise ConfigError(f"model.widths = {self.widths}: a padded shortcut only widens; {narrower[0]} is narrower")
        if self.block == "bottleneck" and any(width % 4 for width in self.widths):
            raise ConfigError(f"model.widths = {self.widths}: a bottleneck's are multiples of 4")

    def strides(self) -> list[tuple[int, int, int]]:
        """(stage, place in it, stride) of every block."""
        halves = lambda stage, at: at == 0 and (stage > 0 or self.halve_first)
        return [(stage, at, 1 + halves(stage, at)) for stage, depth in enumerate(self.depths) for at in range(depth)]

    def setup(self):
        norm = dict(epsilon=self.norm_eps, decay=self.norm_decay, dtype=self.dtype)
        self.start = ConvNorm(self.stem_size, *((7, 2) if self.stem == "imagenet" else (3, 1)), first=True, **norm)
        self.blocks = [
            Block(
                self.widths[stage], stride, self.block, self.shortcut, self.halve_early, self.zero_init, **norm,
                name=f"stage_{stage}_block_{at}",
            )
            for stage, at, stride in self.strides()
        ]  # fmt: skip
        if self.num_classes != 0:
            self.head = Linear(self.num_classes, ("embed", None), True, Init(scale=0.0), "float32")

    def __call__(self, images, train: bool = False) -> jax.Array:
        """float32 [B, H, W, C] images to float32 [B, num_classes] logits; without classes to `pooled`."""
        vectors = self.pooled(images, train)
        return vectors if self.num_classes == 0 else self.head(vectors)

    @property
    def hidden_size(self) -> int:
        """Length of an image's vector."""
        return self.widths[-1]

    def pooled(self, images, train: bool = False) -> jax.Array:
        """An image's vector, float32 [B, widths[-1]]: the mean over the last stage's pixels."""
        return tap(self, "pooled", global_pool(self.last_map(images, train)))

    def last_map(self, images, train: bool = False) -> jax.Array:
        """The last stage's output, [B, H', W', widths[-1]]."""
        x = jax.nn.relu(self.start(images, train))
        if self.stem == "imagenet":
            x = max_pool(x, 3, 2, padding=1)
        for block in self.blocks:
            x = block(x, train)
        return x

    @nn.nowrap
    def flops_per_example(self, shapes: dict) -> float:
        """FLOPs of forward and backward over one image, by the convention of `fmjax.layers.flops`."""
        side, size = (-(-self.image_size // 2), 7) if self.stem == "imagenet" else (self.image_size, 3)
        stride = 2 if self.stem == "imagenet" else 1
        total = conv_flops(side, size, self.num_channels, self.stem_size, stride, True, size // 2)
        side, inputs = -(-side // stride), self.stem_size
        for stage, _, stride in self.strides():
            out = -(-side // stride)
            for size, channels, outputs, halves in units(self.block, inputs, self.widths[stage], self.halve_early):
                side = -(-side // stride) if halves else side
                total += conv_flops(side, size, channels, outputs, stride if halves else 1, padding=size // 2)
            if self.shortcut == "projection" and (stride > 1 or inputs != self.widths[stage]):
                total += conv_flops(out, 1, inputs, self.widths[stage], stride, padding=0)
            side, inputs = out, self.widths[stage]
        return total + 6.0 * inputs * self.num_classes


def units(block: str, inputs: int, width: int, halve_early: bool) -> list[tuple[int, int, int, bool]]:
    """(size, channels in, channels out, whether it halves) of the convolutions of a block."""
    if block == "basic":
        return [(3, inputs, width, True), (3, width, width, False)]
    inner = width // 4
    return [(1, inputs, inner, halve_early), (3, inner, inner, not halve_early), (1, inner, width, False)]


class ConvNorm(nn.Module):
    """A convolution without bias, padded on all sides alike, and batch normalisation."""

    features: int
    size: int
    stride: int = 1
    epsilon: float = 1e-5
    decay: float = 0.9
    zero: bool = False
    first: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        names = (None if self.first else "embed", "mlp")
        own = dict(names=names, dtype=self.dtype, use_bias=False, padding=self.size // 2, name="conv")
        x = Conv(self.features, self.size, self.stride, **own)(x)
        return BatchNorm(self.epsilon, self.decay, self.zero, name="norm")(x, train)


class Block(nn.Module):
    """relu(shortcut(x) + convolutions with a ReLU between them); attributes as in `ResNet`."""

    width: int
    stride: int
    kind: str
    shortcut: str
    halve_early: bool
    zero_init: bool
    epsilon: float
    decay: float
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        norm = dict(epsilon=self.epsilon, decay=self.decay, dtype=self.dtype)
        y, parts = x, units(self.kind, x.shape[-1], self.width, self.halve_early)
        for i, (size, _, features, halves) in enumerate(parts):
            last = i == len(parts) - 1
            stride, zero = self.stride if halves else 1, last and self.zero_init
            y = ConvNorm(features, size, stride, zero=zero, name=f"unit_{i}", **norm)(y, train)
            y = y if last else jax.nn.relu(y)
        return jax.nn.relu(self._kept(x, train, norm) + y)

    def _kept(self, x: jax.Array, train: bool, norm: dict) -> jax.Array:
        """What the block adds to."""
        new = self.width - x.shape[-1]
        if self.stride == 1 and not new:
            return x
        if self.shortcut == "projection":
            return ConvNorm(self.width, 1, self.stride, name="shortcut", **norm)(x, train)
        x = x[:, :: self.stride, :: self.stride]
        return jnp.pad(x, [(0, 0), (0, 0), (0, 0), (new // 2, new - new // 2)])
