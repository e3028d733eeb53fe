"""Masked autoencoding (He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners"): the pixels of hidden
patches from those of the visible ones."""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from fmjax.errors import ConfigError
from fmjax.layers.checks import check_positive
from fmjax.layers.patchify import patchify, unpatchify
from fmjax.objectives.base import per_row
from fmjax.parallel.placement import whole

EPSILON = 1e-6
"""Added to a patch's variance."""


@dataclasses.dataclass(frozen=True)
class MaskedAutoencoder:
    """Mean squared error a pixel over the patches that the encoder has not seen; which those are is drawn anew for each
    row. The module is `fmjax.models.mae.MAE`, or another that is called as it is.

    Attributes:
      normalise_pixels: targets have the mean 0 and the variance 1 within each patch (the paper's table 1d); else they
        are the pixels themselves.
      num_samples: held-out images that are written, each beside what is seen of it and what is made of that.
    """

    RESUME_FREE: ClassVar[tuple[str, ...]] = ("num_samples",)
    ROWS_APART: ClassVar[bool] = True
    makes: ClassVar[str] = "image"
    generator: ClassVar[str] = "reconstruction"

    normalise_pixels: bool = True
    num_samples: int = 12

    def __post_init__(self):
        check_positive(num_samples=self.num_samples)

    def check(self, module, data) -> None:
        """Raises ConfigError for a module that masks nothing."""
        if not all(hasattr(module, name) for name in ("num_kept", "num_patches")):
            raise ConfigError(
                f"objective mae needs a module that sees a part of an image, which {type(module).__name__} is not; "
                "take model.name = 'mae'"
            )

    def inputs(self, batch) -> dict:
        """What the module is initialised with. It has no more patches than pixels."""
        images = batch["images"]
        return {"images": images, "noise": jax.ShapeDtypeStruct(_noise_shape(images), jnp.float32)}

    def __call__(self, apply_fn, params, batch, key, train: bool) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Sums over the batch: "loss", each row's mean over the hidden patches, with the total of `loss_weights` [B].

        Args:
          batch: images float32 [B, H, W, C], loss_weights float32 [B], keys [B].
        """
        images, weights = batch["images"], batch["loss_weights"]
        noise = per_row(lambda row: jax.random.uniform(row, _noise_shape(images)[1:]), batch["keys"])
        made = apply_fn({"params": params}, images=images, noise=noise, train=train, rngs={"dropout": key})
        losses = self.losses(made, images)
        return {"loss": ((losses * weights).sum(), weights.sum())}

    def losses(self, made: dict, images: jax.Array) -> jax.Array:
        """float32 [B]: equation of the paper's section 3, of what `MAE` makes of images."""
        targets, _, _ = self.targets(images, made["patches"].shape[1])
        errors = ((made["patches"] - targets) ** 2).mean(-1)
        return (errors * made["mask"]).sum(1) / made["mask"].sum(1)

    def targets(self, images: jax.Array, num_patches: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(targets [B, N, p * p * C], and the mean and deviation [B, N, 1] that they are without)."""
        patches = patchify(images, _patch_size(images, num_patches))
        if not self.normalise_pixels:
            return patches, jnp.zeros(()), jnp.ones(())
        mean = patches.mean(-1, keepdims=True)
        deviation = jnp.sqrt(patches.var(-1, keepdims=True, ddof=1) + EPSILON)
        return (patches - mean) / deviation, mean, deviation

    def can_sample(self, module, data) -> bool:
        """Whether the data have images to show."""
        return self.makes in data.codecs and bool(data.evaluation)

    def num_shown(self) -> int:
        """Of the rows that `sample` takes."""
        return self.num_samples

    def sample(self, model, key, rows) -> list[np.ndarray]:
        """Each image of `rows`, what is seen of it, grey where nothing is, and what is made of that."""
        images = rows["images"]
        noise = np.asarray(jax.random.uniform(key, _noise_shape(images)))
        seen, made = map(np.asarray, _pictures(model.module, self, model.params, images, noise))
        decoded = lambda image: model.codec.decode({model.codec.array: image})
        return [decoded(image) for three in zip(images, seen, made) for image in three]

    def reconstruct(self, model, arrays) -> jax.Array:
        """float32 [B, H, W, C]: `arrays["images"]` with their hidden patches as the model makes them, the same patches
        of each."""
        images = arrays["images"]
        noise = jnp.broadcast_to(jax.random.uniform(jax.random.key(0), _noise_shape(images)[1:]), _noise_shape(images))
        return _pictures(model.module, self, model.params, images, noise)[1]


def _noise_shape(images) -> tuple[int, int]:
    return images.shape[0], images.shape[1] * images.shape[2]


def _patch_size(images, num_patches: int) -> int:
    """The side of the patches that images are cut into."""
    return round((images.shape[1] * images.shape[2] / num_patches) ** 0.5)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _pictures(module, objective, params, images, noise) -> tuple[jax.Array, jax.Array]:
    """float32 [B, H, W, C] each: images with zeros in place of hidden patches, and with what is made of these.

    Where targets are normalised, the mean and deviation of the true patch are put back (the paper's figure 2 does so).
    """
    made = module.apply({"params": params}, images=images, noise=noise)
    mask, size = made["mask"][..., None], _patch_size(images, made["mask"].shape[1])
    _, mean, deviation = objective.targets(images, made["mask"].shape[1])
    patches = patchify(images, size)
    drawn = patches * (1 - mask) + (made["patches"] * deviation + mean) * mask
    back = lambda x: whole(unpatchify(x, size, *images.shape[1:3]))
    return back(patches * (1 - mask)), back(drawn)
