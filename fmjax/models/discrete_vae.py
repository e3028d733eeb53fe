"""DALL-E's discrete autoencoder (Ramesh et al. 2021, https://arxiv.org/abs/2102.12092, appendix A): images to grids of
codes, and codes to the distribution of pixels."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.errors import ConfigError
from fmjax.layers.checks import check_positive
from fmjax.layers.conv import Conv, conv_flops
from fmjax.layers.logit_laplace import to_images, to_open
from fmjax.layers.pooling import max_pool
from fmjax.layers.tap import tap
from fmjax.models.images import ImageModule

FIRST = 7
"""Side of the encoder's first kernel."""


class GainBlock(nn.Module):
    """x, projected where `features` are others, and `gain` times four convolutions, each after a ReLU; the inner three
    make a quarter of the features.

    Attributes:
      features: channels of the output.
      sizes: sides of the four kernels.
      gain: of what is added.
      dtype: dtype of the products.
    """

    features: int
    sizes: tuple[int, ...]
    gain: float
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y, names = x, (("embed", "mlp"), ("mlp", None), (None, "mlp"), ("mlp", "embed"))
        for i, size in enumerate(self.sizes):
            width = self.features if i == 3 else self.features // 4
            y = Conv(width, size, names=names[i], dtype=self.dtype, name=f"inner_{i}")(jax.nn.relu(y))
        if x.shape[-1] != self.features:
            x = Conv(self.features, 1, names=(None, "embed"), dtype=self.dtype, name="skip")(x)
        return x + self.gain * y


class DiscreteVAE(ImageModule):
    """The published encoder and decoder; the defaults are their sizes, for images of 256x256 pixels.

    Attributes:
      num_codes: of the codebook.
      widths: channels of each level of the encoder, multiples of 4; between two, the largest of 2x2 places is taken.
        The decoder has them from the last to the first, and repeats each place 2x2 times.
      num_blocks: of a level.
      code_size: channels that the decoder makes of a code first.
      dtype: dtype of the products.
    """

    num_codes: int = 8192
    widths: tuple[int, ...] = (256, 512, 1024, 2048)
    num_blocks: int = 2
    code_size: int = 128
    dtype: str = "float32"

    def __post_init__(self):
        super().__post_init__()
        check_positive(num_codes=self.num_codes, num_blocks=self.num_blocks, code_size=self.code_size)
        check_positive(**{f"widths[{i}]": width for i, width in enumerate(self.widths)})
        if not self.widths or any(width % 4 for width in self.widths):
            raise ConfigError(f"model.widths = {list(self.widths)}: expected multiples of 4, one a level")
        if self.image_size is not None and self.image_size % 2 ** (len(self.widths) - 1):
            raise ConfigError(
                f"model.widths has {len(self.widths)} levels: images of {self.image_size}x{self.image_size} pixels "
                f"cannot be halved {len(self.widths) - 1} times"
            )

    def setup(self):
        inside = dict(dtype=self.dtype)
        gain = 1 / (len(self.widths) * self.num_blocks) ** 2
        places = [(level, i) for level in range(len(self.widths)) for i in range(self.num_blocks)]
        blocks = lambda side, widths, sizes: [
            GainBlock(widths[level], sizes, gain, **inside, name=f"{side}_{level}_{i}") for level, i in places
        ]
        self.first = Conv(self.widths[0], FIRST, names=(None, "embed"), **inside)
        self.encoder = blocks("encoder", self.widths, (3, 3, 3, 1))
        self.to_codes = Conv(self.num_codes, 1, names=("embed", "vocab"), **inside)
        self.from_codes = Conv(self.code_size, 1, names=("vocab", "embed"), **inside)
        self.decoder = blocks("decoder", self.widths[::-1], (1, 3, 3, 3))
        self.last = Conv(2 * self.num_channels, 1, names=("embed", None), **inside)

    def code_logits(self, images: jax.Array) -> jax.Array:
        """float32 [B, H, W, C] images in [-1, 1] to the logits of codes, float32 [B, N, num_codes], row by row of the
        grid."""
        x = self.first(to_open(images))
        for i, block in enumerate(self.encoder):
            if i and i % self.num_blocks == 0:
                x = max_pool(x, 2)
            x = block(x)
        x = self.to_codes(jax.nn.relu(x)).astype(jnp.float32)
        return tap(self, "encoded", x.reshape(len(x), -1, self.num_codes))

    def pixels(self, shares: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Location and logarithm of the scale of each pixel (`fmjax.layers.logit_laplace`), both float32 [B, H, W, C].

        shares: float32 [B, N, num_codes], of each code in a place.
        """
        side = self.image_size // 2 ** (len(self.widths) - 1)
        x = self.from_codes(shares.reshape(len(shares), side, side, self.num_codes))
        for i, block in enumerate(self.decoder):
            if i and i % self.num_blocks == 0:
                x = x.repeat(2, axis=1).repeat(2, axis=2)
            x = block(x)
        return tuple(jnp.split(self.last(jax.nn.relu(x)).astype(jnp.float32), 2, axis=-1))

    def codes(self, images: jax.Array) -> jax.Array:
        """int32 [B, N]: the likeliest codes of images float32 [B, H, W, C] in [-1, 1]."""
        return self.code_logits(images).argmax(-1).astype(jnp.int32)

    def images_of(self, codes: jax.Array) -> jax.Array:
        """float32 [B, H, W, C] in [-1, 1]: the images of codes int32 [B, N]."""
        return to_images(jax.nn.sigmoid(self.pixels(jax.nn.one_hot(codes, self.num_codes))[0]))

    def __call__(self, images, train: bool = False) -> jax.Array:
        """The images of the images' codes."""
        return self.images_of(self.codes(images))

    @nn.nowrap
    def flops_per_example(self, shapes: dict) -> float:
        """FLOPs of forward and backward over one image, by the convention of `fmjax.layers.flops`."""
        sides = [self.image_size // 2**level for level in range(len(self.widths))]
        total = conv_flops(sides[0], FIRST, self.num_channels, self.widths[0], first=True)
        for sizes, inputs, levels in (
            ((3, 3, 3, 1), self.widths[0], list(zip(sides, self.widths))),
            ((1, 3, 3, 3), self.code_size, list(zip(sides, self.widths))[::-1]),
        ):
            for side, width in levels:
                for _ in range(self.num_blocks):
                    ends = zip(sizes, (inputs, *[width // 4] * 3), (*[width // 4] * 3, width))
                    total += sum(conv_flops(side, *one) for one in ends)
                    total += conv_flops(side, 1, inputs, width) if inputs != width else 0.0
                    inputs = width
        codes = conv_flops(sides[-1], 1, self.widths[-1] + self.code_size, self.num_codes)
        return total + codes + conv_flops(sides[0], 1, self.widths[0], 2 * self.num_channels)
