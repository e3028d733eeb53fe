"""Bits a number of an image, by the bound of a model that makes images out of noise."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from fmjax.data.codecs.media import Media
from fmjax.diffusion.likelihood import bits
from fmjax.errors import DataError, InputError
from fmjax.inference import counted

BATCH = 64


def lacks_bits(model) -> str | None:
    """What a model lacks to say how many bits an image has."""
    objective = model.objective
    process = getattr(objective, "process", None)
    if process is None or process.is_of_tokens or not hasattr(objective, "target"):
        return "its objective is no diffusion of numbers, of whose bound bits are"
    if getattr(objective, "of_latents", False):
        return "it makes latents, whose bits are none of an image"
    if (told := getattr(objective, "condition", "label")) not in ("label", "none"):
        return f"it is told more of an image than its class (objective.condition = {told!r}), on top of which bits are"
    codec = model.codec
    if codec is None or (codec.mean, codec.std) != ((0.5,), (0.5,)):
        return "it has no codec of images from -1 to 1, whose levels are known"
    return None


def image_bits(model, inputs: Sequence[tuple[Media, Any, int, int]]) -> np.ndarray:
    """float32 [N, 3], as `fmjax.diffusion.likelihood.bits`, of (image, its label or None, number that its noise is
    drawn with, draws of noise levels)."""
    objective, codec, labels = model.objective, model.codec, model.codecs.get("label")
    (draws,) = {draws for *_, draws in inputs}
    found = []
    for first in range(0, len(inputs), BATCH):
        part = list(inputs[first : first + BATCH])
        filled = part + part[-1:] * (min(BATCH, len(inputs)) - len(part))
        arrays = {objective.input_name: np.stack([image.encode(codec)[codec.array] for image, *_ in filled])}
        if labels is not None and all(label is not None for _, label, *_ in filled):
            try:
                arrays["labels"] = np.stack([labels.encode(label)["labels"] for _, label, *_ in filled])
            except DataError as error:
                raise InputError(str(error)) from None
        if "labels" not in arrays and not getattr(model.module, "null_class", True):
            raise InputError(f"{model} has no row for no label; give images with classes")
        keys = jax.vmap(jax.random.key)(np.array([number for _, _, number, *_ in filled], np.uint32))
        with model.inference():
            rows = np.asarray(bits(model, arrays, keys, draws=draws))
        found.append(rows[: len(part)])
    counted.read_examples({objective.input_name: codec.shape}, len(inputs) * (draws + 1))
    return np.concatenate(found)
