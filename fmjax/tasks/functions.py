"""Named pure functions of a model that tasks may apply: `Apply("embed", text)`."""

import difflib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fmjax.inference import kinds, pairs
from fmjax.registry import import_object


def embed(model, inputs: Sequence[Any]) -> np.ndarray:
    """Vectors of texts or media, float32 [N, D], pooled as the model's kind wants it, of length 1.

    Texts of a model of images and texts are captions: those that are too long go by the rule of its run.
    """
    if kinds.has_two_towers(model.module) and len(inputs) and all(isinstance(one, str) for one in inputs):
        return pairs.embed_texts(model, inputs, overlong=pairs.caption_rows(model).overlong)
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


FUNCTIONS: dict[str, tuple[Callable, str]] = {
    "embed": (embed, "embed"),
    "shared_pseudo_loglikelihood": (shared_pseudo_loglikelihood, "fill_mask"),
}
"""Name to (function of (model, inputs), the ability that it takes). The model's abilities are applied too."""


def available(model) -> list[str]:
    """Names of the functions that a model has: its abilities, and those of the table that lean on them."""
    able = model.abilities
    return [*able, *(name for name, (_, ability) in FUNCTIONS.items() if ability in able and name not in able)]


def get(model, name: str) -> Callable:
    """The function of (model, inputs) called `name`. Raises InputError, ConfigError for an import path."""
    if name in model.functions:
        return model.functions[name]
    if name in FUNCTIONS:
        function, ability = FUNCTIONS[name]
        model.can(ability)
        return function
    if ":" in name:
        return import_object(name, "function")
    able = model.can(name)
    return lambda model, inputs: able(inputs)
