"""What of an image a model's answer comes from: how much it attends to each patch, and what covering one changes."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from fmjax.data.codecs.media import Media
from fmjax.errors import InputError
from fmjax.inference import values
from fmjax.inference.checks import check_whole
from fmjax.parallel.placement import whole

GREY = 128


def attention_maps(model, images: Sequence[Any], *, batch_size: int = 64) -> np.ndarray:
    """How much the class token attends to each patch, float32 [N, layers, heads, rows, columns]; of an image tower
    without one, how much all patches do in the mean.

    Shares of one softmax: with the class token's own they sum to 1.

    Args:
      images: uint8 [H, W, C], or `Media`.
      batch_size: images of one forward pass.

    Raises InputError for a model without `attends_to_patches`, and for one whose stack does not say what it attends to.
    """
    tower = image_tower(model.module)
    if not attends_to_patches(model.module):
        name = type(tower).__name__
        raise InputError(f"{model} attends to no patches of images: {name} is no stack over one grid of patches")
    arrays = values.encode(model, images, "image")
    side = tower.image_size // tower.patch_size
    forward = lambda part: _maps(model.module, model.variables, part, side)
    parts = list(values.in_batches(model, arrays, forward, "show", batch_size, None))
    return np.concatenate(parts).reshape(len(images), *parts[0].shape[1:3], side, side)


def attends_to_patches(module: nn.Module) -> bool:
    """Whether images of one size go through a stack of attention over patches, of which there are `attention_maps`."""
    tower = image_tower(module)
    reads_images = hasattr(module, "encode_images") or hasattr(tower, "hidden")
    one_grid = hasattr(tower, "patch_size") and getattr(tower, "image_size", None) is not None
    return reads_images and one_grid and hasattr(tower, "transformer")


def image_tower(module: nn.Module) -> nn.Module:
    """The image tower of a model of images and texts; any other module itself."""
    return getattr(module, "vision", module)


@functools.partial(jax.jit, static_argnames=("module", "side"))
def _maps(module: nn.Module, variables, arrays, side: int) -> jax.Array:
    """Float32 [B, layers, heads, side * side]."""
    shares = shares_of_layers(module, variables, arrays).transpose(1, 0, 2, 3, 4)
    to_patches = shares[..., -side * side :]  # a class token comes first
    has_token = shares.shape[-1] > side * side
    return whole(to_patches[..., 0, :] if has_token else to_patches.mean(axis=-2))


def shares_of_layers(module: nn.Module, variables, arrays) -> jax.Array:
    """What attends to what in each layer of the stack over patches: float32 [layers, B, heads, T, T], the last axis
    summing to 1. `module` is one of which `attends_to_patches` holds; InputError as of `attention_maps`."""
    towers = hasattr(module, "encode_images")
    method = "encode_images" if towers else "hidden"
    _, state = module.apply(variables, **arrays, method=method, mutable=["reads"])
    reads = state["reads"]["vision"] if towers else state["reads"]
    q, k = (_of_layers(reads, name) for name in "qk")
    c = image_tower(module).transformer
    q, k = q.astype(jnp.float32), jnp.repeat(k, c.num_heads // c.num_kv_heads, axis=3).astype(jnp.float32)
    scale = c.head_dim**-0.5 if c.query_scale is None else c.query_scale
    return jax.nn.softmax(scale * jnp.einsum("lbqhd,lbkhd->lbhqk", q, k), axis=-1)


def _of_layers(reads, name: str) -> jax.Array:
    """[layers, B, T, heads, D]: what the layers' attention says by `name`, whether they are scanned or not. Attention
    beside the stack, such as a pooling head's, is none of it."""
    stack = reads.get("stack", {})
    layers = sum(block.startswith("blocks_") for block in stack)
    blocks = ["blocks"] if "blocks" in stack else [f"blocks_{layer}" for layer in range(layers)]
    said = [stack.get(block, {}).get("attention", {}).get(name) for block in blocks]
    if not said or any(one is None for one in said):
        known = ", ".join("/".join(path) for path in traverse_util.flatten_dict(reads))
        raise InputError(f"the stack over patches says no {name!r} of its attention; it says {known or 'nothing'}")
    return said[0] if blocks == ["blocks"] else jnp.stack(said)


def patch_attribution(
    model, images: Sequence[Any], labels: Sequence[str], *, patches: int = 8, classify: Callable | None = None
) -> np.ndarray:
    """By how much the logarithm of a class's probability falls when a patch is covered in grey, in nats, float32
    [N, patches, patches] (occlusion sensitivity, Zeiler and Fergus 2014, https://arxiv.org/abs/1311.2901, section 4.2).

    Args:
      images: uint8 [H, W, C], or `Media`, of any model that classifies.
      labels: the class of each that is looked at.
      patches: along each side; at most the pixels of a side.
      classify: function of (list of `Media`) in place of the model's ability.

    Raises InputError for a class that the model does not know, and more patches than pixels.
    """
    classify = classify or model.can("classify")
    codec = values.reads(model)["image"]
    found = np.zeros((len(images), patches, patches), np.float32)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        pixels = read_pixels(image, codec)
        check_whole(1, min(pixels.shape[:2]), patches=patches)
        edges = [np.linspace(0, side, patches + 1).round().astype(int) for side in pixels.shape[:2]]
        covered = [Media("image", pixels)]
        for row in range(patches):
            for column in range(patches):
                one = pixels.copy()
                one[edges[0][row] : edges[0][row + 1], edges[1][column] : edges[1][column + 1]] = GREY
                covered.append(Media("image", one))
        logs = np.array([_log_probability(answer, label) for answer in classify(covered)])
        found[number] = (logs[0] - logs[1:]).reshape(patches, patches)
    return found


def read_pixels(image: Any, codec) -> np.ndarray:
    """The image uint8 [H, W, C] as the model sees it, in the codec's size."""
    arrays = image.encode(codec) if isinstance(image, Media) else codec.encode(image)
    return codec.decode(arrays)


def _log_probability(answer: Sequence[tuple[Any, float]], label: str) -> float:
    known = {str(name): probability for name, probability in answer}
    if str(label) not in known:
        raise InputError(f"the model does not know the class {label!r}; it knows {', '.join(sorted(known)[:20])}")
    return float(np.log(max(known[str(label)], 1e-30)))


def overlaid(image: np.ndarray, heat: np.ndarray, low: float, high: float) -> np.ndarray:
    """An image uint8 [H, W, C] in grey under the colours of `heat` [rows, columns], `low` blue and `high` yellow: uint8
    [H, W, 3]."""
    from matplotlib import colormaps
    from PIL import Image

    height, width = image.shape[:2]
    shares = np.clip((np.asarray(heat, np.float64) - low) / max(high - low, 1e-12), 0, 1)
    colours = (colormaps["viridis"](shares)[..., :3] * 255).astype(np.uint8)
    colours = np.asarray(Image.fromarray(colours).resize((width, height), Image.Resampling.NEAREST))
    grey = image.mean(axis=-1, keepdims=True)
    return np.rint(0.4 * grey + 0.6 * colours).astype(np.uint8)
