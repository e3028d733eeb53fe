"""Process rewards: whether each step of a solution is right."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from fmjax.errors import ConfigError

INPUTS = ("tokens", "segment_ids", "positions")


@dataclasses.dataclass(frozen=True)
class StepRewards:
    """The cross-entropy of sigmoid(score) with a step's label, the score read at the step's last token, of a reward
    model (Lightman et al. 2023, https://arxiv.org/abs/2305.20050, section 2.6; Uesato et al. 2022). The mean is over
    steps.
    """

    ROWS_APART: ClassVar[bool] = True

    def inputs(self, batch) -> dict:
        """What the module is called with."""
        return {name: batch[name] for name in INPUTS}

    def __call__(self, apply_fn, params, batch: dict, key, train: bool) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Sums over the batch, a step: "loss"; "accuracy", where the score's sign is the label's; "right", the mean of
        sigmoid(score). "solution_accuracy", a row: whether the sign of the least of its steps' scores (a solution is as
        good as its worst step) says if all of them are right."""
        rngs = {"dropout": key} if train and key is not None else None
        scores = apply_fn({"params": params}, **self.inputs(batch), train=train, rngs=rngs, method="all_scores")
        return self.sums(scores, batch)

    def sums(self, scores: jax.Array, batch) -> dict[str, tuple[jax.Array, jax.Array]]:
        """As of a call, of scores float32 [B, T]."""
        weights, labels = batch["loss_weights"], batch["step_labels"]
        steps = weights.sum()
        losses = labels * jax.nn.softplus(-scores) + (1.0 - labels) * jax.nn.softplus(scores)
        told = jax.lax.stop_gradient(scores)
        agrees = (told > 0) == (labels > 0.5)
        there = weights.max(axis=1)
        worst = jnp.min(jnp.where(weights > 0, told, jnp.inf), axis=1)
        whole = jnp.min(jnp.where(weights > 0, labels, 1.0), axis=1)
        return {
            "loss": (jnp.sum(losses * weights), steps),
            "accuracy": (jnp.sum(agrees * weights), steps),
            "right": (jnp.sum(jax.nn.sigmoid(told) * weights), steps),
            "solution_accuracy": (jnp.sum(((worst > 0) == (whole > 0.5)) * there), there.sum()),
        }

    def check(self, module, data) -> None:
        """Raises ConfigError for data without judged steps, or a model that gives a text no number."""
        row = data.train[0]
        if "step_labels" not in row:
            raise ConfigError(
                f"objective StepRewards needs judged steps, such as data.name = 'steps' has; these data have "
                f"{', '.join(sorted(row))}"
            )
        if not hasattr(module, "all_scores"):
            raise ConfigError(
                f"objective StepRewards needs a model that gives a text a number, model.name = 'reward' with a "
                f"decoder; {type(module).__name__} does not"
            )
