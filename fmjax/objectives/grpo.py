"""Group-relative policy optimisation and its kin: what differs between them is named by fields."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from fmjax.errors import ConfigError
from fmjax.layers.checks import check_choice, check_positive
from fmjax.objectives.groups import BASELINES, SCALES, group_advantages, without_variance
from fmjax.objectives.referenced import ReferencePolicy
from fmjax.objectives.surrogates import (
    AGGREGATIONS, KL_ESTIMATORS, RATIOS, aggregated, kl_estimates, log_ratios, surrogate,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class GRPO(ReferencePolicy):
    """GRPO (Shao et al. 2024, https://arxiv.org/abs/2402.03300, eq. 3 and 4): a reply's advantage is its reward less
    its group's mean, divided by the group's standard deviation; the loss is PPO's clipped surrogate, and beside it a KL
    to a reference. Its kin are the same with other defaults: `DrGRPO`, `DAPO`, `GSPO`, `RLOO`.

    Attributes:
      baseline: what is taken from a reward: "mean" of its group, the mean of the others ("leave_one_out"), "none".
      scale: what an advantage is divided by: the standard deviation of its "group" (n - 1; + 1e-4, as in TRL), "none".
      aggregation: what the loss is the mean of: "sequence_mean", "token_mean" or "constant"
        (`fmjax.objectives.surrogates.aggregated`; the constant is max_new_tokens).
      ratio: of a "token", of a reply's mean ("sequence"), or of a whole reply ("product").
      clip_low, clip_high: the ratio is clipped to 1 - clip_low .. 1 + clip_high.
      kl_in: where the KL to the reference is: in the "loss", a token's estimate, or in the "reward", the sum of
        log-ratios over a reply (k1), which no gradient goes through.
      kl_estimator: "k1", "k2" or "k3" (`fmjax.objectives.surrogates.kl_estimates`): of the loss, and of the metric.
      overlong_buffer: tokens before max_new_tokens in which a reply's reward falls, by up to 1 (DAPO, Yu et al. 2025,
        https://arxiv.org/abs/2503.14476, eq. 13); 0: none.
      overlong_mask: leave replies that did not end out of the loss; they stay in their group's baseline.
      dynamic_sampling: how many times as many prompts are answered as are trained on; those whose replies differ in
        their rewards, before anything is taken for length, come first (DAPO's dynamic sampling, in one round).
    """

    FEWEST_SAMPLES: ClassVar[int] = 2

    baseline: str = "mean"
    scale: str = "group"
    aggregation: str = "sequence_mean"
    ratio: str = "token"
    clip_low: float = 0.2
    clip_high: float = 0.2
    kl_in: str = "loss"
    kl_estimator: str = "k3"
    overlong_buffer: int = 0
    overlong_mask: bool = False
    dynamic_sampling: int = 1

    def __post_init__(self):
        super().__post_init__()
        for name, known in (
            ("baseline", BASELINES), ("scale", SCALES), ("aggregation", AGGREGATIONS), ("ratio", RATIOS),
            ("kl_in", ("loss", "reward")), ("kl_estimator", KL_ESTIMATORS),
        ):  # fmt: skip
            check_choice(f"objective.{name}", getattr(self, name), known)
        check_positive(**{"objective.dynamic_sampling": self.dynamic_sampling})
        if not (0 < self.clip_low <= 1 and self.clip_high > 0):
            raise ConfigError(
                f"objective.clip_low = {self.clip_low} and clip_high = {self.clip_high}: expected above 0, and "
                "clip_low at most 1"
            )
        if not 0 <= self.overlong_buffer <= self.max_new_tokens:
            raise ConfigError(
                f"objective.overlong_buffer = {self.overlong_buffer}: expected 0 to max_new_tokens = "
                f"{self.max_new_tokens}"
            )
        if self.kl_weight and self.kl_in == "loss" and self.kl_estimator == "k1":
            raise ConfigError(
                "objective.kl_estimator = 'k1' in the loss has a gradient of 0 on average, and keeps the policy "
                "nowhere; take 'k2' or 'k3', or objective.kl_in = 'reward'"
            )

    def num_prompts(self, rows: int) -> int:
        """How many prompts make so many rows."""
        return super().num_prompts(rows) * self.dynamic_sampling

    def further(self, prompt, length: int) -> dict[str, tuple]:
        """`advantages`, `no_variance` float32 [], `drawn_reward` float32 []; `reference_logprobs` float32 [T]."""
        numbers = dict.fromkeys(("advantages", "no_variance", "drawn_reward"), ((), jnp.float32))
        return numbers | super().further(prompt, length)

    def rows(self, prompts: Mapping, replies, found) -> dict[str, np.ndarray]:
        """The rows of the groups that are trained on."""
        rows = super().rows(prompts, replies, found)
        rows["rewards"] = rows["rewards"] - self._overlong(rows) * rows["rewarded"]
        mean = rows["rewards"].sum(dtype=np.float64) / max(rows["rewarded"].sum(dtype=np.float64), 1.0)
        rows["no_variance"] = without_variance(rows["raw_rewards"], rows["rewarded"], self.num_samples)
        rows["drawn_reward"] = np.full(len(replies), mean, np.float32)
        if self.dynamic_sampling > 1:
            taken = self._chosen(rows["no_variance"])
            rows = {name: array[taken] for name, array in rows.items()}
        return rows

    def _overlong(self, rows) -> np.ndarray:
        """What is taken from rewards for length, float32 [rows]."""
        if not self.overlong_buffer:
            return np.zeros(len(rows["rewards"]), np.float32)
        free = self.max_new_tokens - self.overlong_buffer
        length = rows["loss_weights"].sum(axis=1)
        return np.clip((length - free) / self.overlong_buffer, 0.0, 1.0).astype(np.float32)

    def _chosen(self, no_variance: np.ndarray) -> np.ndarray:
        """Rows of the groups that are trained on, in their order: those with variance first, then the others."""
        groups = no_variance.reshape(-1, self.num_samples)[:, 0]
        wanted = len(groups) // self.dynamic_sampling
        taken = np.sort(np.argsort(groups, kind="stable")[:wanted])
        return (taken[:, None] * self.num_samples + np.arange(self.num_samples)).reshape(-1)

    def complete(self, model, rows, batch_size: int) -> dict[str, np.ndarray]:
        """The rows with their advantages."""
        rewards = rows["rewards"]
        if self.kl_weight and self.kl_in == "reward":
            drift = (rows["logprobs"] - rows["reference_logprobs"]) * rows["loss_weights"]
            rewards = rewards - self.kl_weight * drift.sum(axis=1, dtype=np.float64)
        found = group_advantages(rewards, rows["rewarded"], self.num_samples, self.baseline, self.scale)
        return rows | {"advantages": found}

    def __call__(self, apply_fn, params, batch, key, train: bool, *, models=None):
        """Sums over the batch: "loss"; "clip_fraction" and "ratio" a token; "no_variance", the share of replies whose
        group has one raw reward; "drawn_reward", of all that were drawn; with a reference "kl" a token and "reply_kl"
        (k1, of the rollout) a reply; and `measures`."""
        mask, rewarded = batch["loss_weights"], batch["rewarded"]
        learnt = mask * batch["ended"][:, None] if self.overlong_mask else mask
        found = self.logprobs(self.policy(apply_fn, params), batch)
        log_ratio = log_ratios(found, batch["logprobs"], mask, self.ratio)
        losses, clipped = surrogate(log_ratio, batch["advantages"][:, None], self.clip_low, self.clip_high)
        measured, tokens = self.measures(batch, found), mask.sum()
        if "reference_logprobs" in batch:
            kl = kl_estimates(found, batch["reference_logprobs"], self.kl_estimator)
            measured["kl"] = (jax.lax.stop_gradient(jnp.sum(kl * mask)), tokens)
            drift = jnp.sum((batch["logprobs"] - batch["reference_logprobs"]) * mask)
            measured["reply_kl"] = (drift, rewarded.sum())
            if self.kl_in == "loss":
                losses = losses + self.kl_weight * kl
        counted = jnp.where(learnt.sum(axis=1) > 0, rewarded, 0.0)
        total = rewarded.sum()
        return {
            "loss": aggregated(losses, learnt, counted, self.aggregation, float(self.max_new_tokens)),
            "clip_fraction": (jnp.sum(clipped * learnt), learnt.sum()),
            "ratio": (jax.lax.stop_gradient(jnp.sum(jnp.exp(log_ratio) * mask)), tokens),
            "no_variance": (jnp.sum(batch["no_variance"] * rewarded), total),
            "drawn_reward": (jnp.sum(batch["drawn_reward"] * rewarded), total),
            **measured,
        }


@dataclasses.dataclass(frozen=True)
class DrGRPO(GRPO):
    """Dr. GRPO (Liu et al. 2025, https://arxiv.org/abs/2503.20783): advantages are not divided by a deviation, and a
    reply's loss is the sum over its tokens / max_new_tokens, so that neither length nor difficulty weighs."""

    scale: str = "none"
    aggregation: str = "constant"


@dataclasses.dataclass(frozen=True)
class DAPO(GRPO):
    """DAPO (Yu et al. 2025, https://arxiv.org/abs/2503.14476): an upper bound of its own, the mean over tokens, no KL;
    set `overlong_buffer` and `dynamic_sampling` by the lengths and prompts at hand."""

    clip_high: float = 0.28
    aggregation: str = "token_mean"


@dataclasses.dataclass(frozen=True)
class GSPO(GRPO):
    """GSPO (Zheng et al. 2025, https://arxiv.org/abs/2507.18071): the ratio is a reply's, the geometric mean of its
    tokens', and is clipped near 1."""

    ratio: str = "sequence"
    clip_low: float = 3e-4
    clip_high: float = 4e-4


@dataclasses.dataclass(frozen=True)
class RLOO(GRPO):
    """RLOO (Ahmadian et al. 2024, https://arxiv.org/abs/2402.14740) with a clipped ratio for several steps of a
    rollout, as in TRL: a reply's advantage is its reward less the mean of the others, the ratio that of the whole
    reply, and the KL is in the reward."""

    baseline: str = "leave_one_out"
    scale: str = "none"
    ratio: str = "product"
    kl_in: str = "reward"
    kl_estimator: str = "k1"
