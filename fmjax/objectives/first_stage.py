"""The first of two stages: a run's codes of images, of which a second one makes images."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from fmjax.errors import ConfigError
from fmjax.layers import quantizers
from fmjax.objectives.base import OtherModel


@dataclasses.dataclass(frozen=True)
class FirstStaged:
    """Base of the objectives of a second stage.

    Attributes:
      first_stage: a run of objective `vq_autoencoder` or `discrete_vae`, on images prepared as these. It is not saved
        with the run, and making images needs it where it lies.
    """

    OPENED: ClassVar[tuple[str, ...]] = ("first_stage",)

    first_stage: str = ""

    def __post_init__(self):
        if not self.first_stage:
            raise ConfigError(
                "objective.first_stage is empty: give the path of a run of objective vq_autoencoder or discrete_vae, "
                "such as runs/vqgan_shapes, which configs/vqgan_shapes.py makes"
            )

    def models(self) -> dict[str, str]:
        """See `fmjax.objectives.base`."""
        return {"first_stage": self.first_stage}

    def check_models(self, module, models) -> None:
        """Raises ConfigError for a first stage without codes, or with another number of them than the module."""
        found = check_first_stage(models["first_stage"], self.first_stage)
        for name, number in zip(("num_codes", "num_places"), found):
            if getattr(module, name, number) != number:
                raise ConfigError(
                    f"model.{name} = {getattr(module, name)}, but objective.first_stage = {self.first_stage!r} has "
                    f"{found[0]} codes, {found[1]} an image; set model.{name} = {number}"
                )


def has_own_codes(module) -> bool:
    """Whether a first stage itself says codes and makes images of them (`fmjax.models.discrete_vae.DiscreteVAE`); or
    else its objective carries a codebook of its vectors."""
    return all(hasattr(module, name) for name in ("codes", "images_of"))


def num_codes_of(first: OtherModel) -> int:
    """How many codes there are."""
    return first.module.num_codes if has_own_codes(first.module) else first.carry["counts"].shape[0]


def codes_of(first: OtherModel, images: jax.Array) -> jax.Array:
    """int32 [B, N]: the codes of images float32 [B, H, W, C]."""
    if has_own_codes(first.module):
        return first.apply(images, method="codes")
    vectors = first.apply(images, method="encode")
    return quantizers.nearest(vectors, quantizers.codes(first.carry)).astype(jnp.int32)


def images_of(first: OtherModel, codes: jax.Array) -> jax.Array:
    """float32 [B, H, W, C]: the images of codes int32 [B, N]."""
    if has_own_codes(first.module):
        return first.apply(codes, method="images_of").astype(jnp.float32)
    return first.apply(quantizers.codes(first.carry)[codes], method="decode").astype(jnp.float32)


def check_first_stage(first: OtherModel, path: str) -> tuple[int, int]:
    """(codes that there are, codes of an image) of a first stage, of which shapes are enough.

    Raises ConfigError for a model without codes.
    """
    module = first.module
    has_book = all(hasattr(module, name) for name in ("encode", "decode")) and {"counts", "sums"} <= set(first.carry)
    if not has_book and not has_own_codes(module):
        raise ConfigError(
            f"objective.first_stage = {path!r} is {type(module).__name__} without a codebook; give a run of objective "
            "vq_autoencoder or discrete_vae, such as that of configs/vqgan_shapes.py"
        )
    images = jax.ShapeDtypeStruct((1, module.image_size, module.image_size, module.num_channels), jnp.float32)
    return num_codes_of(first), jax.eval_shape(codes_of, first, images).shape[1]
