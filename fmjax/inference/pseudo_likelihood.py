"""Pseudo-log-likelihoods by masked language models: each token predicted with itself masked (Salazar et al. 2020)."""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fmjax.inference import counted
from fmjax.inference.rows import batches, check_lengths, padded
from fmjax.layers.embed import output_logits
from fmjax.parallel.placement import whole


@functools.partial(jax.jit, static_argnames=("module", "num_tokens"))
def _masked_loglikelihoods(module: nn.Module, params, tokens, segment_ids, places, targets, *, num_tokens: int | None):
    """Float32 [B]: log-probability of `targets` [B] at `places` [B] of the rows."""
    hidden, head = module.apply({"params": params}, tokens, segment_ids=segment_ids, method="features")
    logits = output_logits(hidden[jnp.arange(tokens.shape[0]), places], head)
    if num_tokens is not None:
        logits = jnp.where(jnp.arange(logits.shape[-1]) < num_tokens, logits, -jnp.inf)
    return whole(jnp.take_along_axis(jax.nn.log_softmax(logits), targets[:, None], axis=1)[:, 0])


def pseudo_loglikelihoods(
    module: nn.Module,
    params,
    texts: Sequence[Sequence[int]],
    places: Sequence[Sequence[int]],
    mask_id: int,
    *,
    num_tokens: int | None = None,
    batch_size: int = 32,
) -> np.ndarray:
    """Float64 [N]: for each text the sum over its `places` of the log-probability of the token there, masked alone.

    Args:
      module: an encoder with `features`.
      texts: token ids, special tokens included.
      places: positions in each text; 0 where there are none.
      num_tokens: only tokens below it are possible, where the vocabulary is padded beyond the tokenizer's.
      batch_size: masked copies of one forward pass.

    Raises: InputError for a text longer than the model's positions.
    """
    context = getattr(module, "max_length", None)
    check_lengths(texts, context)
    work = [(i, place) for i, where in enumerate(places) for place in where]
    lengths = [len(texts[i]) for i, _ in work]
    counted.read(lengths)
    found: list[dict[int, float]] = [{} for _ in texts]
    for group in batches(lengths, batch_size, "masked texts"):
        copies = [work[index] for index in group]
        rows = padded([texts[i] for i, _ in copies], batch_size, context)
        at = np.zeros(batch_size, np.int32)
        at[: len(copies)] = [place for _, place in copies]
        one_each = np.arange(batch_size), at
        targets = rows.tokens[one_each]
        rows.tokens[one_each] = mask_id
        values = _masked_loglikelihoods(
            module, params, rows.tokens, rows.segment_ids, at, targets, num_tokens=num_tokens
        )
        for (i, place), value in zip(copies, np.asarray(values, np.float64).tolist()):
            found[i][place] = value
    return np.asarray([sum(one[place] for place in where) for one, where in zip(found, places)])
