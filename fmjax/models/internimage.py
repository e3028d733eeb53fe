"""InternImage (Wang et al. 2023): a classifier of images by deformable convolutions in blocks as a Transformer's."""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fmjax.errors import ConfigError
from fmjax.layers.batch_norm import BATCH_STATS, BatchNorm
from fmjax.layers.checks import check_positive, check_rate
from fmjax.layers.conv import Conv, conv_flops
from fmjax.layers.deformable import SIZE, DeformableConv
from fmjax.layers.dense import Init, Linear
from fmjax.layers.mlp import MLP, gelu
from fmjax.layers.norm import Norm
from fmjax.layers.pooling import global_pool
from fmjax.layers.tap import LAYERED, tap
from fmjax.models.images import ImageModule


class InternImage(ImageModule):
    """An image classifier; the defaults are InternImage-T without its image size and classes.

    A stem of two convolutions; stages of blocks, between which a convolution of stride 2 doubles the channels; a
    product to half as many channels more, batch normalisation (whose statistics are carried, `fmjax.models.state`), the
    mean over pixels, and the head.

    Attributes:
      num_classes: logits of an image; None until the data are known, 0 for a model without a head, which gives vectors.
      hidden_size: channels of the first stage.
      depths: blocks of each stage.
      groups: of channels, in each stage's deformable convolutions.
      stem_strides: of the stem's two convolutions 3x3.
      mlp_ratio: width of a block's MLP in channels.
      layer_scale: what the outputs of a block's halves are multiplied by at the start, a parameter a channel (Touvron
        et al. 2021); None for none.
      post_norm: the halves of a block are normalised after, not before (published from size S on).
      offset_scale: of the offsets and of the 3x3 taps that they move (2 in published sizes from L on).
      reach: offsets of so many pixels are computed fast; None computes all the same way.
      path_dropout: rate at which a half of the last block is left out of a row (Huang et al. 2016); it grows from 0 at
        the first block.
      norm_eps: epsilon of LayerNorm.
      init_std: standard deviation of the MLPs' and the head's kernels.
      dtype: dtype of the products.
    """

    STATE: ClassVar[tuple[str, ...]] = BATCH_STATS

    num_classes: int | None = None
    hidden_size: int = 64
    depths: tuple[int, ...] = (4, 4, 18, 4)
    groups: tuple[int, ...] = (4, 8, 16, 32)
    stem_strides: tuple[int, int] = (2, 2)
    mlp_ratio: int = 4
    layer_scale: float | None = None
    post_norm: bool = False
    offset_scale: float = 1.0
    reach: int | None = 2
    path_dropout: float = 0.0
    norm_eps: float = 1e-6
    init_std: float = 0.02
    dtype: str = "float32"

    def __post_init__(self):
        super().__post_init__()
        check_positive(hidden_size=self.hidden_size, mlp_ratio=self.mlp_ratio)
        check_positive(**{f"depths[{i}]": n for i, n in enumerate(self.depths)})
        check_positive(**{f"groups[{i}]": n for i, n in enumerate(self.groups)})
        check_rate("model.path_dropout", self.path_dropout)
        if self.reach is not None:
            check_positive(reach=self.reach)
        if len(self.depths) != len(self.groups) or not self.depths:
            raise ConfigError(f"model.depths = {self.depths} and model.groups = {self.groups}: a number a stage each")
        if len(self.stem_strides) != 2 or self.hidden_size % 2:
            raise ConfigError(
                f"model.stem_strides = {self.stem_strides} and model.hidden_size = {self.hidden_size}: the stem is two "
                "convolutions, the first of half the channels"
            )
        for width, groups in zip(self.widths, self.groups):
            if width % groups:
                raise ConfigError(f"model.groups = {self.groups}: {width} channels do not divide into {groups} groups")

    @property
    def widths(self) -> list[int]:
        """Channels of each stage."""
        return [self.hidden_size * 2**stage for stage in range(len(self.depths))]

    @property
    def vector_size(self) -> int:
        """Numbers of an image's vector."""
        return self.widths[-1] * 3 // 2

    def setup(self):
        half = dict(padding=1, dtype=self.dtype)
        self.stem_1 = Conv(self.hidden_size // 2, 3, self.stem_strides[0], (None, "mlp"), **half)
        self.stem_2 = Conv(self.hidden_size, 3, self.stem_strides[1], ("mlp", "embed"), **half)
        self.stem_norm_1, self.stem_norm_2 = Norm("layernorm", self.norm_eps), Norm("layernorm", self.norm_eps)
        ends = np.cumsum((0, *self.depths))
        rates = np.linspace(0.0, self.path_dropout, int(ends[-1]))
        shared = {f.name: getattr(self, f.name) for f in dataclasses.fields(BlockConfig) if f.name != "groups"}
        self.stages = [
            Stage(BlockConfig(self.groups[i], **shared), tuple(map(float, rates[start:end])), name=f"stage_{i}")
            for i, (start, end) in enumerate(zip(ends, ends[1:]))
        ]
        self.halves = [
            Conv(width, 3, 2, names=("embed", "mlp"), use_bias=False, **half, name=f"halve_{i}")
            for i, width in enumerate(self.widths[1:])
        ]
        self.half_norms = [Norm("layernorm", self.norm_eps, name=f"halve_norm_{i}") for i in range(len(self.halves))]
        self.last = Conv(self.vector_size, 1, use_bias=False, dtype=self.dtype)
        self.last_norm = BatchNorm()
        if self.num_classes != 0:
            self.head = Linear(self.num_classes, ("embed", None), True, Init(scale=self.init_std), "float32")

    def __call__(self, images, train: bool = False) -> jax.Array:
        """float32 [B, H, W, C] images to float32 [B, num_classes] logits; without classes to `pooled`."""
        vectors = self.pooled(images, train)
        return vectors if self.num_classes == 0 else self.head(vectors)

    def pooled(self, images, train: bool = False) -> jax.Array:
        """An image's vector, float32 [B, vector_size]."""
        x = gelu(self.last_norm(self.last(self.maps(images, train)[-1]), train))
        return tap(self, "pooled", global_pool(x))

    def maps(self, images, train: bool = False) -> list[jax.Array]:
        """Each stage's output, [B, H', W', C']."""
        x = self.stem_norm_2(self.stem_2(gelu(self.stem_norm_1(self.stem_1(images)))))
        found = []
        for i, stage in enumerate(self.stages):
            if i:
                x = self.half_norms[i - 1](self.halves[i - 1](x))
            x = stage(x, train)
            found.append(x)
        return found

    @nn.nowrap
    def flops_per_example(self, shapes: dict) -> float:
        """FLOPs of forward and backward over one image, by the convention of `fmjax.layers.flops`. A deformed sum
        counts as the products with its taps; that pixels are interpolated for them does not."""
        side, inputs, total = self.image_size, self.num_channels, 0.0
        for i, (stride, width) in enumerate(zip(self.stem_strides, (self.hidden_size // 2, self.hidden_size))):
            side = -(-side // stride)
            total += conv_flops(side, 3, inputs, width, stride, first=i == 0, padding=1)
            inputs = width
        for stage, (depth, width, groups) in enumerate(zip(self.depths, self.widths, self.groups)):
            if stage:
                side = -(-side // 2)
                total += conv_flops(side, 3, inputs, width, 2, padding=1)
            products = width * (3 * groups * SIZE**2 + 2 * width + 2 * self.mlp_ratio * width) + SIZE**2 * width
            total += depth * (6.0 * side**2 * products + conv_flops(side, SIZE, 1, width))
            inputs = width
        return total + 6.0 * side**2 * inputs * self.vector_size + 6.0 * self.vector_size * self.num_classes


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """What the blocks of a stage share; attributes as in `InternImage`, but `groups` is a number."""

    groups: int
    mlp_ratio: int
    layer_scale: float | None
    post_norm: bool
    offset_scale: float
    reach: int | None
    norm_eps: float
    init_std: float
    dtype: str


class Stage(nn.Module):
    """Blocks at one size of the image, which share one program, and a norm after them where they have none at the end.

    Attributes:
      config: of the blocks.
      rates: at which a half of each block is left out of a row.
    """

    config: BlockConfig
    rates: tuple[float, ...]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        blocks = nn.scan(
            Block,
            variable_axes=LAYERED,
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast),
            length=len(self.rates),
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(self.config, name="blocks")
        x, _ = blocks(x, jnp.asarray(self.rates), train and any(self.rates))
        return x if self.config.post_norm else Norm("layernorm", self.config.norm_eps, name="norm")(x)


class Block(nn.Module):
    """x + DeformableConv, then + MLP, each with a norm before or after it."""

    config: BlockConfig

    @nn.compact
    def __call__(self, x: jax.Array, rate: jax.Array, drop: bool):
        """(x after the block, None); with `drop`, which then takes the random stream "dropout", at `rate`."""
        c = self.config
        core = DeformableConv(c.groups, c.offset_scale, c.reach, c.norm_eps, c.dtype, name="core")
        init = Init(scale=c.init_std)
        mlp = MLP(c.mlp_ratio * x.shape[-1], "gelu", True, init, init, dtype=c.dtype, name="mlp")
        over_pixels = lambda x: mlp(x.reshape(len(x), -1, x.shape[-1])).reshape(x.shape)
        for name, half in (("core", core), ("mlp", over_pixels)):
            norm = Norm("layernorm", c.norm_eps, name=f"{name}_norm")
            y = norm(half(x)) if c.post_norm else half(norm(x))
            if c.layer_scale is not None:
                init = nn.with_logical_partitioning(nn.initializers.constant(c.layer_scale), ("norm",))
                y = y * self.param(f"{name}_scale", init, x.shape[-1:], jnp.float32).astype(y.dtype)
            x = x + (self._some_rows(y, rate) if drop else y)
        return x, None

    def _some_rows(self, y: jax.Array, rate: jax.Array) -> jax.Array:
        """Zero in each row with probability `rate`, and as much larger in the others."""
        kept = jax.random.bernoulli(self.make_rng("dropout"), 1.0 - rate, (len(y), 1, 1, 1))
        return y * (kept / (1.0 - rate)).astype(y.dtype)
