"""DALL-E 2's denoisers of images (Ramesh et al. 2022, https://arxiv.org/abs/2204.06125, section 2.1): one told a CLIP's
vector of the image, one told a smaller image."""

import inspect
import math
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.errors import ConfigError
from fmjax.layers.checks import check_positive
from fmjax.layers.dense import Linear
from fmjax.models import MODELS


class EmbeddingToImage(nn.Module):
    """A denoiser of images that attends to `num_tokens` tokens, a linear function of a vector; one that takes vectors
    (`mmdit`) is also given it as it is.

    Attributes:
      denoiser: a model called with `inputs`, `times` and `memory`, such as {"name": "unet", ...} with attention
        "cross".
      embedding_size: of the vector.
      num_tokens: 4 in the paper.
    """

    denoiser: Annotated[dict, MODELS]
    embedding_size: int = 512
    num_tokens: int = 4

    def __post_init__(self):
        super().__post_init__()
        check_positive(embedding_size=self.embedding_size, num_tokens=self.num_tokens)
        _check_denoiser(self.denoiser)
        if not getattr(self.denoiser, "memory_size", 0):
            raise ConfigError(
                f"model.denoiser = {type(self.denoiser).__name__} attends to nothing (memory_size = 0), so the vector "
                "would tell it nothing; take 'unet' with attention 'cross', or 'mmdit'"
            )

    def setup(self):
        self.tokens = Linear(self.num_tokens * self.denoiser.memory_size, (None, "embed"), True)

    def __call__(self, inputs, times, vector=None, train: bool = False) -> jax.Array:
        """What the denoiser predicts of noisy images, float32 [B, H, W, C].

        Args:
          inputs: float32 [B, H, W, C].
          times: float32 [B] in [0, 1].
          vector: float32 [B, embedding_size]; zeros for none.
          train: whether dropout is on.
        """
        if vector is None:
            vector = jnp.zeros((len(inputs), self.embedding_size))
        told = {"memory": self.tokens(vector).reshape(len(vector), self.num_tokens, -1)}
        if "vector" in inspect.signature(type(self.denoiser).__call__).parameters:
            told["vector"] = vector
        return self.denoiser(inputs, times, train=train, **told)

    @property
    def image_size(self) -> int | None:
        """Of the denoiser's images."""
        return self.denoiser.image_size

    @property
    def num_channels(self) -> int | None:
        """Of the denoiser's images."""
        return self.denoiser.num_channels

    @nn.nowrap
    def example(self) -> dict[str, jax.ShapeDtypeStruct]:
        """What `__call__` takes, by name, as small as it can be: enough to know the parameters."""
        found = {name: one for name, one in self.denoiser.example().items() if name in ("inputs", "times")}
        return found | {"vector": jax.ShapeDtypeStruct((1, self.embedding_size), jnp.float32)}

    @nn.nowrap
    def flops_per_example(self, shapes: dict) -> float:
        """FLOPs of forward and backward over one image, by the convention of `fmjax.layers.flops`; what frozen models
        compute is not counted."""
        own = 6.0 * self.embedding_size * self.num_tokens * self.denoiser.memory_size
        return own + self.denoiser.flops_per_example(dict(shapes) | {"memory": (self.num_tokens,)})


class Upsampler(nn.Module):
    """A denoiser of images whose inputs are the noisy image and, as further channels, the smaller one in its size.

    Attributes:
      denoiser: such as {"name": "unet", "num_channels": 6, "out_channels": 3, ...}: of twice the images' channels.
      small_size: side of the smaller images in pixels.
    """

    denoiser: Annotated[dict, MODELS]
    small_size: int = 64

    def __post_init__(self):
        super().__post_init__()
        check_positive(small_size=self.small_size)
        _check_denoiser(self.denoiser)
        channels, outputs = self.denoiser.num_channels, getattr(self.denoiser, "out_channels", None)
        if outputs is None or channels != 2 * outputs:
            raise ConfigError(
                f"model.denoiser.num_channels = {channels} and out_channels = {outputs}: it is given two images and "
                "makes one; set them to 6 and 3, for images in colour"
            )
        size = self.denoiser.image_size
        if size is not None and (size % self.small_size or size == self.small_size):
            raise ConfigError(f"model.small_size = {self.small_size} has to divide the images' {size}, and be less")

    def __call__(self, inputs, times, small=None, train: bool = False) -> jax.Array:
        """What the denoiser predicts of noisy images, float32 [B, H, W, C].

        Args:
          inputs: float32 [B, H, W, C].
          times: float32 [B] in [0, 1].
          small: float32 [B, small_size, small_size, C].
          train: whether dropout is on.
        """
        if small is None:
            small = jnp.zeros((len(inputs), self.small_size, self.small_size, inputs.shape[-1]))
        larger = jax.image.resize(small, inputs.shape, "linear")
        return self.denoiser(jnp.concatenate([inputs, larger.astype(inputs.dtype)], axis=-1), times, train=train)

    def side(self) -> int:
        """`small_size`, to who has the applied module alone."""
        return self.small_size

    @property
    def image_size(self) -> int | None:
        """Of the images that it makes."""
        return self.denoiser.image_size

    @property
    def num_channels(self) -> int:
        """Of the images that it makes."""
        return self.denoiser.out_channels

    @nn.nowrap
    def example(self) -> dict[str, jax.ShapeDtypeStruct]:
        """What `__call__` takes, by name, as small as it can be: enough to know the parameters."""
        found = self.denoiser.example()
        images = lambda side: jax.ShapeDtypeStruct((1, side, side, self.num_channels), jnp.float32)
        return {
            "inputs": images(found["inputs"].shape[1]), "times": found["times"], "small": images(self.small_size)
        }  # fmt: skip

    @nn.nowrap
    def flops_per_example(self, shapes: dict) -> float:
        """FLOPs of forward and backward over one image, by the convention of `fmjax.layers.flops`."""
        return self.denoiser.flops_per_example(shapes)


def _check_denoiser(denoiser) -> None:
    """Raises ConfigError for one that asks for labels."""
    if getattr(denoiser, "num_classes", 0) is None or getattr(denoiser, "num_classes", 0):
        raise ConfigError(
            f"model.denoiser.num_classes = {denoiser.num_classes}; set it to 0: it is not told by a class"
        )


def image_vectors(clip, images: jax.Array) -> jax.Array:
    """A frozen CLIP's vectors float32 [B, E] of images float32 [B, H, W, C], scaled to its size where it has one."""
    size = clip.module.image_size
    if size is not None:
        images = jax.image.resize(images, (len(images), size, size, images.shape[-1]), "linear")
    return jax.lax.stop_gradient(clip.apply(images, method="encode_images"))


def scaled(vectors):
    """Vectors of length 1 with numbers about 1."""
    return vectors * math.sqrt(vectors.shape[-1])
