"""What is measured of a policy: both rewards and the KL of its replies, and its loss as a language model."""

import functools
import math
from collections.abc import Sequence

import jax
import numpy as np

from fmjax.inference.model import Model
from fmjax.objectives.base import OtherModel
from fmjax.objectives.drawn import Drawn
from fmjax.rewards.models import model_scores

from experiments.instructgpt import stages, task

ROWS = 128
"""Replies that are drawn or scored at once."""


def prompts(model: Model, asked: Sequence[str]) -> list[list[int]]:
    """Token ids of what is asked, up to where the reply begins."""
    return [model.encode_chat([{"role": "user", "content": one}]) for one in asked]


def drawn(policy: Model, prompts: Sequence[list[int]], copies: int, seed: int) -> list:
    """So many replies to each prompt at a temperature of 1, those to a prompt one after another."""
    return policy.complete(
        prompts, num_samples=copies, max_new_tokens=stages.REPLY, temperature=1.0, seed=seed, batch_size=ROWS,
        cache_length=stages.PROMPT + stages.REPLY,
    )  # fmt: skip


class Judge:
    """What replies are judged by.

    Args:
      name: of the reward model.
      reference: the policy that all others are measured from.
      taste: a reward model.
      asked: prompts.
    """

    def __init__(self, name: str, reference: Model, taste: Model, asked: Sequence[str]):
        self.name, self.reference, self.taste = name, reference, taste
        self.prompts = prompts(reference, asked)

    def rewards(self, replies: Sequence) -> tuple[np.ndarray, np.ndarray]:
        """(the learnt reward, the gold one) of each reply, float64, less what a reply pays that was cut off."""
        asked = [tokens for tokens in self.prompts for _ in range(len(replies) // len(self.prompts))]
        texts = [[*tokens, *reply.tokens] for tokens, reply in zip(asked, replies)]
        other = OtherModel(self.taste.module, self.taste.params)
        learnt = model_scores([other], texts, stages.PROMPT + stages.REPLY, ROWS)[0]
        cost = task.CUT * np.array([reply.finish != "stop" for reply in replies])
        return learnt - cost, np.array(task.gold([], [reply.text for reply in replies])) - cost

    def drift(self, policy: Model, replies: Sequence) -> np.ndarray:
        """log policy - log reference of each reply, summed over its tokens: of the policy's own replies the mean is its
        KL to the reference, without bias."""
        copies = len(replies) // len(self.prompts)
        objective = Drawn(num_samples=copies, max_new_tokens=stages.REPLY)
        tokens = np.zeros((len(self.prompts), stages.PROMPT), np.int32)
        for row, prompt in zip(tokens, self.prompts):
            row[: len(prompt)] = prompt
        rows = objective.laid({"tokens": tokens, "lengths": np.array([*map(len, self.prompts)])}, replies)
        ours, theirs = (_logprobs(one, objective, rows) for one in (policy, self.reference))
        return ours - theirs

    def measured(self, policy: Model, copies: int) -> dict[str, float]:
        """Means over replies to all prompts, and the standard errors of rewards and KL."""
        replies = drawn(policy, self.prompts, copies, seed=1)
        learnt, gold = self.rewards(replies)
        found = {"learnt": learnt, "gold": gold, "kl": self.drift(policy, replies)}
        told = {name: float(values.mean()) for name, values in found.items()}
        told |= {f"{name}_stderr": float(values.std() / math.sqrt(len(values))) for name, values in found.items()}
        return told | {
            "tokens": float(np.mean([len(reply.tokens) for reply in replies])),
            "ended": float(np.mean([reply.finish == "stop" for reply in replies])),
            "different": len({reply.text for reply in replies}) / len(replies),
        }


def _logprobs(model: Model, objective: Drawn, rows: dict) -> np.ndarray:
    """Of each row's reply under a model, float64."""
    found = []
    for first in range(0, len(rows["tokens"]), ROWS):
        some = {name: array[first : first + ROWS] for name, array in rows.items()}
        short = ROWS - len(some["tokens"])
        some = {name: np.pad(array, ((0, short), (0, 0))) for name, array in some.items()}
        of_tokens = _token_logprobs(model.module, objective, model.params, some)
        found.append(np.asarray(of_tokens, float).sum(axis=1)[: ROWS - short])
    return np.concatenate(found)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _token_logprobs(module, objective, params, rows):
    return objective.logprobs(functools.partial(module.apply, {"params": params}, method="features"), rows)


def language_loss(policy: Model, texts: Sequence[str]) -> float:
    """Cross-entropy of texts, nats a token."""
    found = policy.loglikelihood_rolling(texts)
    return -sum(value for value, _ in found) / sum(count for _, count in found)
