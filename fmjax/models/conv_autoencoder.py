"""A convolutional autoencoder of images (van den Oord et al. 2017, 4.1): images to grids of vectors, and back."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.layers.checks import check_positive
from fmjax.layers.conv import Conv, ResidualBlock, conv_flops
from fmjax.layers.tap import tap
from fmjax.models.images import ImageModule, check_halvings


class ConvAutoencoder(ImageModule):
    """Convolutions 4x4 of stride 2, residual blocks, and a projection to vectors; the decoder mirrors it.

    Attributes:
      hidden_size: channels between the convolutions.
      inner_size: channels inside a residual block.
      num_blocks: residual blocks of the encoder, and as many of the decoder.
      num_halvings: how often the encoder halves the sides of an image.
      code_size: of a vector.
      dtype: dtype of the products.
    """

    hidden_size: int = 128
    inner_size: int = 32
    num_blocks: int = 2
    num_halvings: int = 2
    code_size: int = 64
    dtype: str = "float32"

    def __post_init__(self):
        super().__post_init__()
        check_positive(hidden_size=self.hidden_size, inner_size=self.inner_size, code_size=self.code_size)
        check_positive(num_halvings=self.num_halvings)
        check_halvings(self)

    def setup(self):
        blocks = lambda side: [
            ResidualBlock(self.inner_size, dtype=self.dtype, name=f"{side}_block_{i}") for i in range(self.num_blocks)
        ]
        inside = dict(dtype=self.dtype)
        halves = [
            Conv(self.hidden_size, 4, 2, ("embed" if i else None, "mlp"), **inside, name=f"halve_{i}")
            for i in range(self.num_halvings)
        ]
        self.halves, self.encoder_blocks, self.decoder_blocks = halves, blocks("encoder"), blocks("decoder")
        self.to_codes = Conv(self.code_size, 1, names=("embed", None), **inside)
        self.from_codes = Conv(self.hidden_size, 3, names=(None, "mlp"), **inside)
        last = self.num_halvings - 1
        self.doubles = [
            Conv(
                self.num_channels if i == last else self.hidden_size, 4, 2, ("embed", None if i == last else "mlp"),
                True, **inside, name=f"double_{i}",
            )
            for i in range(self.num_halvings)
        ]  # fmt: skip

    def encode(self, images: jax.Array) -> jax.Array:
        """float32 [B, H, W, C] images to float32 [B, N, code_size] vectors, row by row of the grid."""
        x = images
        for halve in self.halves:
            x = jax.nn.relu(halve(x))
        for block in self.encoder_blocks:
            x = block(x)
        x = self.to_codes(jax.nn.relu(x)).astype(jnp.float32)
        return tap(self, "encoded", x.reshape(len(x), -1, self.code_size))

    def decode(self, vectors: jax.Array) -> jax.Array:
        """float32 [B, N, code_size] vectors to float32 [B, H, W, C] images."""
        side = self.image_size // 2**self.num_halvings
        x = self.from_codes(vectors.reshape(len(vectors), side, side, self.code_size))
        for block in self.decoder_blocks:
            x = block(x)
        for double in self.doubles:
            x = double(jax.nn.relu(x))
        return x.astype(jnp.float32)

    def __call__(self, images, train: bool = False) -> jax.Array:
        """The images, encoded and decoded without quantization."""
        return self.decode(self.encode(images))

    @nn.nowrap
    def flops_per_example(self, shapes: dict) -> float:
        """FLOPs of forward and backward over one image, by the convention of `fmjax.layers.flops`."""
        hidden, total = self.hidden_size, 0.0
        for i in range(self.num_halvings):
            side, channels = self.image_size // 2 ** (i + 1), hidden if i else self.num_channels
            down = conv_flops(side, 4, channels, hidden, stride=2, first=i == 0)
            total += down + conv_flops(side, 4, hidden, channels, stride=2)
        blocks = conv_flops(side, 3, hidden, self.inner_size) + conv_flops(side, 1, self.inner_size, hidden)
        ends = conv_flops(side, 1, hidden, self.code_size) + conv_flops(side, 3, self.code_size, hidden)
        return total + 2 * self.num_blocks * blocks + ends
