"""The last layer's output at the first token of each word of a text."""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fmjax.inference import counted
from fmjax.inference.rows import batches, padded
from fmjax.parallel.placement import whole


def word_places(model, words: Sequence[str]) -> tuple[list[int], list[int]]:
    """(tokens, places) of words joined by spaces, framed as in training and cut where the model's context ends.

    places: of each word's first token among the tokens; -1 for a word that has none of its own, or lies beyond the cut.
    """
    text, starts = "", []
    for word in words:
        text += " " if starts else ""
        starts.append(len(text))
        text += word
    ids, spans = model.tokenizer.encode_special_spans(text)
    tokens, before, cut = framed(model, ids)
    places, at = [], 0
    for word, start in zip(words, starts):
        while at < len(spans) and spans[at][1] <= start:
            at += 1
        found = at < cut and spans[at][0] < start + len(word)
        places.append(before + at if found else -1)
    return tokens, places


def framed(model, ids: Sequence[int]) -> tuple[list[int], int, int]:
    """(tokens with what stands around a text in training, how many stand in front, how many of `ids` are kept).

    Of a text longer than the model's context the beginning is kept.
    """
    front, back = around(model)
    if not ids:  # which takes BOS where other texts do without
        return model.framed([[]])[0], len(front), 0
    limit = model.context_length
    kept = len(ids) if limit is None else min(len(ids), limit - len(front) - len(back))
    return [*front, *ids[:kept], *back], len(front), kept


def around(model) -> tuple[list[int], list[int]]:
    """What stands in front of a text's tokens in training, and what behind them."""
    inside = -1  # no token, so it is found whatever the text itself begins with
    (full,) = model.framed([[inside]])
    place = full.index(inside)
    return full[:place], full[place + 1 :]


@functools.partial(jax.jit, static_argnames="module")
def _vectors_at(module: nn.Module, params, tokens, segment_ids, places) -> jax.Array:
    """Float32 [B, W, D] at `places` [B, W]."""
    hidden = module.apply({"params": params}, tokens, segment_ids=segment_ids, method="hidden")
    return whole(jnp.take_along_axis(hidden, places[..., None], axis=1).astype(jnp.float32))


BATCH_SIZE = 16
"""Sentences of one forward pass."""


def word_vectors(model, sentences: Sequence[Sequence[str]]) -> list[np.ndarray]:
    """For each sentence float32 [words, D]: the vector at each word's first token; 0 for words without one.

    Args:
      model: a `fmjax.load.Model` with the method `hidden` and a tokenizer.
      sentences: lists of words.
    """
    placed = [word_places(model, sentence) for sentence in sentences]
    counted.read(len(tokens) for tokens, _ in placed)
    found: list = [None] * len(placed)
    for group in batches([len(tokens) for tokens, _ in placed], BATCH_SIZE, "word vectors"):
        rows = padded([placed[i][0] for i in group], BATCH_SIZE, model.context_length)
        places = padded([np.maximum(placed[i][1], 0) for i in group], BATCH_SIZE).tokens
        with model.inference():
            vectors = np.asarray(_vectors_at(model.module, model.params, rows.tokens, rows.segment_ids, places))
        for row, i in enumerate(group):
            where = np.asarray(placed[i][1], int)
            found[i] = vectors[row, : len(where)] * (where >= 0)[:, None]
    return found
