"""The first of two stages: a run's codebook of images, by which a second one makes images of codes."""

import jax
import jax.numpy as jnp

from fmjax.errors import ConfigError
from fmjax.layers import quantizers
from fmjax.objectives.base import OtherModel


def codes_of(first: OtherModel, images: jax.Array) -> jax.Array:
    """int32 [B, N]: the codes of images float32 [B, H, W, C]."""
    vectors = first.apply(images, method="encode")
    return quantizers.nearest(vectors, quantizers.codes(first.carry)).astype(jnp.int32)


def images_of(first: OtherModel, codes: jax.Array) -> jax.Array:
    """float32 [B, H, W, C]: the images of codes int32 [B, N]."""
    return first.apply(quantizers.codes(first.carry)[codes], method="decode").astype(jnp.float32)


def check_first_stage(first: OtherModel, path: str) -> tuple[int, int]:
    """(codes of the codebook, codes of an image) of a first stage, of which shapes are enough.

    Raises ConfigError for a model without a codebook.
    """
    module = first.module
    if not all(hasattr(module, name) for name in ("encode", "decode")) or not {"counts", "sums"} <= set(first.carry):
        raise ConfigError(
            f"objective.first_stage = {path!r} is {type(module).__name__} without a codebook; give a run of objective "
            "vq_autoencoder, such as that of configs/vqgan_shapes.py"
        )
    images = jax.ShapeDtypeStruct((1, module.image_size, module.image_size, module.num_channels), jnp.float32)
    return len(first.carry["counts"]), jax.eval_shape(codes_of, first, images).shape[1]
