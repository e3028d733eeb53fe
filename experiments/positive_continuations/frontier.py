"""What rewards and KLs can be reached from a policy, by samples of it: exactly tilted, and by the best of n."""

from collections.abc import Sequence

import best_of_n
import numpy as np

ENOUGH = 30
"""Samples that weights have to be worth for their means to be told."""


def tilted(rewards: np.ndarray, beta: float) -> dict[str, float]:
    """The policy pi0 * exp(r / beta) / Z of each prompt, which no policy of its KL beats in reward (Ziegler et al.
    2019, https://arxiv.org/abs/1909.08593, section 2), estimated by weighting samples of pi0.

    Args:
      rewards: [prompts, samples], of samples of pi0.
      beta: above 0.

    Returns: means over prompts of "reward", of "kl" to pi0 in nats a reply, and of how many samples the weights are
      worth (1 / sum of their squares). Of fewer than `ENOUGH` it falls short: none has more KL than log(samples).
    """
    tilts = rewards / beta
    top = tilts.max(axis=1, keepdims=True)
    weights = np.exp(tilts - top)
    log_z = top[:, 0] + np.log(weights.mean(axis=1))
    weights = weights / weights.sum(axis=1, keepdims=True)
    reward = (weights * rewards).sum(axis=1)
    kl = reward / beta - log_z
    worth = 1 / (weights**2).sum(axis=1)
    return {"reward": float(reward.mean()), "kl": float(kl.mean()), "samples_worth": float(worth.mean())}


def reached(rewards: np.ndarray, betas: Sequence[float]) -> list[dict[str, float]]:
    """`tilted` at those of the betas where the samples are enough."""
    points = [{"beta": float(beta), **tilted(rewards, beta)} for beta in betas]
    return [one for one in points if one["samples_worth"] >= ENOUGH]


def best_of(rewards: np.ndarray, n: int) -> dict[str, float]:
    """The mean reward of the best of n samples, and the KL that it has at most."""
    return {"n": n, "reward": best_of_n.mean(n, rewards, rewards), "kl": best_of_n.most_kl(n)}


def curve(points: Sequence[dict[str, float]]) -> tuple[list[float], list[float]]:
    """KLs and rewards of points."""
    return [one["kl"] for one in points], [one["reward"] for one in points]
