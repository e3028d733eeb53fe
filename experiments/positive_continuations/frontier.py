"""What rewards and KLs can be reached from a policy, by samples of it: exactly tilted, and by the best of n."""

import math
from collections.abc import Sequence

import numpy as np


def tilted(rewards: np.ndarray, beta: float) -> dict[str, float]:
    """The policy pi0 * exp(r / beta) / Z of each prompt, which no policy of its KL beats in reward (Ziegler et al.
    2019, https://arxiv.org/abs/1909.08593, section 2), estimated by weighting samples of pi0.

    Args:
      rewards: [prompts, samples], of samples of pi0.
      beta: above 0.

    Returns: means over prompts of "reward", of "kl" to pi0 in nats a reply, and of how many samples the weights are
      worth (1 / sum of their squares). Of few it falls short: no estimate has more KL than log(samples).
    """
    tilts = rewards / beta
    top = tilts.max(axis=1, keepdims=True)
    weights = np.exp(tilts - top)
    log_z = (top[:, 0] + np.log(weights.mean(axis=1)))
    weights = weights / weights.sum(axis=1, keepdims=True)
    reward = (weights * rewards).sum(axis=1)
    kl = reward / beta - log_z
    worth = 1 / (weights**2).sum(axis=1)
    return {"reward": float(reward.mean()), "kl": float(kl.mean()), "samples_worth": float(worth.mean())}


def best_of(rewards: np.ndarray, n: int) -> dict[str, float]:
    """The best of n samples: the mean of its reward over all choices of n of the samples, and the KL that it has at
    most (log n - (n - 1) / n: Beirami et al. 2024, https://arxiv.org/abs/2401.01879)."""
    count = rewards.shape[1]
    chance = np.asarray([math.comb(rank, n - 1) / math.comb(count, n) for rank in range(count)])
    return {"reward": float((np.sort(rewards, axis=1) @ chance).mean()), "kl": math.log(n) - (n - 1) / n}


def curve(points: Sequence[dict[str, float]]) -> tuple[list[float], list[float]]:
    """KLs and rewards of points."""
    return [one["kl"] for one in points], [one["reward"] for one in points]
