"""Proximal policy optimisation as InstructGPT's: per-token KL rewards, values, and pretraining in the same gradient."""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from fmjax.errors import ConfigError
from fmjax.layers.checks import check_choice
from fmjax.objectives.advantages import WHITENINGS, generalised_advantages, token_rewards, whitened
from fmjax.objectives.base import Proposal
from fmjax.objectives.cross_entropy import target_sums
from fmjax.objectives.preference import folded
from fmjax.objectives.referenced import ReferencePolicy
from fmjax.objectives.surrogates import log_ratios, surrogate

PTX = ("tokens", "targets", "loss_weights", "segment_ids", "positions")


@dataclasses.dataclass(frozen=True)
class PPO(ReferencePolicy):
    """PPO with a KL to a reference (Ziegler et al. 2019, https://arxiv.org/abs/1909.08593; Stiennon et al. 2020;
    Ouyang et al. 2022, https://arxiv.org/abs/2203.02155, eq. 2 and appendix C.4), of a model of policy and values
    (model.name = "actor_critic").

    A token's reward is -beta (log p - log reference), the last one's the reply's reward besides. Advantages are
    generalised (GAE); returns are advantages + values, before whitening. The loss is the mean over all tokens of the
    clipped surrogate + value_weight * max((V - R)^2, (clipped V - R)^2) / 2, and, with data.name = "with_pretraining",
    + ptx_weight * cross-entropy of pretraining texts: all in one gradient.

    Attributes:
      kl_weight: beta; with `kl_target` the one that a run begins with.
      kl_target: nats a reply that an adaptive beta steers to, once a rollout: beta *= 1 + clip(KL / kl_target - 1,
        -0.2, 0.2) * replies / kl_horizon (Ziegler et al., section 2.2); None keeps it.
      kl_horizon: replies.
      gamma, lam: of GAE.
      clip: of the ratio.
      value_clip: how far a value moves from the one that the rollout kept.
      value_weight: of the values' loss.
      whiten: advantages less their mean, over their standard deviation (population): of the "rollout", of each step's
        "batch" (the paper's minibatch), or "none".
      ptx_weight: gamma of the paper's eq. 2; 27.8 there.
    """

    CLIPPED_ERROR: ClassVar[float] = 0.2

    num_samples: int = 1
    kl_weight: float = 0.0
    kl_target: float | None = None
    kl_horizon: int = 10_000
    gamma: float = 1.0
    lam: float = 0.95
    clip: float = 0.2
    value_clip: float = 0.2
    value_weight: float = 0.1
    whiten: str = "rollout"
    ptx_weight: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        check_choice("objective.whiten", self.whiten, WHITENINGS)
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"objective.{name} = {getattr(self, name)}: expected 0 to 1")
        for name in ("clip", "value_clip"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"objective.{name} = {getattr(self, name)} must be above 0")
        for name in ("value_weight", "ptx_weight"):
            if not (getattr(self, name) >= 0 and math.isfinite(getattr(self, name))):
                raise ConfigError(f"objective.{name} = {getattr(self, name)}: expected a number of at least 0")
        if self.kl_target is not None and not (self.kl_target > 0 and self.kl_weight > 0 and self.kl_horizon > 0):
            raise ConfigError(
                f"objective.kl_target = {self.kl_target} with kl_weight = {self.kl_weight} and kl_horizon = "
                f"{self.kl_horizon}: all have to be above 0"
            )

    def initial(self, module, params, key):
        """{"beta": float32 []}."""
        return {"beta": jnp.asarray(self.kl_weight, jnp.float32)}

    def after(self, carry, proposal, params):
        """The next rollout's beta, which all rows of this one tell: a step that is skipped takes nothing from it."""
        return {"beta": proposal.rows["next_beta"].max()}

    def steered(self, beta: float, kl: float, replies: float) -> float:
        """Beta after a rollout of so many replies with this sum of KLs (Ziegler et al., section 2.2)."""
        if self.kl_target is None:
            return beta
        error = kl / max(replies, 1.0) / self.kl_target - 1.0
        error = min(max(error, -self.CLIPPED_ERROR), self.CLIPPED_ERROR)
        return beta * (1.0 + error * replies / self.kl_horizon)

    def further(self, prompt, length: int) -> dict[str, tuple]:
        """`values`, `advantages`, `returns`, perhaps `reference_logprobs` float32 [T]; `beta` and `next_beta`, that of
        the next rollout, float32 []; and with pretraining `ptx_tokens` and so on, [texts of a reply, T']."""
        kinds = super().further(prompt, length)
        kinds |= dict.fromkeys(("values", "advantages", "returns"), ((length,), jnp.float32))
        kinds |= dict.fromkeys(("beta", "next_beta"), ((), jnp.float32))
        if self.ptx_weight:
            for name in PTX:
                texts, size = prompt[f"ptx_{name}"].shape
                kinds[f"ptx_{name}"] = ((texts // self.num_samples, size), prompt[f"ptx_{name}"].dtype)
        return kinds

    def rows(self, prompts, replies, found):
        """The rows; the pretraining texts of a prompt are dealt out to its replies."""
        rows = super().rows(prompts, replies, found)
        if self.ptx_weight:
            for name in (f"ptx_{one}" for one in PTX):
                rows[name] = prompts[name].reshape(len(replies), -1, prompts[name].shape[-1])
        return rows

    def score(self, apply_fn, params, batch, *, carry, models=None) -> dict[str, jax.Array]:
        """{"logprobs", "values", "reference_logprobs" where there is one: float32 [B, T]; "beta": float32 [B]}."""
        found = super().score(apply_fn, params, batch, models=models)
        values = self._values(apply_fn, params, batch)
        return found | {"values": values, "beta": jnp.broadcast_to(carry["beta"], (len(values),))}

    def _values(self, apply_fn, params, batch) -> jax.Array:
        """float32 [B, T]: before each token of a reply is drawn; 0 elsewhere."""
        values = apply_fn({"params": params}, **self.inputs(batch), method="values")
        return jnp.where(batch["loss_weights"] > 0, values, 0.0)

    def complete(self, model, rows, batch_size: int) -> dict[str, np.ndarray]:
        """The rows with advantages, returns and the next beta."""
        mask = rows["loss_weights"]
        reference = rows.get("reference_logprobs", rows["logprobs"])
        rewards = token_rewards(rows["rewards"], rows["logprobs"], reference, mask, rows["beta"])
        advantages = generalised_advantages(rewards, rows["values"], mask, self.gamma, self.lam)
        returns = (advantages + rows["values"]) * mask
        parts = {"rollout": 1, "batch": len(mask) // batch_size, "none": 0}[self.whiten]
        advantages = whitened(advantages, mask, parts)
        drift = (rows["logprobs"].astype(np.float64) - reference) * mask
        beta = self.steered(float(rows["beta"][0]), float(drift.sum()), float(rows["rewarded"].sum()))
        found = {"advantages": advantages, "returns": returns, "next_beta": np.full(len(mask), beta)}
        return rows | {name: array.astype(np.float32) for name, array in found.items()}

    def __call__(self, apply_fn, params, batch, key, train: bool, *, carry, models=None):
        """(sums over the batch, proposal): "loss" and its parts "policy_loss", "value_loss" (without its weight) a
        token and "ptx_loss" a token of pretraining; "clip_fraction", "value_clip_fraction", "ratio", "value", "return"
        and "approximate_kl" (k3 from the rollout's policy) a token; with a reference "kl" (k1 to it, of the rollout) a
        token, "reply_kl" and "kl_reward" (its part in the reward) a reply, "beta"; and `measures`."""
        mask, rewarded = batch["loss_weights"], batch["rewarded"]
        found = self.logprobs(self.policy(apply_fn, params), batch)
        log_ratio = log_ratios(found, batch["logprobs"], mask, "token")
        losses, clipped = surrogate(log_ratio, batch["advantages"], self.clip, self.clip)
        values = self._values(apply_fn, params, batch)
        errors, cut = value_losses(values, batch["values"], batch["returns"], self.value_clip)
        tokens, replies = mask.sum(), rewarded.sum()
        a_token = lambda x: (jnp.sum(jax.lax.stop_gradient(x) * mask), tokens)
        sums = {
            "policy_loss": a_token(losses), "value_loss": a_token(errors), "clip_fraction": a_token(clipped),
            "value_clip_fraction": a_token(cut), "ratio": a_token(jnp.exp(log_ratio)), "value": a_token(values),
            "return": a_token(batch["returns"]), "approximate_kl": a_token(jnp.exp(log_ratio) - 1 - log_ratio),
            **self.measures(batch, found),
        }  # fmt: skip
        if self.reference:
            kl, beta = jnp.sum((batch["logprobs"] - batch["reference_logprobs"]) * mask), jnp.mean(batch["beta"])
            sums |= {"kl": (kl, tokens), "reply_kl": (kl, replies), "kl_reward": (-beta * kl, replies)}
            sums["beta"] = (beta * len(mask), jnp.float32(len(mask)))
        loss = (jnp.sum((losses + self.value_weight * errors) * mask), tokens)
        if self.ptx_weight:
            sums["ptx_loss"] = self._pretraining(apply_fn, params, batch, key, train)
            total, weight = sums["ptx_loss"]
            loss = (loss, (self.ptx_weight * total, weight))
            sums["ptx_loss"] = (jax.lax.stop_gradient(total), weight)
        return {"loss": loss, **sums}, Proposal(rows={"next_beta": batch["next_beta"]})

    def _pretraining(self, apply_fn, params, batch, key, train: bool):
        """(sum, weight) of the cross-entropy of the pretraining texts, a token."""
        texts = {name: folded(batch[f"ptx_{name}"]) for name in PTX}
        given = {name: texts[name] for name in ("tokens", "segment_ids", "positions")}
        return target_sums(apply_fn, params, texts, given, key, train, chunk_size=self.chunk_size)["loss"]

    def check(self, module, data) -> None:
        """As of `OnPolicy`; ConfigError also for a model without values, and for pretraining without texts."""
        if not hasattr(module, "values"):
            raise ConfigError(
                f"objective PPO trains a policy and its values, model.name = 'actor_critic' with policy and value; "
                f"{type(module).__name__} has no values"
            )
        super().check(module, data)

    def _check_row(self, row) -> None:
        super()._check_row(row)
        if not self.ptx_weight:
            return
        if "ptx_tokens" not in row:
            raise ConfigError(
                f"objective.ptx_weight = {self.ptx_weight} and these data have no texts beside the prompts; take "
                "data.name = 'with_pretraining'"
            )
        texts = row["ptx_tokens"].shape[0]
        if texts % self.num_samples:
            raise ConfigError(
                f"data.texts = {texts} is not divisible by objective.num_samples = {self.num_samples}: the texts of a "
                "prompt are dealt out to its replies"
            )


def value_losses(values, kept, returns, clip: float) -> tuple[jax.Array, jax.Array]:
    """(max((V - R)^2, (clipped V - R)^2) / 2, whether the clipped one counts), [B, T]; V is clipped to the kept values
    +- `clip`."""
    near = kept + jnp.clip(values - kept, -clip, clip)
    plain, clipped = jnp.square(values - returns), jnp.square(near - returns)
    return jnp.maximum(plain, clipped) / 2, jax.lax.stop_gradient(clipped > plain)
