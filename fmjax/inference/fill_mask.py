"""What a masked language model puts in the place of mask tokens."""

import functools
from collections import defaultdict
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fmjax.errors import InputError
from fmjax.inference.rows import batches, bucket, check_lengths, padded
from fmjax.layers.embed import output_logits
from fmjax.parallel.placement import whole

TRACES: dict[str, int] = defaultdict(int)
"""How often the program was traced."""


@functools.partial(jax.jit, static_argnames=("module", "top_k", "num_tokens"))
def _guess(module: nn.Module, params, tokens, segment_ids, places, *, top_k: int, num_tokens: int | None):
    """(probabilities float32 [K, top_k], tokens int32 [K, top_k]) at `places` [K] of the flattened [B * T]."""
    TRACES["fill_mask"] += 1
    hidden, head = module.apply({"params": params}, tokens, segment_ids=segment_ids, method="features")
    logits = output_logits(hidden.reshape(-1, hidden.shape[-1])[places], head)
    if num_tokens is not None:
        logits = jnp.where(jnp.arange(logits.shape[-1]) < num_tokens, logits, -jnp.inf)
    return whole(jax.lax.top_k(jax.nn.softmax(logits, axis=-1), top_k))


def fill_mask(
    module: nn.Module,
    params,
    texts: Sequence[Sequence[int]],
    mask_id: int,
    *,
    top_k: int = 5,
    num_tokens: int | None = None,
    batch_size: int = 32,
) -> list[list[list[tuple[int, float]]]]:
    """The likeliest tokens for each mask of each text.

    Args:
      module: an encoder with `features`.
      texts: token ids with `mask_id` in at least one place, special tokens included.
      top_k: tokens a mask.
      num_tokens: only tokens below it, where the model's vocabulary is padded beyond its tokenizer's.
      batch_size: texts of one forward pass.

    Returns: for each text, for each of its masks in order, (token, probability) from the likeliest on. The masks of a
    text are guessed independently of each other.
    Raises InputError for a text without mask or longer than the model's positions, and for a top_k that is not
    possible.
    """
    limit, context = num_tokens or module.vocab_size, getattr(module, "max_length", None)
    if not 1 <= top_k <= limit:
        raise InputError(f"top_k must be from 1 to the vocabulary's {limit} tokens, got {top_k}")
    for index, text in enumerate(texts):
        if mask_id not in text:
            raise InputError(f"text {index} has no mask token, so there is nothing to fill in")
    check_lengths(texts, context)
    found: list[list] = [[] for _ in texts]
    height = bucket(min(batch_size, max(1, len(texts))), low=1)
    for group in batches([*map(len, texts)], height, "texts with masks"):
        rows = padded([texts[i] for i in group], height, context)
        masks = np.flatnonzero(rows.tokens == mask_id)
        places = np.zeros(bucket(len(masks)), np.int32)
        places[: len(masks)] = masks
        results = _guess(module, params, *rows[:2], places, top_k=top_k, num_tokens=num_tokens)
        probabilities, guesses = (np.asarray(x).tolist() for x in results)
        for owner, p, g in zip(rows.owners.reshape(-1)[masks], probabilities, guesses):
            found[group[owner]].append(list(zip(g, p)))
    return found
