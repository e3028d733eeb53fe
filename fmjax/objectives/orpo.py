"""Preferences without a reference, by odds, beside the cross-entropy of the better answer."""

import dataclasses

import jax
import jax.numpy as jnp

from fmjax.objectives.preference import Answers, Preference, logistic


@dataclasses.dataclass(frozen=True)
class ORPO(Preference):
    """Odds ratio preference optimisation (Hong et al. 2024, https://arxiv.org/abs/2403.07691, eq. 6 and 7), without a
    reference: -log p a token of the best answer, and beta times -log sigmoid of how much larger the log-odds of the
    better answer are. p is the geometric mean over an answer's tokens.

    Attributes:
      beta: lambda of the paper.
    """

    def values(self, policy: Answers, reference: Answers | None) -> jax.Array:
        """Log-odds, float32 [B, K]."""
        return policy.means - log1mexp(policy.means)

    def of_pairs(self, difference) -> jax.Array:
        """The logistic loss, times beta."""
        return self.beta * logistic(difference, self.label_smoothing)

    def beside(self, policy: Answers, batch) -> jax.Array:
        """The cross-entropy a token of the row's best answer; of several the first."""
        scores = jnp.where(batch["answer_weights"] > 0, batch["scores"], -jnp.inf)
        best = jnp.argmax(scores, axis=1)
        return -jnp.take_along_axis(policy.means, best[:, None], axis=1)[:, 0]


def log1mexp(x) -> jax.Array:
    """log(1 - exp(x)) of x < 0, without loss of digits at either end; x nearer to 0 than 1e-6 is taken as that."""
    x = jnp.minimum(x, -1e-6)
    near = x > -0.6931472
    small, large = jnp.where(near, x, -1.0), jnp.where(near, -1.0, x)
    return jnp.where(near, jnp.log(-jnp.expm1(small)), jnp.log1p(-jnp.exp(large)))
