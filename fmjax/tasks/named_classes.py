"""Models that classify: the ability "classify" given to a model, by a head's logits or by the words for classes."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from fmjax.inference.pairs import class_vectors


def by_logits(model, names: Sequence[str]):
    """A model whose "class_logits" are of the classes `names`, with "classify" by them."""
    return _classifying(model, named_classes, names, model.functions["class_logits"])


def by_words(model, names: Sequence[str], words: Sequence[str], templates: Sequence[str]):
    """A model of images and texts, with "classify" by `words` for the classes `names` (Radford et al. 2021,
    https://arxiv.org/abs/2103.00020, section 3.1.4); see `fmjax.inference.pairs.class_vectors`."""
    return _classifying(model, told_classes, names, class_vectors(model, words, templates))


def _classifying(model, function: Callable, names: Sequence[str], computed):
    """`function(names, computed, model, inputs)` as "classify"; the fingerprint sees what is computed with."""
    classify = jax.tree_util.Partial(functools.partial(function, tuple(names)), computed)
    return dataclasses.replace(model, functions=model.functions | {"classify": classify})


def named_classes(names: tuple[str, ...], class_logits, model, inputs: Sequence[Any]) -> list[list[tuple[str, float]]]:
    """As the ability "classify": for each input the classes, likeliest first, with their probabilities."""
    logits = np.asarray(class_logits(model, inputs), np.float64)
    found = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return _ordered(names, found / found.sum(axis=-1, keepdims=True))


def told_classes(names: tuple[str, ...], vectors, model, inputs: Sequence[Any]) -> list[list[tuple[str, float]]]:
    """As `named_classes`, by the model's own probabilities for classes whose words have `vectors`, float32 [C, E]."""
    image = model.embed(list(inputs))
    found = np.asarray(model.apply(image=image, text=np.asarray(vectors), method="probabilities"), np.float64)
    return _ordered(names, found)


def _ordered(names: tuple[str, ...], found: np.ndarray) -> list[list[tuple[str, float]]]:
    order = np.argsort(-found, axis=-1, kind="stable")
    return [[(names[i], float(row[i])) for i in best] for row, best in zip(found, order)]
