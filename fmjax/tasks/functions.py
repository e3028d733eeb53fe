"""Named pure functions of a model that tasks may apply: `Apply("embed", text)`."""

from collections.abc import Callable, Sequence

import numpy as np

from fmjax.errors import InputError
from fmjax.registry import import_object, nearest


def embed(model, inputs: Sequence[str]) -> np.ndarray:
    """Vectors of texts, float32 [N, D], pooled as the model's kind wants it, of length 1."""
    return model.embed(list(inputs), normalize=True)


def _has_hidden(model) -> bool:
    return hasattr(model.module, "hidden") and model.tokenizer is not None


FUNCTIONS: dict[str, tuple[Callable, Callable]] = {"embed": (embed, _has_hidden)}
"""Name to (function of (model, inputs), whether a model has it)."""


def available(model) -> list[str]:
    """Names of the functions that a model has, those that `Task.adapt` gave it (`Model.functions`) among them."""
    return [*model.functions, *(name for name, (_, has) in FUNCTIONS.items() if has(model))]


def get(model, name: str) -> Callable:
    """The function of (model, inputs) called `name`. Raises InputError, ConfigError for an import path."""
    if name in model.functions:
        return model.functions[name]
    if name in FUNCTIONS and FUNCTIONS[name][1](model):
        return FUNCTIONS[name][0]
    if ":" in name:
        return import_object(name, "function")
    known = available(model)
    raise InputError(f"{model} has no function {name!r}{nearest(name, known)} It has: {', '.join(known) or 'none'}")
