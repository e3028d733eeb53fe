"""The autoencoder of latent diffusion, whose latents are normal given the image (Kingma & Welling 2013; Rombach et al.
2022)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.errors import ConfigError
from fmjax.layers.checks import check_positive
from fmjax.layers.conv import Conv, conv_flops
from fmjax.layers.image_coder import ImageDecoder, ImageEncoder, check_coder, coder_flops
from fmjax.layers.tap import tap
from fmjax.models.images import ImageModule

LOG_VARIANCE = (-30.0, 20.0)
"""Between which logarithms of variances are kept, as the published class does."""


class AutoencoderKL(ImageModule):
    """Images to grids of normal distributions, and back; the defaults are Stable Diffusion's without its image size.

    Attributes:
      latent_channels: of a place of the grid.
      widths: channels of each level; each level but the first halves the image.
      num_blocks: residual blocks of a level of the encoder; the decoder has one more.
      mid_attention: whether places attend to each other on the last level.
      moment_conv, latent_conv: whether a convolution 1x1 follows the encoder, and one comes before the decoder.
      scaling_factor, shift_factor: what a published folder says to its pipelines, which scale latents so: (latents -
        shift_factor) * scaling_factor. Nothing here does: `objective.latent_scale` and `latent_shift` say it of a run.
      norm_groups: of the group norms.
      dtype: dtype of the products.
    """

    latent_channels: int = 4
    widths: tuple[int, ...] = (128, 256, 512, 512)
    num_blocks: int = 2
    mid_attention: bool = True
    moment_conv: bool = True
    latent_conv: bool = True
    scaling_factor: float = 0.18215
    shift_factor: float = 0.0
    norm_groups: int = 32
    dtype: str = "float32"

    def __post_init__(self):
        super().__post_init__()
        check_positive(latent_channels=self.latent_channels)
        check_coder(self)
        if not self.scaling_factor > 0:
            raise ConfigError(f"model.scaling_factor = {self.scaling_factor} must be above 0")

    def setup(self):
        inside = dict(dtype=self.dtype)
        inside |= {name: getattr(self, name) for name in ("widths", "num_blocks", "mid_attention", "norm_groups")}
        self.encoder = ImageEncoder(2 * self.latent_channels, **inside)
        self.decoder = ImageDecoder(self.num_channels, **inside)
        if self.moment_conv:
            self.to_moments = Conv(2 * self.latent_channels, 1, names=(None, None))
        if self.latent_conv:
            self.from_latents = Conv(self.latent_channels, 1, names=(None, None))

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Of an image's latents: (height, width, channels)."""
        side = self.image_size // 2 ** (len(self.widths) - 1)
        return side, side, self.latent_channels

    def moments(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(mean, logarithm of the variance), float32 [B, h, w, latent_channels] each, of images [B, H, W, C]."""
        x = self.encoder(images)
        x = tap(self, "moments", self.to_moments(x) if self.moment_conv else x)
        mean, log_variance = jnp.split(x, 2, axis=-1)
        return mean, jnp.clip(log_variance, *LOG_VARIANCE)

    def encode(self, images: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """Latents of images: the mean, or with a random key a row, [B], a draw; float32 [B, h, w, latent_channels]."""
        mean, log_variance = self.moments(images)
        return mean if keys is None else drawn(mean, log_variance, keys)

    def decode(self, latents: jax.Array) -> jax.Array:
        """Images float32 [B, H, W, C] of latents float32 [B, h, w, latent_channels]."""
        return self.decoder(self.from_latents(latents) if self.latent_conv else latents)

    def __call__(self, images, train: bool = False) -> jax.Array:
        """The images, encoded to the means of their latents and decoded."""
        return self.decode(self.encode(images))

    @nn.nowrap
    def flops_per_example(self, shapes: dict) -> float:
        """FLOPs of forward and backward over one image, by the convention of `fmjax.layers.flops`."""
        channels, latent, side = self.num_channels, self.latent_channels, self.latent_shape[0]
        total = coder_flops(self, channels, 2 * latent, False) + coder_flops(self, latent, channels, True)
        total += conv_flops(side, 1, 2 * latent, 2 * latent) if self.moment_conv else 0.0
        return total + (conv_flops(side, 1, latent, latent) if self.latent_conv else 0.0)


def drawn(mean: jax.Array, log_variance: jax.Array, keys: jax.Array) -> jax.Array:
    """A draw of each row's normal distributions, with its key of [B]."""
    noise = jax.vmap(lambda key, row: jax.random.normal(key, row.shape))(keys, mean)
    return mean + jnp.exp(0.5 * log_variance) * noise


def normal_kl(mean: jax.Array, log_variance: jax.Array) -> jax.Array:
    """Nats of each row's distributions to the standard normal, [B] from [B, ...]: 1/2 (m^2 + v - 1 - ln v), summed
    (Kingma & Welling 2013, appendix B)."""
    nats = 0.5 * (mean**2 + jnp.exp(log_variance) - 1.0 - log_variance)
    return nats.reshape(len(nats), -1).sum(1)
