"""Preferences beside a reference: direct and identity preference optimisation."""

import dataclasses

import jax
import jax.numpy as jnp

from fmjax.errors import ConfigError
from fmjax.objectives.preference import Answers, Referenced, logistic


@dataclasses.dataclass(frozen=True)
class DPO(Referenced):
    """Direct preference optimisation (Rafailov et al. 2023, https://arxiv.org/abs/2305.18290, eq. 7):
    -log sigmoid(beta * (log-ratio of the better answer - that of the worse)), log-ratios to the reference and summed
    over tokens.

    Attributes:
      beta: of the implied KL to the reference; smaller goes further from it.
    """

    def values(self, policy: Answers, reference: Answers | None) -> jax.Array:
        """Implied rewards, float32 [B, K]."""
        return self.beta * (policy.logprobs - reference.logprobs)

    def of_pairs(self, difference) -> jax.Array:
        """The logistic loss."""
        return logistic(difference, self.label_smoothing)


@dataclasses.dataclass(frozen=True)
class IPO(Referenced):
    """Identity preference optimisation (Azar et al. 2023, https://arxiv.org/abs/2310.12036, eq. 17):
    (difference of log-ratios - 1 / (2 beta))^2, log-ratios a token, as its authors computed them.

    Attributes:
      beta: tau of the paper; larger stays nearer to the reference.
      label_smoothing: not for this objective.
    """

    def __post_init__(self):
        super().__post_init__()
        if self.label_smoothing:
            raise ConfigError("objective.label_smoothing is not for ipo; leave it out")

    def values(self, policy: Answers, reference: Answers | None) -> jax.Array:
        """Log-ratios a token, float32 [B, K]."""
        return policy.means - reference.logprobs / policy.lengths

    def of_pairs(self, difference) -> jax.Array:
        """The squared distance from what is aimed at."""
        return jnp.square(difference - 1.0 / (2.0 * self.beta))
