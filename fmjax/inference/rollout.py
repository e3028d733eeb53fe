"""What of an image an answer comes from, through all layers: attention rolled out, and gradients times input.

`fmjax.inference.patches` has single layers' attention, and what covering a patch changes.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fmjax.errors import InputError
from fmjax.inference import values
from fmjax.inference.patches import attends_to_patches, image_tower, shares_of_layers
from fmjax.parallel.placement import whole

LABELS = "labels"
"""The array of the classes that are looked at."""


def attention_rollout(model, images: Sequence[Any], *, batch_size: int = 64) -> np.ndarray:
    """How much of each patch is in the class token's last vector, float32 [N, rows, columns], by attention rollout
    (Abnar and Zuidema 2020, https://arxiv.org/abs/2005.00928, section 3): the product over layers of attention, the
    mean over heads, half of it the residual connection. Without a class token the mean over patches.

    Args:
      images: uint8 [H, W, C], or `Media`, of a model such as "vit", or of one with such an image tower.
      batch_size: images of one forward pass.

    Raises InputError for a model without attention over patches.
    """
    module = model.module
    if not attends_to_patches(module):
        raise InputError(f"{model} attends to no patches of images; attention is rolled out of models such as 'vit'")
    side = image_tower(module).image_size // image_tower(module).patch_size
    forward = lambda part: _rolled(module, model.variables, part, side * side)
    parts = values.in_batches(model, values.encode(model, images, "image"), forward, "show", batch_size)
    return np.concatenate(list(parts)).reshape(len(images), side, side)


@functools.partial(jax.jit, static_argnames=("module", "patches"))
def _rolled(module: nn.Module, variables, arrays, patches: int) -> jax.Array:
    shares = shares_of_layers(module, variables, arrays).mean(axis=2)
    through = 0.5 * shares + 0.5 * jnp.eye(shares.shape[-1])
    step = lambda below, layer: (layer @ below, None)
    rolled, _ = jax.lax.scan(step, jnp.broadcast_to(jnp.eye(shares.shape[-1]), shares.shape[1:]), through)
    has_token = shares.shape[-1] > patches
    return whole(rolled[:, 0, -patches:] if has_token else rolled.mean(axis=1))


def gradient_times_input(
    model, images: Sequence[Any], labels: Sequence[Any], *, patches: int = 8, batch_size: int = 16
) -> np.ndarray:
    """To first order, what each patch adds to the logit of a class, float32 [N, patches, patches]: gradient times input
    (Shrikumar et al. 2016, https://arxiv.org/abs/1605.01713), summed over the patch's numbers as the model reads them.

    Args:
      images: uint8 [H, W, C], or `Media`, of a model that classifies them.
      labels: the class of each, as the model's codec has it.
      patches: along each side; a divisor of the image's height and width.

    Raises InputError for a model that does not classify, and for patches that do not divide the image.
    """
    if lacks := values.lacks_classes(model):
        raise InputError(f"{model} has no classes of its own, whose logits have gradients: {lacks}")
    codec = model.codecs[model.objective.predicts]
    arrays = values.encode(model, images, "image")
    numbers = [codec.encode(label)[codec.array] for label in labels]
    if len(numbers) != len(images):
        raise InputError(f"{len(images)} images and {len(numbers)} labels; give a label for each image")
    height, width = model.codecs["image"].shape[:2]
    if height % patches or width % patches:
        raise InputError(f"patches = {patches} does not divide images of {height}x{width} pixels; choose a divisor")
    name = model.codecs["image"].array
    forward = lambda part: _attributed(model.module, model.variables, part[name], part[LABELS], name, patches)
    arrays = {name: arrays[name], LABELS: np.asarray(numbers, np.int32)}
    return np.concatenate(list(values.in_batches(model, arrays, forward, "show", batch_size)))


@functools.partial(jax.jit, static_argnames=("module", "name", "patches"))
def _attributed(module: nn.Module, variables, images, labels, name: str, patches: int) -> jax.Array:
    def logits(images):
        found = module.apply(variables, **{name: images})
        return jnp.take_along_axis(found, labels[:, None], axis=1).sum()

    product = jax.grad(logits)(images) * images
    batch, height, width, channels = images.shape
    blocks = product.reshape(batch, patches, height // patches, patches, width // patches, channels)
    return whole(blocks.sum(axis=(2, 4, 5)))
