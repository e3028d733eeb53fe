"""Scores of replies, by a model that gives a text one number."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from fmjax.data.tokenizers.replies import encode_replies, joined_steps, step_places
from fmjax.errors import InputError
from fmjax.inference import prompts
from fmjax.inference.checks import check_list
from fmjax.inference.rows import batches, padded
from fmjax.parallel.placement import whole

HEIGHT = 16
"""Texts that are scored at once."""


def lacks(model) -> str | None:
    """What a model lacks to score replies."""
    if not hasattr(model.module, "all_scores"):
        return "it gives a text no one number; that takes a reward model, model.name = 'reward' with a decoder"
    if lack := prompts.lacks_tokenizer(model):
        return lack
    return None if model.tokenizer.chat_templates else "its tokenizer has no chat template, which replies are read in"


def reward(model, pairs: Sequence[tuple[str | Sequence[Mapping[str, Any]], str]]) -> list[float]:
    """The score of each (prompt, reply): higher is better, and differences alone mean anything.

    Args:
      pairs: the prompt is what a user says, or the messages of a chat up to the reply.

    Raises InputError for what is no such pair, or is longer than the model's context.
    """
    check_list("pairs", pairs)
    rows = [_tokens(model, index, pair) for index, pair in enumerate(pairs)]
    found = np.zeros(len(rows), np.float32)
    with model.inference():
        for some in batches(list(map(len, rows)), HEIGHT, "replies that are scored"):
            laid = padded([rows[index] for index in some], HEIGHT)
            found[some] = np.asarray(scores(model.module, model.params, laid.tokens, laid.segment_ids))[: len(some)]
    return found.tolist()


def process_reward(
    model, solutions: Sequence[tuple[str | Sequence[Mapping[str, Any]], Sequence[str]]]
) -> list[list[float]]:
    """Of each (prompt, steps) the probability, step by step, that it is right: sigmoid(score) at the step's last token,
    of a model that learnt it (objective `step_rewards`). The reply has a line a step.

    Raises InputError for what is no such pair, or is longer than the model's context.
    """
    check_list("solutions", solutions)
    chats = [_solution(model, index, one) for index, one in enumerate(solutions)]
    found: list[list[float]] = [[] for _ in chats]
    with model.inference():
        for some in batches([len(ids) for ids, _ in chats], HEIGHT, "solutions that are scored"):
            laid = padded([chats[index][0] for index in some], HEIGHT)
            right = np.asarray(all_scores(model.module, model.params, laid.tokens, laid.segment_ids))
            for row, index in enumerate(some):
                found[index] = right[row, chats[index][1]].tolist()
    return found


def _solution(model, index: int, pair: Any) -> tuple[list[int], list[int]]:
    """(ids, places of the steps' last tokens)."""
    if not isinstance(pair, Sequence) or len(pair) != 2 or isinstance(pair[1], str) or not pair[1]:
        raise InputError(f"solution {index} must be (prompt, steps), steps a list of texts, got {pair!r}")
    asked, steps = pair
    prompt = [{"role": "user", "content": asked}] if isinstance(asked, str) else list(asked)
    steps = [str(step).strip() for step in steps]
    messages = [*prompt, {"role": "assistant", "content": joined_steps(steps)}]
    chat = encode_replies(model.tokenizer, messages, which="last").to_its_end()
    if model.context_length is not None and len(chat.ids) > model.context_length:
        raise InputError(
            f"solution {index} has {len(chat.ids)} tokens, more than the model's context of {model.context_length}"
        )
    return chat.ids, step_places(chat, steps)


@functools.partial(jax.jit, static_argnames="module")
def all_scores(module, params, tokens, segment_ids) -> jax.Array:
    """sigmoid(score) after each token of texts int32 [B, T], one a row; float32 [B, T]."""
    found = module.apply({"params": params}, tokens, segment_ids, method="all_scores")
    return whole(jax.nn.sigmoid(found))


@functools.partial(jax.jit, static_argnames="module")
def scores(module, params, tokens, segment_ids) -> jax.Array:
    """What the module says of texts int32 [B, T], one a row; float32 [B]."""
    return whole(module.apply({"params": params}, tokens, segment_ids))


def _tokens(model, index: int, pair: Any) -> list[int]:
    if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2 or not isinstance(pair[1], str):
        raise InputError(f"pair {index} must be (prompt, reply), got {pair!r}")
    asked, reply = pair
    messages = [{"role": "user", "content": asked}] if isinstance(asked, str) else list(asked)
    chat = [*messages, {"role": "assistant", "content": reply}]
    ids = encode_replies(model.tokenizer, chat, which="last").to_its_end().ids
    if model.context_length is not None and len(ids) > model.context_length:
        raise InputError(f"pair {index} has {len(ids)} tokens, more than the model's context of {model.context_length}")
    return ids
