"""Kahneman-Tversky optimisation: single answers that were liked or not."""

import dataclasses

import jax
import jax.numpy as jnp

from fmjax.errors import ConfigError
from fmjax.objectives.preference import INPUTS, Answers, Referenced


@dataclasses.dataclass(frozen=True)
class KTO(Referenced):
    """KTO (Ethayarajh et al. 2024, https://arxiv.org/abs/2402.01306, eq. 7 and 8), with r the log-ratio of an answer to
    the reference: weight * (1 - sigmoid(beta * (r - z))) of a liked answer, weight * (1 - sigmoid(beta * (z - r))) of a
    disliked one. z, how far the model is from its reference, is the mean log-ratio of answers to other chats behind the
    prompts of the batch (of its part, where `train.accumulate_steps` cuts it), at least 0; it has no gradient.

    Rows are of `data.name = "labelled"`: the answer, and the other chat's.

    Attributes:
      beta: how soon a gain or a loss counts for less.
      label_smoothing: not for this objective.
      liked_weight: of liked answers; with the other chosen so that liked and disliked ones weigh about alike.
      disliked_weight: of disliked answers.
    """

    ROWS_APART = False  # z is of all rows

    liked_weight: float = 1.0
    disliked_weight: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        if self.label_smoothing:
            raise ConfigError("objective.label_smoothing is not for kto; leave it out")
        for name in ("liked_weight", "disliked_weight"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"objective.{name} = {getattr(self, name)} must be positive")

    def _policy(self, apply_fn, params, batch, key, train: bool) -> Answers:
        """Both answers of each row; the other chat's without a gradient, and so without its cost."""
        arrays = (*INPUTS, "targets", "loss_weights")
        own, other = ({name: batch[name][:, place : place + 1] for name in arrays} for place in (0, 1))
        found = super()._policy(apply_fn, params, own, key, train)
        beside = super()._policy(apply_fn, jax.lax.stop_gradient(params), other, None, False)
        return Answers(*(jnp.concatenate(pair, axis=1) for pair in zip(found, beside)))

    def _sums(self, policy: Answers, reference: Answers, batch) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Sums over answers: "loss"; "kl", which is z; "liked_reward" and "disliked_reward", beta * r of either kind,
        and "accuracy", of the answers whose r is above z where they were liked, and below where not."""
        ratios = policy.logprobs - reference.logprobs
        weights, liked = batch["answer_weights"][:, 0], batch["scores"][:, 0] > 0
        rows = weights.sum()
        z = jnp.sum(ratios[:, 1] * weights) / jnp.maximum(rows, 1.0)
        z = jnp.maximum(z, 0.0)
        gain = jnp.where(liked, 1.0, -1.0) * (ratios[:, 0] - z)
        weight = jnp.where(liked, self.liked_weight, self.disliked_weight) * weights
        rewards = self.beta * jax.lax.stop_gradient(ratios[:, 0])
        kinds = {"liked_reward": weights * liked, "disliked_reward": weights * ~liked}
        return {
            "loss": (jnp.sum(weight * jax.nn.sigmoid(-self.beta * gain)), rows),
            "accuracy": (jnp.sum((gain > 0) * weights), rows),
            "kl": (z * rows, rows),
            **{name: (jnp.sum(rewards * mask), mask.sum()) for name, mask in kinds.items()},
        }
