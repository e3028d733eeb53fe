"""Named pure functions of a model that tasks may apply: `Apply("embed", text)`."""

import difflib
from collections.abc import Callable, Sequence

import numpy as np

from fmjax.errors import InputError
from fmjax.registry import import_object, nearest


def embed(model, inputs: Sequence[str]) -> np.ndarray:
    """Vectors of texts, float32 [N, D], pooled as the model's kind wants it, of length 1."""
    return model.embed(list(inputs), normalize=True)


def shared_pseudo_loglikelihood(model, inputs: Sequence[tuple[str, str]]) -> np.ndarray:
    """Pseudo-log-likelihoods of the tokens that two texts share, float64 [N, 2], one for each text of a pair.

    Each such token is predicted with itself alone masked. Shared is what `difflib` matches in the two lists of tokens
    as they go into the model, as in Nangia et al. 2020's script: the special tokens around the texts make the runs of
    tokens that they touch longer, and so likelier to be the ones that match. They themselves do not count.
    """
    from fmjax.inference.pseudo_likelihood import pseudo_loglikelihoods
    from fmjax.inference.word_vectors import around

    front, back = around(model)
    texts, places = [], []
    for pair in inputs:
        framed = model.framed(model.tokens(list(pair)))
        blocks = difflib.SequenceMatcher(None, *framed).get_matching_blocks()
        for side, tokens in enumerate(framed):
            inside = range(len(front), len(tokens) - len(back))
            shared = (block[side] + i for block in blocks for i in range(block.size))
            texts.append(tokens)
            places.append([place for place in shared if place in inside])
    options = dict(num_tokens=model.tokenizer.vocab_size)
    with model.inference():
        found = pseudo_loglikelihoods(model.module, model.params, texts, places, model.tokenizer.mask_id, **options)
    return found.reshape(-1, 2)


def _has_masks(model) -> bool:
    fits = model.is_bidirectional and hasattr(model.module, "features") and not hasattr(model.module, "prefill")
    return fits and getattr(model.tokenizer, "mask_id", None) is not None


def _has_hidden(model) -> bool:
    return hasattr(model.module, "hidden") and model.tokenizer is not None


FUNCTIONS: dict[str, tuple[Callable, Callable]] = {
    "embed": (embed, _has_hidden),
    "shared_pseudo_loglikelihood": (shared_pseudo_loglikelihood, _has_masks),
}
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
