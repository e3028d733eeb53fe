"""The best of n replies to a prompt: what it is worth, and how far it is from the policy that drew them."""

import math

import numpy as np


def mean(n: int, ranked_by: np.ndarray, values: np.ndarray) -> float:
    """The mean of `values` of the best of n by `ranked_by`, over all choices of n of the N replies to each prompt
    (Nakano et al. 2021, https://arxiv.org/abs/2112.09332, appendix I); both [prompts, N]."""
    size = ranked_by.shape[1]
    weights = np.array([math.comb(place, n - 1) for place in range(size)], float) / math.comb(size, n)
    ordered = np.take_along_axis(values, np.argsort(ranked_by, axis=1), axis=1)
    return float((ordered @ weights).mean())


def most_kl(n: int) -> float:
    """log n - (n - 1) / n, nats: the KL of the best of n to the policy that drew is no more, and is less where replies
    have one reward (Beirami et al. 2024, https://arxiv.org/abs/2401.01879)."""
    return math.log(n) - (n - 1) / n
