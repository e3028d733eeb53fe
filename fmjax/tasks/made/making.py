"""Images made for evaluations, one an answer: kept as they come, the same whatever else is asked for."""

import base64
import collections
import dataclasses
import inspect
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from fmjax.config_fields import field_types
from fmjax.config_values import FlagText, coerce
from fmjax.inference import generators
from fmjax.inference.checks import check_options
from fmjax.inference.fingerprint import model_fingerprint
from fmjax.tasks.made.other_models import name_of, weights_of

MAKE = f"{__name__}:make"
"""The function of `Apply` that makes images: inputs (prompt, number of the copy, options, seed)."""


def generator_options(model, options: Sequence[tuple[str, str]], seed: int):
    """The `Options` of the model's generator, of texts by name. Raises InputError for one that it does not have."""
    kind = generators.kind_of(model)
    fields = field_types(kind.Options)
    check_options(f"the generator of {model}", dict(options), list(fields))
    given = {name: coerce(FlagText(value), fields[name][0], name) for name, value in options}
    return kind.Options(**given, **({"seed": seed} if "seed" in fields else {}))


def make(model, inputs: Sequence[tuple[Any, int, tuple, int]]) -> list[str]:
    """PNG files in base64, of images uint8 [H, W, C].

    A value depends on its prompt, the number of its copy, options and seed alone (`fmjax.inference.generators`), so
    that what is missing after an interruption is made as it would have been.
    """
    found: dict[int, str] = {}
    for options, seed in dict.fromkeys((options, seed) for _, _, options, seed in inputs):
        mine = {(p, copy): place for place, (p, copy, *rest) in enumerate(inputs) if rest == [options, seed]}
        # Copies are counted from 0: all before the last that is wanted stand among the prompts, and are left out.
        highest = collections.defaultdict(int)
        for prompt, copy in mine:
            highest[prompt] = max(highest[prompt], copy)
        jobs = [(prompt, copy) for prompt, last in highest.items() for copy in range(last + 1)]
        wanted = {index: mine[job] for index, job in enumerate(jobs) if job in mine}
        kind = generators.kind_of(model)
        chosen = generator_options(model, options, seed)
        told = {"only": set(wanted)} if "only" in inspect.signature(kind.run).parameters else {}
        for index, value in kind(model).run([prompt for prompt, _ in jobs], chosen, **told):
            if index in wanted:
                found[wanted[index]] = encoded(value)
    return [found[place] for place in range(len(inputs))]


def stages(model, options: Sequence[tuple[str, str]], seed: int) -> dict[str, Any]:
    """The loaded models that options of the model's generator name by path, by the options' names."""
    generator = generators.kind_of(model)(model)
    if not hasattr(generator, "stages"):
        return {}
    return generator.stages(generator_options(model, options, seed))


def _content_of_stages(model, inputs: tuple[Any, int, tuple, int]) -> dict[str, str]:
    """Fingerprints of `stages`: a path says nothing of what lies there."""
    _, _, options, seed = inputs
    kept = model.kept.setdefault("content of stages", {})
    if options not in kept:
        kept[options] = {name: model_fingerprint(one) for name, one in stages(model, options, seed).items()}
    return kept[options]


make.depends_on = _content_of_stages  # see `fmjax.tasks.protocol.Apply`


def encoded(image: np.ndarray) -> str:
    """An image uint8 [H, W, 1 or 3] as the base64 of a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def decoded(text: str) -> np.ndarray:
    """The image of `encoded`."""
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))
    return image[..., None] if image.ndim == 2 else image


def card(model, options: Sequence[tuple[str, str]], seed: int) -> dict[str, Any]:
    """How images are made: the generator with all of its options, the weights of other models that these name, and the
    average of weights that makes them."""
    chosen = generator_options(model, options, seed)
    shown = {name: value for name, value in dataclasses.asdict(chosen).items() if name != "batch_size"}
    unset = ("num_samples", "init_image", "mask", "invert", "strength", "negative")
    kept = {name: value for name, value in shown.items() if name not in unset}
    for name, stage in stages(model, options, seed).items():
        kept[name] = {"name": name_of(kept[name]), "weights": weights_of(stage)}
    return {"generator": type(chosen).__module__.rpartition(".")[2], **kept, "seed": seed, **average(model)}


def average(model) -> dict[str, Any]:
    """Which average of its run's weights a model has: {"ema_sigma_rel": width} of one by a power function (the one that
    it was loaded with, or else the first that its run kept), otherwise {"ema_decay": decay}, 0 for none."""
    settings = model.config.get("train") or {}
    width = (model.config.get("average") or {}).get("sigma_rel")
    widths = (width,) if width is not None else tuple(settings.get("ema_sigma_rel") or ())
    return {"ema_sigma_rel": widths[0]} if widths else {"ema_decay": settings.get("ema_decay") or 0.0}
