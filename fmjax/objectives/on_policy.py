"""What objectives share that learn from rewards of a model's own replies."""

import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fmjax.errors import ConfigError
from fmjax.layers.checks import check_choice
from fmjax.objectives.drawn import Drawn, prompt_ids
from fmjax.parallel import watch
from fmjax.rewards.base import RewardError, RewardSpec, Samples
from fmjax.rewards.models import check_reward_model, check_trained
from fmjax.rewards.several import Graded, Several

log = logging.getLogger("fmjax")


@dataclasses.dataclass(frozen=True)
class OnPolicy(Drawn):
    """`Drawn`, with rewards.

    The log-probabilities that a rollout keeps are the trainer's own (`score`), which differ from the engine's by
    rounding: it decodes a token at a time with a cache.

    Attributes:
      reward: import path `package.module:function` of what computes rewards on the host, see `RewardSpec.function`;
        or else:
      rewards: several, by names of your choice, each a section with a weight (`fmjax.rewards.base.RewardSpec`):
        {"right": {"verifier": "maths"}, "taste": {"models": ["runs/reward"], "weight": 0.5}}.
      reward_failures: what becomes of a reply whose reward raises or is not finite: "skip" leaves it out of the loss
        and of its group's baseline, warns and counts it (`reward_failures`); "stop" ends the run. Where all of a
        rollout fail it ends in any case.
      missing_eos_penalty: taken from the reward of a reply that did not end within `max_new_tokens`.
    """

    reward: str = ""
    rewards: dict[str, RewardSpec] | None = dataclasses.field(default=None, hash=False)
    reward_failures: str = "skip"
    missing_eos_penalty: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        check_choice("objective.reward_failures", self.reward_failures, ("skip", "stop"))
        self._graders  # opened once, so that what is none is refused here

    @functools.cached_property
    def _graders(self) -> Several:
        return Several(self.reward, self.rewards)

    def models(self) -> dict[str, str]:
        """See `fmjax.objectives.base`."""
        return super().models() | self._graders.models()

    def check_models(self, module, models) -> None:
        """Raises ConfigError where a reward model does not fit."""
        for name in self._graders.models():
            check_reward_model(f"objective.{name}", models[name].module, module)

    def check_objectives(self, objectives) -> None:
        """Raises ConfigError for a reward model that was trained to judge steps."""
        for name in self._graders.models():
            check_trained(f"objective.{name}", objectives.get(name))

    def contents(self) -> dict[str, str]:
        """See `fmjax.objectives.base`."""
        return self._graders.contents

    def further(self, prompt, length: int) -> dict[str, tuple]:
        """`logprobs` float32 [T]; `rewards`, `raw_rewards` (before anything is taken from them), `rewarded` (0 where
        the reward failed; so are the reply's `loss_weights` then), `ended` float32 []; `reward_parts`, `parts_there`
        (0 where that one failed) float32 [rewards]."""
        numbers = dict.fromkeys(("rewards", "raw_rewards", "rewarded", "ended"), ((), jnp.float32))
        parts = dict.fromkeys(("reward_parts", "parts_there"), ((len(self._graders.names),), jnp.float32))
        return {"logprobs": ((length,), jnp.float32)} | numbers | parts

    def collect(self, model, prompts, key) -> dict[str, np.ndarray]:
        """Replies to the prompts with their rewards, those of a prompt one after another."""
        self._graders.check_context(model, self._room(prompts))
        replies = self.draw(model, prompts, self.num_samples, self.temperature, int(jax.random.bits(key) >> 1))
        return self.rows(prompts, replies, self.graded(model, prompts, replies, self.num_samples))

    def _room(self, prompts: Mapping) -> int:
        """Tokens of a prompt with its reply at most."""
        return prompts["tokens"].shape[1] + self.max_new_tokens

    def rows(self, prompts: Mapping, replies: Sequence, found: Graded) -> dict[str, np.ndarray]:
        """Prompts and replies as arrays, with their rewards."""
        rows = self.laid(prompts, replies)
        rewarded = np.isfinite(found.total).astype(np.float32)
        rows["loss_weights"] *= rewarded[:, None]
        ended = np.array([reply.finish == "stop" for reply in replies], np.float32)
        raw = np.nan_to_num(found.total)
        rewards = raw - self.missing_eos_penalty * (1 - ended)
        rows |= {"rewards": (rewards * rewarded).astype(np.float32), "rewarded": rewarded, "ended": ended}
        rows["raw_rewards"] = raw
        there = np.isfinite(found.parts).astype(np.float32)
        return rows | {"reward_parts": np.nan_to_num(found.parts), "parts_there": there}

    def assess(self, model, prompts, key) -> dict[str, tuple[float, float]]:
        """{"reward": ...} of the likeliest reply to each prompt, and of several rewards each."""
        self._graders.check_context(model, self._room(prompts))
        found = self.graded(model, prompts, self.draw(model, prompts, 1, 0.0, 0), 1)
        mean = lambda values: (float(np.nansum(values)), float(np.isfinite(values).sum()))
        return {"reward": mean(found.total)} | self._named(lambda place: mean(found.parts[:, place]))

    def _named(self, value) -> dict[str, Any]:
        """{"reward_NAME": value(place)} of several rewards; {} of one."""
        names = self._graders.names
        return {f"reward_{name}": value(place) for place, name in enumerate(names)} if len(names) > 1 else {}

    def graded(self, model, prompts: Mapping, replies: Sequence, num_samples: int) -> Graded:
        """What replies get, the same in every process. Raises RewardError naming a reply that has no reward, where that
        ends the run."""
        watch.at("the rewards of a rollout", limited=False)
        asked = [tokens for tokens in prompt_ids(prompts) for _ in range(num_samples)]
        texts = [[*tokens, *reply.tokens] for tokens, reply in zip(asked, replies)]
        answered, answers = [reply.tokens for reply in replies], None
        rows = {name: np.repeat(array, num_samples, axis=0) for name, array in prompts.items()}
        if "answers" in rows:
            answers = [bytes(row).rstrip(b"\0").decode() for row in rows["answers"]]
        if model.tokenizer is not None:
            asked = [model.tokenizer.decode(tokens) for tokens in asked]
            answered = [reply.text for reply in replies]
        samples = Samples(asked, answered, rows, answers)
        found = self._graders.grade(samples, texts, model, self._room(prompts), self.decode_rows)
        failed = int((~np.isfinite(found.total)).sum())
        if failed and (self.reward_failures == "stop" or failed == len(replies)):
            raise RewardError(found.wrong[0] if found.wrong else f"{failed} of {len(replies)} replies have no reward")
        if found.wrong:
            told = f"{failed} of {len(replies)} replies have no reward and are left out"
            log.warning("%s: %s", told if failed else "a reward without weight fails", found.wrong[0])
        return found

    def measures(self, batch, found) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Sums that all these objectives tell, of log-probabilities `found` [B, T]: "reward" (what is learnt from),
        "raw_reward" (before anything is taken for length or a missing end) and of several rewards each,
        "reply_tokens", "ended" a reply; "reward_failures", the share of replies that have none; "entropy" (-log p of
        what was drawn), "logprob_difference" (from what the rollout kept) and "sampler_difference" (from what the
        engine said) a token."""
        mask, rewarded = batch["loss_weights"], batch["rewarded"]
        tokens, replies = mask.sum(), rewarded.sum()
        found, there = jax.lax.stop_gradient(found), batch["parts_there"] * rewarded[:, None]
        parts = batch["reward_parts"] * there
        difference = lambda kept: jnp.sum(jnp.abs(found - kept) * mask)
        return {
            "reward": (jnp.sum(batch["rewards"] * rewarded), replies),
            "raw_reward": (jnp.sum(batch["raw_rewards"] * rewarded), replies),
            **self._named(lambda place: (parts[:, place].sum(), there[:, place].sum())),
            "reply_tokens": (tokens, replies),
            "ended": (jnp.sum(batch["ended"] * rewarded), replies),
            "reward_failures": (jnp.sum(1.0 - rewarded), jnp.float32(len(rewarded))),
            "entropy": (-jnp.sum(found * mask), tokens),
            "logprob_difference": (difference(batch["logprobs"]), tokens),
            "sampler_difference": (difference(batch["sampler_logprobs"]), tokens),
        }

    def check(self, module, data) -> None:
        """As of `Drawn`; ConfigError also for a verifier without answers."""
        super().check(module, data)
        row = data.train[0]
        if self._graders.needs_answers and "answers" not in row:
            raise ConfigError(
                f"objective {type(self).__name__} has a verifier, and these data tell no answers: take data.name = "
                "'chat_prompts', whose records have an 'answer', with data.answer_bytes"
            )
