"""Preferences without a reference, by log-probabilities a token."""

import dataclasses

import jax

from fmjax.objectives.preference import Answers, Preference, logistic


@dataclasses.dataclass(frozen=True)
class SimPO(Preference):
    """Simple preference optimisation (Meng et al. 2024, https://arxiv.org/abs/2405.14734, eq. 6), without a reference:
    -log sigmoid(beta * (log-probability a token of the better answer - that of the worse) - gamma).

    Attributes:
      beta: scale of log-probabilities.
      gamma: by how much the better answer is to have more.
    """

    beta: float = 2.0
    gamma: float = 1.0

    def values(self, policy: Answers, reference: Answers | None) -> jax.Array:
        """Rewards, float32 [B, K]."""
        return self.beta * policy.means

    def of_pairs(self, difference) -> jax.Array:
        """The logistic loss of what is more than gamma."""
        return logistic(difference - self.gamma, self.label_smoothing)
