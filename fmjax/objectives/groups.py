"""Advantages of replies beside the others to their prompt, on the host."""

import numpy as np

BASELINES = ("mean", "leave_one_out", "none")
SCALES = ("group", "none")
EPSILON = 1e-4
"""Beside a standard deviation, as in TRL."""


def group_advantages(
    rewards: np.ndarray, rewarded: np.ndarray, num_samples: int, baseline: str = "mean", scale: str = "none"
) -> np.ndarray:
    """Advantages float32 [rows], computed in float64; 0 of a reply without a reward, and of one that is alone.

    Args:
      rewards, rewarded: float32 [rows], the `num_samples` replies to a prompt one after another; `rewarded` is 0 where
        there is no reward, and such a reply is in no baseline.
      baseline: what is taken from a reward: the "mean" of its group, the mean of the others ("leave_one_out"), "none".
      scale: "group" divides by the group's standard deviation (of a sample, n - 1) + 1e-4; "none".
    """
    values = rewards.reshape(-1, num_samples).astype(np.float64)
    there = rewarded.reshape(-1, num_samples).astype(np.float64)
    count = there.sum(axis=1, keepdims=True)
    total = (values * there).sum(axis=1, keepdims=True)
    mean = total / np.maximum(count, 1)
    if baseline == "mean":
        found = values - mean
    elif baseline == "leave_one_out":
        found = values - (total - values) / np.maximum(count - 1, 1)
    else:
        found = values
    if scale == "group":
        variance = (np.square(values - mean) * there).sum(axis=1, keepdims=True) / np.maximum(count - 1, 1)
        found = found / (np.sqrt(variance) + EPSILON)
    alone = (count < 2) & (baseline != "none")
    return np.where(alone, 0.0, found * there).reshape(-1).astype(np.float32)


def without_variance(rewards: np.ndarray, rewarded: np.ndarray, num_samples: int) -> np.ndarray:
    """float32 [rows]: 1 where all replies to a prompt that have a reward have the same, which teaches nothing."""
    values = np.where(rewarded > 0, rewards, np.nan).reshape(-1, num_samples)
    low = np.where(np.isnan(values), np.inf, values).min(axis=1)
    high = np.where(np.isnan(values), -np.inf, values).max(axis=1)
    return np.repeat(low >= high, num_samples).astype(np.float32)
