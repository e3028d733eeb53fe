"""A convolutional encoder of images with a projection head, for contrastive learning (He et al., Chen et al. 2020)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.errors import ConfigError
from fmjax.layers.checks import check_positive
from fmjax.layers.conv import Conv, ResidualBlock, conv_flops
from fmjax.layers.dense import Init, Linear
from fmjax.layers.norm import Norm
from fmjax.layers.tap import tap
from fmjax.models.images import ImageModule, check_halvings


class ConvEncoder(ImageModule):
    """A convolution 3x3; at each size of the image, `num_blocks` residual blocks; the mean over pixels; an MLP.

    Pixels are normalised one by one (LayerNorm), so no row knows of another: what MoCo shuffles batches against,
    positives that batch statistics give away, cannot happen.

    Attributes:
      hidden_size: channels, and size of the vector of an image.
      num_blocks: residual blocks at each size of the image.
      num_halvings: how often the sides of an image are halved, by convolutions 4x4 of stride 2.
      projection_size: of what the head makes of the vector, by two products with a ReLU between them (MoCo v2); 0 for
        no head: the tower of a model of images and texts.
      dtype: dtype of the products.
    """

    hidden_size: int = 64
    num_blocks: int = 1
    num_halvings: int = 1
    projection_size: int = 64
    dtype: str = "float32"

    def __post_init__(self):
        super().__post_init__()
        check_positive(hidden_size=self.hidden_size, num_blocks=self.num_blocks)
        if self.projection_size != 0:
            check_positive(projection_size=self.projection_size)
        check_halvings(self)

    def setup(self):
        inside = dict(dtype=self.dtype)
        self.stem = Conv(self.hidden_size, 3, names=(None, "mlp"), **inside)
        self.blocks = [
            [
                ResidualBlock(self.hidden_size, "layernorm", **inside, name=f"block_{size}_{i}")
                for i in range(self.num_blocks)
            ]
            for size in range(self.num_halvings + 1)
        ]
        self.halves = [Conv(self.hidden_size, 4, 2, **inside, name=f"halve_{i}") for i in range(self.num_halvings)]
        self.last_norm = Norm("layernorm")
        if self.projection_size != 0:
            init = Init("glorot_normal", 1.0)
            self.hidden_head = Linear(self.hidden_size, ("embed", "mlp"), True, init, **inside)
            self.head = Linear(self.projection_size, ("mlp", None), True, init, **inside)

    def feature_map(self, images: jax.Array, train: bool = False) -> jax.Array:
        """float32 [B, H, W, C] images to features of places, float [B, H', W', hidden_size]; H' is H halved
        num_halvings times."""
        x = self.stem(images)
        for number, blocks in enumerate(self.blocks):
            if number:
                x = self.halves[number - 1](x)
            for block in blocks:
                x = block(x)
        return self.last_norm(x)

    def pooled(self, images: jax.Array, train: bool = False) -> jax.Array:
        """float32 [B, H, W, C] images to their vectors, float32 [B, hidden_size]: what is kept when the head is not."""
        return tap(self, "pooled", self.feature_map(images).astype(jnp.float32).mean((1, 2)))

    def project(self, vectors: jax.Array) -> jax.Array:
        """The head: float32 [B, hidden_size] vectors to float32 [B, projection_size]."""
        if self.projection_size == 0:
            raise ConfigError("model.projection_size = 0: this conv_encoder has no projection head; give it a size")
        return self.head(jax.nn.relu(self.hidden_head(vectors))).astype(jnp.float32)

    def __call__(self, images, train: bool = False) -> jax.Array:
        """float32 [B, H, W, C] images to float32 [B, projection_size]; without a head to `pooled`."""
        vectors = self.pooled(images)
        return vectors if self.projection_size == 0 else self.project(vectors)

    @nn.nowrap
    def flops_per_example(self, shapes: dict) -> float:
        """FLOPs of forward and backward over one image, by the convention of `fmjax.layers.flops`."""
        hidden = self.hidden_size
        total = conv_flops(self.image_size, 3, self.num_channels, hidden, first=True)
        for size in range(self.num_halvings + 1):
            side = self.image_size // 2**size
            total += self.num_blocks * (conv_flops(side, 3, hidden, hidden) + conv_flops(side, 1, hidden, hidden))
            total += conv_flops(side, 4, hidden, hidden, stride=2) if size else 0.0
        return total + (6.0 * hidden * (hidden + self.projection_size) if self.projection_size else 0.0)
