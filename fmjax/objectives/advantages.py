"""Rewards of tokens, and their generalised advantages, on the host in float64."""

import numpy as np

WHITENINGS = ("rollout", "batch", "none")


def token_rewards(rewards, logprobs, reference, mask, beta) -> np.ndarray:
    """float64 [N, T]: -beta (log p - log reference) at each token of a reply, and its reward besides at the last.

    Args:
      rewards, beta: [N].
      logprobs, reference, mask: [N, T]; a reply's tokens are those where the mask is 1, one behind the other.
    """
    mask = mask.astype(np.float64)
    found = -beta[:, None].astype(np.float64) * (logprobs.astype(np.float64) - reference) * mask
    last = mask.shape[1] - 1 - np.argmax(mask[:, ::-1], axis=1)
    found[np.arange(len(found)), last] += rewards * mask[np.arange(len(found)), last]
    return found


def generalised_advantages(rewards, values, mask, gamma: float, lam: float) -> np.ndarray:
    """GAE (Schulman et al. 2015, https://arxiv.org/abs/1506.02438, eq. 16), float64 [N, T]: A_t = sum_l (gamma lam)^l
    delta_{t+l}, delta_t = r_t + gamma V_{t+1} - V_t; V is 0 behind a reply's last token, and A outside the mask."""
    values, mask = values.astype(np.float64) * mask, mask.astype(np.float64)
    found, after, next_value = np.zeros_like(values), np.zeros(len(values)), np.zeros(len(values))
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        after = (delta + gamma * lam * after) * mask[:, t]
        found[:, t], next_value = after, values[:, t]
    return found


def whitened(advantages, mask, parts: int) -> np.ndarray:
    """Advantages less their mean, over their standard deviation (population, + 1e-8 in the variance), over the tokens
    of each of `parts` equal parts of the rows; 0 parts leaves them as they are."""
    if not parts:
        return advantages
    found = np.zeros_like(advantages)
    for rows in np.split(np.arange(len(mask)), parts):
        there = mask[rows] > 0
        if there.any():
            some = advantages[rows][there]
            found[rows] = np.where(there, (advantages[rows] - some.mean()) / np.sqrt(some.var() + 1e-8), 0.0)
    return found
