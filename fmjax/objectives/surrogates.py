"""Terms of policies' losses: ratios, clipping, estimates of KL, and what a batch's loss is the mean of."""

import jax
import jax.numpy as jnp

RATIOS = ("token", "sequence", "product")
AGGREGATIONS = ("sequence_mean", "token_mean", "constant")
KL_ESTIMATORS = ("k1", "k2", "k3")
LARGEST = 20.0
"""Of a log-ratio, either way: a ratio of 5e8. That of a long reply's product may overflow, and 0 times it is NaN."""


def log_ratios(found, kept, mask, kind: str) -> jax.Array:
    """float32 [B, T]: of the policy's log-probabilities to those that drew, between -+`LARGEST`, 0 outside the mask.

    Args:
      found, kept, mask: float32 [B, T]; both log-probabilities are 0 where the mask is.
      kind: each "token"'s; the mean over a reply's tokens, at each of them ("sequence", GSPO's, Zheng et al. 2025,
        https://arxiv.org/abs/2507.18071, eq. 7); or their sum ("product" of ratios, a reply's own).
    """
    difference = (found - kept) * mask
    bounded = lambda x: jnp.clip(x, -LARGEST, LARGEST)
    if kind == "token":
        return bounded(difference)
    total = difference.sum(axis=1, keepdims=True)
    if kind == "sequence":
        total = total / jnp.maximum(mask.sum(axis=1, keepdims=True), 1.0)
    return bounded(total) * mask


def surrogate(log_ratio, advantages, low: float, high: float) -> tuple[jax.Array, jax.Array]:
    """(losses, whether the clipped term counts), [B, T]: max(-A ratio, -A clip(ratio, 1 - low, 1 + high)) (PPO,
    Schulman et al. 2017, https://arxiv.org/abs/1707.06347, eq. 7; an own upper bound: DAPO's clip-higher).

    advantages: broadcast to `log_ratio`.
    """
    ratio = jnp.exp(log_ratio)
    plain, clipped = -advantages * ratio, -advantages * jnp.clip(ratio, 1.0 - low, 1.0 + high)
    return jnp.maximum(plain, clipped), jax.lax.stop_gradient(clipped > plain)


def kl_estimates(found, reference, kind: str) -> jax.Array:
    """A token's estimate of KL(policy || reference) from one that the policy drew (Schulman 2020,
    http://joschu.net/blog/kl-approx.html): k1 = log p - log q, without bias; k2 = k1^2 / 2; k3 = exp(-k1) - 1 + k1,
    without bias and never below 0."""
    k1 = found - reference
    if kind == "k1":
        return k1
    return jnp.square(k1) / 2 if kind == "k2" else jnp.exp(-k1) - 1.0 + k1


def aggregated(values, mask, rewarded, how: str, constant: float = 1.0) -> tuple[jax.Array, jax.Array]:
    """(sum, weight) of values [B, T] over a batch.

    Args:
      mask: float32 [B, T], the tokens of replies.
      rewarded: float32 [B], replies that count.
      how: "sequence_mean": the mean over replies of the mean over their tokens (GRPO); "token_mean": over all tokens of
        the batch (DAPO); "constant": the mean over replies of the sum over their tokens / `constant` (Dr. GRPO).
    """
    totals = jnp.sum(values * mask, axis=1)
    if how == "token_mean":
        return totals.sum(), mask.sum()
    size = jnp.maximum(mask.sum(axis=1), 1.0) if how == "sequence_mean" else constant
    return jnp.sum(totals / size), rewarded.sum()
