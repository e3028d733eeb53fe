"""VQGAN's autoencoder (Esser et al. 2021), and an autoencoder together with the critic that it learns against."""

from typing import Annotated

import flax.linen as nn
import jax

from fmjax.errors import ConfigError
from fmjax.layers.checks import check_positive
from fmjax.layers.discriminator import PatchDiscriminator
from fmjax.layers.image_coder import ImageDecoder, ImageEncoder, check_coder, coder_flops
from fmjax.layers.tap import tap
from fmjax.models import MODELS
from fmjax.models.images import ImageModule


class VQGAN(ImageModule):
    """Images to grids of vectors, for a codebook to be put between (`fmjax.objectives.vq_autoencoder`), and back.

    Attributes:
      code_size: of a vector.
      widths, num_blocks, mid_attention, norm_groups: as in `fmjax.layers.image_coder.Coder`.
      dtype: dtype of the products.
    """

    code_size: int = 256
    widths: tuple[int, ...] = (128, 128, 256, 256, 512)
    num_blocks: int = 2
    mid_attention: bool = True
    norm_groups: int = 32
    dtype: str = "float32"

    def __post_init__(self):
        super().__post_init__()
        check_positive(code_size=self.code_size)
        check_coder(self)

    def setup(self):
        inside = {name: getattr(self, name) for name in ("widths", "num_blocks", "mid_attention", "norm_groups")}
        self.encoder = ImageEncoder(self.code_size, **inside, dtype=self.dtype)
        self.decoder = ImageDecoder(self.num_channels, **inside, dtype=self.dtype)

    def encode(self, images: jax.Array) -> jax.Array:
        """float32 [B, H, W, C] images to float32 [B, N, code_size] vectors, row by row of the grid."""
        x = self.encoder(images)
        return tap(self, "encoded", x.reshape(len(x), -1, self.code_size))

    def decode(self, vectors: jax.Array) -> jax.Array:
        """float32 [B, N, code_size] vectors to float32 [B, H, W, C] images."""
        side = self.image_size // 2 ** (len(self.widths) - 1)
        return self.decoder(vectors.reshape(len(vectors), side, side, self.code_size))

    def __call__(self, images, train: bool = False) -> jax.Array:
        """The images, encoded and decoded without quantization."""
        return self.decode(self.encode(images))

    @nn.nowrap
    def flops_per_example(self, shapes: dict) -> float:
        """FLOPs of forward and backward over one image, by the convention of `fmjax.layers.flops`."""
        ends = (self.num_channels, self.code_size)
        return coder_flops(self, *ends, False) + coder_flops(self, *ends[::-1], True)


class Criticised(nn.Module):
    """An autoencoder, and a critic of what it makes; `fmjax.objectives.adversarial` trains both in one step.

    Attributes:
      autoencoder: such as {"name": "vqgan", ...} or {"name": "autoencoder_kl", ...}.
      critic_width, critic_halvings: as `width` and `num_halvings` of `PatchDiscriminator`.
    """

    autoencoder: Annotated[dict, MODELS]
    critic_width: int = 64
    critic_halvings: int = 3

    def __post_init__(self):
        super().__post_init__()
        check_positive(critic_width=self.critic_width, critic_halvings=self.critic_halvings)
        if not all(hasattr(self.autoencoder, name) for name in ("encode", "decode")):
            raise ConfigError(
                f"model.autoencoder = {type(self.autoencoder).__name__} has no encode and decode; take 'vqgan' or "
                "'autoencoder_kl'"
            )

    def setup(self):
        self.critic = PatchDiscriminator(self.critic_width, self.critic_halvings)

    def encode(self, *arguments, **options) -> jax.Array:
        """The autoencoder's."""
        return self.autoencoder.encode(*arguments, **options)

    def moments(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The autoencoder's."""
        return self.autoencoder.moments(images)

    def decode(self, latents: jax.Array) -> jax.Array:
        """The autoencoder's."""
        return self.autoencoder.decode(latents)

    def criticise(self, images: jax.Array) -> jax.Array:
        """float32 [B, H', W'] of images float32 [B, H, W, C]: how true their patches look."""
        return self.critic(images)

    def __call__(self, images, train: bool = False) -> jax.Array:
        """The images, encoded and decoded."""
        made = self.autoencoder(images, train=train)
        if self.is_initializing():
            self.critic(made)
        return made

    @property
    def image_size(self) -> int | None:
        """Of the autoencoder's images."""
        return self.autoencoder.image_size

    @property
    def num_channels(self) -> int | None:
        """Of the autoencoder's images."""
        return self.autoencoder.num_channels

    @property
    def code_size(self) -> int:
        """Of a vector of the autoencoder."""
        return self.autoencoder.code_size

    @nn.nowrap
    def example(self) -> dict[str, jax.ShapeDtypeStruct]:
        """What `__call__` takes, by name, as small as it can be: enough to know the parameters."""
        return self.autoencoder.example()
