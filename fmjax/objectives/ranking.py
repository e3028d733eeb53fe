"""Learning rewards from answers that were ranked."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from fmjax.errors import ConfigError
from fmjax.objectives.preference import inputs, logistic, over_pairs, told_apart


@dataclasses.dataclass(frozen=True)
class Ranking:
    """-log sigmoid(score of the better answer - that of the worse - margin), the mean over all pairs of a row's K
    answers, and then over rows: Bradley-Terry for K = 2, and InstructGPT's loss for more (Ouyang et al. 2022,
    https://arxiv.org/abs/2203.02155, eq. 1), where all answers to a prompt are one element of the batch and each is
    read once. Answers with equal scores in the data are no pair.

    Attributes:
      label_smoothing: the share of pairs that is taken to be the wrong way round.
      center: times the mean of (sum of a pair's scores)^2, which keeps scores about 0 (Eisenstein et al. 2023,
        https://arxiv.org/abs/2312.09244); 0 for none.
    """

    ROWS_APART: ClassVar[bool] = True

    label_smoothing: float = 0.0
    center: float = 0.0

    def __post_init__(self):
        if not 0 <= self.label_smoothing < 0.5:
            raise ConfigError(f"objective.label_smoothing = {self.label_smoothing}: expected at least 0 and below 0.5")
        if self.center < 0:
            raise ConfigError(f"objective.center = {self.center}: expected a number of at least 0")

    def inputs(self, batch) -> dict:
        """What the module is called with: an answer a row."""
        return inputs(batch)

    def __call__(self, apply_fn, params, batch: dict, key, train: bool) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Sums over the batch, each a row's mean over its pairs: "loss"; "accuracy", of the pairs whose better answer
        scores higher; "margin", by how much. "score" and "score_squared" are means over answers."""
        rngs = {"dropout": key} if train and key is not None else None
        found = apply_fn({"params": params}, **self.inputs(batch), train=train, rngs=rngs)
        return self.sums(found.reshape(batch["scores"].shape), batch)

    def sums(self, scores: jax.Array, batch) -> dict[str, tuple[jax.Array, jax.Array]]:
        """As of a call, of scores float32 [B, K]."""
        weights = batch["answer_weights"]
        pairs = told_apart(batch["scores"], weights)
        difference = scores[:, :, None] - scores[:, None, :]
        losses = logistic(difference - batch["margins"][:, None, None], self.label_smoothing)
        if self.center:
            losses = losses + self.center * jnp.square(scores[:, :, None] + scores[:, None, :])
        told = jax.lax.stop_gradient(scores) * weights
        return {
            "loss": over_pairs(losses, pairs),
            "accuracy": over_pairs(difference > 0, pairs),
            "margin": over_pairs(jax.lax.stop_gradient(difference), pairs),
            "score": (told.sum(), weights.sum()),
            "score_squared": (jnp.square(told).sum(), weights.sum()),
        }

    def check(self, module, data) -> None:
        """Raises ConfigError for data without ranked answers, or a model that gives a text no one number."""
        row = data.train[0]
        if not {"scores", "answer_weights", "margins"} <= set(row):
            raise ConfigError(
                f"objective Ranking needs ranked answers, such as data.name = 'preferences' has; these data have "
                f"{', '.join(sorted(row))}"
            )
        if not hasattr(module, "all_scores"):
            raise ConfigError(
                f"objective Ranking needs a model that gives a text one number, model.name = 'reward' with a decoder; "
                f"{type(module).__name__} does not"
            )
