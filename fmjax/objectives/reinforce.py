"""Policy gradients: a decoder learns from a reward of its own replies."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from fmjax.objectives.groups import group_advantages
from fmjax.objectives.on_policy import OnPolicy


@dataclasses.dataclass(frozen=True)
class Reinforce(OnPolicy):
    """REINFORCE with a leave-one-out baseline (Kool et al. 2019, https://openreview.net/forum?id=r1lgTGL5DE; RLOO,
    Ahmadian et al. 2024, https://arxiv.org/abs/2402.14740, eq. 8).

    Each prompt is answered `num_samples` times. A reply's advantage is its reward less the mean of the others to the
    same prompt; the loss is -mean over replies of advantage * log p(reply), p at the temperature that drew it, and its
    gradient an unbiased estimate of minus that of the expected reward in the first step of a rollout. Further steps of
    a rollout take that gradient for replies of slightly older parameters. A reply ends with EOS or after
    `max_new_tokens`; its EOS is a token of it.

    `logprob_difference` is 0 in the first step of a rollout in float32 on one device, and later how far the policy has
    moved.
    """

    FEWEST_SAMPLES: ClassVar[int] = 2

    def score(self, apply_fn, params, batch, *, models=None) -> dict[str, jax.Array]:
        """{"logprobs": float32 [B, T]}: of the targets; 0 where there is none."""
        return {"logprobs": self.logprobs(self.policy(apply_fn, params), batch)}

    def further(self, prompt, length: int) -> dict[str, tuple]:
        """`advantages` float32 []."""
        return super().further(prompt, length) | {"advantages": ((), jnp.float32)}

    def complete(self, model, rows, batch_size: int) -> dict[str, np.ndarray]:
        """The rows with their advantages."""
        found = group_advantages(rows["rewards"], rows["rewarded"], self.num_samples, "leave_one_out")
        return rows | {"advantages": found}

    def __call__(self, apply_fn, params, batch, key, train: bool, *, models=None):
        """Sums over the batch: "loss" a reply, and `measures`."""
        found = self.logprobs(self.policy(apply_fn, params), batch)
        loss = -jnp.sum(batch["advantages"] * found.sum(axis=1))
        return {"loss": (loss, batch["rewarded"].sum()), **self.measures(batch, found)}
