"""Scores of replies by reward models, from the very tokens that were drawn."""

from collections.abc import Sequence

import jax
import numpy as np

from fmjax.errors import ConfigError
from fmjax.objectives.step_rewards import StepRewards
from fmjax.parallel.placement import whole


def check_reward_model(where: str, module, policy) -> None:
    """Raises ConfigError where a module gives a text no one number, or reads other tokens than the policy writes."""
    if not hasattr(module, "all_scores"):
        raise ConfigError(
            f"{where} is no reward model: {type(module).__name__} gives a text no one number; train one with "
            "objective.name = 'ranking' (configs/reward_tiny.py)"
        )
    if module.vocab_size != policy.vocab_size:
        raise ConfigError(
            f"{where} has a vocabulary of {module.vocab_size} tokens, the model one of {policy.vocab_size}; they have "
            "to be cut by the same tokenizer"
        )


def check_trained(where: str, objective) -> None:
    """Raises ConfigError for a model of steps: what it says behind a text's last token, nothing has taught it.

    objective: that the model was trained with; None where nothing says it.
    """
    if isinstance(objective, StepRewards):
        raise ConfigError(
            f"{where} was trained with objective.name = 'step_rewards': it judges the steps of a reply, each at its "
            "end, and no whole one; take a model of 'ranking' (configs/reward_tiny.py), or a reward function that "
            "calls can('process_reward')"
        )


def check_context(where: str, module, length: int) -> None:
    """Raises ConfigError for a model that does not read so many tokens."""
    reads = getattr(module, "max_length", None)
    if reads is not None and reads < length:
        raise ConfigError(
            f"{where}, a reward model, reads {reads} tokens, and a prompt with its reply may have {length}: lower the "
            "length of prompts (data.sequence_length) or max_new_tokens"
        )


def model_scores(others: Sequence, texts: Sequence[Sequence[int]], length: int, rows: int) -> np.ndarray:
    """float32 [models, texts]: what each of the models (`fmjax.objectives.base.OtherModel`) says of the texts, token
    ids, read at their last token; `rows` at once, each `length` long.
    """
    found = np.zeros((len(others), len(texts)), np.float32)
    for first in range(0, len(texts), rows):
        some = texts[first : first + rows]
        tokens, segments = (np.zeros((rows, length), np.int32) for _ in range(2))
        for index, text in enumerate(some):
            tokens[index, : len(text)], segments[index, : len(text)] = text, 1
        for index, other in enumerate(others):
            found[index, first : first + len(some)] = np.asarray(_scores(other, tokens, segments))[: len(some)]
    return found


@jax.jit
def _scores(other, tokens, segment_ids) -> jax.Array:
    return whole(other.apply(tokens, segment_ids))


def combined(scores: np.ndarray, how: str) -> np.ndarray:
    """float32 [texts] of an ensemble's [models, texts]: the "mean", or the "worst"."""
    return scores.min(axis=0) if how == "worst" else scores.mean(axis=0, dtype=np.float64).astype(np.float32)
