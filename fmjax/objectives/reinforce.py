"""Policy gradients: a decoder learns from a reward of its own replies."""

import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from fmjax.errors import ConfigError, RunError
from fmjax.layers.checks import check_positive
from fmjax.objectives.base import need_features
from fmjax.objectives.cross_entropy import check_chunk_size
from fmjax.objectives.logprobs import token_logprobs
from fmjax.parallel import watch
from fmjax.parallel.hosts import from_first_process
from fmjax.registry import import_object


class RewardError(RunError):
    """The reward raised, or is no number."""


@dataclasses.dataclass(frozen=True)
class Reinforce:
    """REINFORCE with a leave-one-out baseline (Kool et al. 2019, https://openreview.net/forum?id=r1lgTGL5DE; RLOO,
    Ahmadian et al. 2024, https://arxiv.org/abs/2402.14740, eq. 8).

    Each prompt is answered `num_samples` times. A reply's advantage is its reward less the mean of the others to the
    same prompt; the loss is -mean over replies of advantage * log p(reply), p at the temperature that drew it, and its
    gradient an unbiased estimate of minus that of the expected reward in the first step of a rollout. Further steps of
    a rollout take that gradient for replies of slightly older parameters. A reply ends with EOS or after
    `max_new_tokens`; its EOS is a token of it.

    The log-probabilities that a rollout keeps are the trainer's own (`score`), which differ from the engine's by
    rounding: it decodes a token at a time with a cache. `logprob_difference` is the mean of |trainer's now - kept| a
    token: 0 in the first step of a rollout in float32 on one device, and later how far the policy has moved.
    `sampler_difference` is the same against the engine's.

    Attributes:
      reward: import path `package.module:function` of what computes rewards on the host: `(prompts, replies)`, lists of
        texts (of token ids, where the data have no tokenizer), to a number each; a third argument gets the prompts'
        rows of the data, a dict of arrays. A pure function, or a resumed run is another.
      num_samples: replies to a prompt, a divisor of the batch size.
      max_new_tokens: tokens of a reply at most.
      temperature: that replies are drawn at; an evaluation's are the likeliest.
      rollout_steps: steps that train on one rollout.
      decode_rows: replies drawn at once.
      chunk_size: positions of each row whose logits exist at the same time; none: by the platform.
    """

    ROWS_APART: ClassVar[bool] = True

    reward: str
    num_samples: int = 8
    max_new_tokens: int = 32
    temperature: float = 1.0
    rollout_steps: int = 1
    decode_rows: int = 64
    chunk_size: int | None = None

    def __post_init__(self):
        check_chunk_size(self.chunk_size)
        names = ("max_new_tokens", "rollout_steps", "decode_rows")
        check_positive(**{f"objective.{name}": getattr(self, name) for name in names})
        if self.num_samples < 2:
            raise ConfigError(
                f"objective.num_samples = {self.num_samples} must be at least 2: a reply is measured by the others to "
                "its prompt"
            )
        if not self.temperature > 0:
            raise ConfigError(f"objective.temperature = {self.temperature} must be above 0: replies are drawn")
        self._function()

    def inputs(self, batch) -> dict:
        """What the module is called with."""
        return {name: batch[name] for name in ("tokens", "segment_ids")}

    def score(self, apply_fn, params, batch) -> dict[str, jax.Array]:
        """{"logprobs": float32 [B, T]}: of the targets; 0 where there is none.

        Without dropout, as the policy that drew them had none.
        """
        hidden, head = apply_fn({"params": params}, **self.inputs(batch), method="features")
        options = dict(temperature=self.temperature, chunk_size=self.chunk_size)
        found = token_logprobs(hidden, head, batch["targets"], **options)
        return {"logprobs": jnp.where(batch["loss_weights"] > 0, found, 0.0)}

    def __call__(self, apply_fn, params, batch, key, train: bool) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Sums over the batch: "loss", "reward" and "reply_tokens" a reply; "entropy" (-log p of what was drawn),
        "logprob_difference" and "sampler_difference" a token of the replies."""
        found, mask = self.score(apply_fn, params, batch)["logprobs"], batch["loss_weights"]
        replies, tokens = jnp.float32(len(mask)), mask.sum()
        difference = lambda kept: jnp.sum(jnp.abs(jax.lax.stop_gradient(found) - kept) * mask)
        return {
            "loss": (-jnp.sum(batch["advantages"] * found.sum(axis=1)), replies),
            "reward": (batch["rewards"].sum(), replies),
            "reply_tokens": (tokens, replies),
            "entropy": (-jax.lax.stop_gradient(found).sum(), tokens),
            "logprob_difference": (difference(batch["logprobs"]), tokens),
            "sampler_difference": (difference(batch["sampler_logprobs"]), tokens),
        }

    def num_prompts(self, rows: int) -> int:
        """How many prompts make so many rows. Raises ConfigError where none do."""
        if rows % self.num_samples:
            raise ConfigError(
                f"train.batch_size = {rows} is not divisible by objective.num_samples = {self.num_samples}: all "
                "replies to a prompt belong to one step"
            )
        return rows // self.num_samples

    def collected(self, prompt) -> dict[str, jax.ShapeDtypeStruct]:
        """The arrays of a row, a prompt and a reply: tokens, segment_ids, targets int32 [T]; loss_weights, logprobs,
        sampler_logprobs float32 [T], 1 or not 0 where a target is the reply's; rewards, advantages float32 []."""
        self._check_row(prompt)
        length = prompt["tokens"].shape[-1] + self.max_new_tokens - 1
        kinds = dict.fromkeys(("tokens", "segment_ids", "targets"), ((length,), jnp.int32))
        kinds |= dict.fromkeys(("loss_weights", "logprobs", "sampler_logprobs"), ((length,), jnp.float32))
        kinds |= dict.fromkeys(("rewards", "advantages"), ((), jnp.float32))
        return {name: jax.ShapeDtypeStruct(*kind) for name, kind in kinds.items()}

    def collect(self, model, prompts, key) -> dict[str, np.ndarray]:
        """Replies to the prompts with their rewards, as `collected` tells, those of a prompt one after another."""
        starts = _prompts(prompts)
        replies = self._replies(model, prompts, self.num_samples, self.temperature, int(jax.random.bits(key) >> 1))
        rewards = self.rewards(model.tokenizer, prompts, replies, self.num_samples)
        length = prompts["tokens"].shape[1] + self.max_new_tokens - 1
        rows = {name: np.zeros((len(replies), length), np.int32) for name in ("tokens", "segment_ids", "targets")}
        rows |= {name: np.zeros((len(replies), length), np.float32) for name in ("loss_weights", "sampler_logprobs")}
        for index, reply in enumerate(replies):
            start = starts[index // self.num_samples]
            whole, first = [*start, *reply.tokens], len(start) - 1
            end = len(whole) - 1
            rows["tokens"][index, :end], rows["segment_ids"][index, :end] = whole[:-1], 1
            rows["targets"][index, first:end] = reply.tokens
            rows["loss_weights"][index, first:end] = 1
            rows["sampler_logprobs"][index, first:end] = reply.logprobs
        return rows | {"rewards": rewards, "advantages": advantages(rewards, self.num_samples)}

    def assess(self, model, prompts, key) -> dict[str, tuple[float, float]]:
        """{"reward": ...} of the likeliest reply to each prompt."""
        replies = self._replies(model, prompts, 1, 0.0, 0)
        return {"reward": (float(self.rewards(model.tokenizer, prompts, replies, 1).sum()), float(len(replies)))}

    def _replies(self, model, prompts, num_samples: int, temperature: float, seed: int):
        length = prompts["tokens"].shape[1] + self.max_new_tokens - 1
        return model.complete(
            _prompts(prompts), num_samples=num_samples, temperature=temperature, seed=seed,
            max_new_tokens=self.max_new_tokens, batch_size=self.decode_rows, cache_length=length,
        )  # fmt: skip

    def rewards(self, tokenizer, prompts, replies, num_samples: int) -> np.ndarray:
        """float32 [len(replies)], as process 0 computes them. Raises RewardError naming the reply that has none."""
        watch.at("the rewards of a rollout", limited=False)
        found = b""
        if jax.process_index() == 0:
            asked = [tokens for tokens in _prompts(prompts) for _ in range(num_samples)]
            answered = [reply.tokens for reply in replies]
            if tokenizer is not None:
                asked = [tokenizer.decode(tokens) for tokens in asked]
                answered = [reply.text for reply in replies]
            rows = {name: np.repeat(array, num_samples, axis=0) for name, array in prompts.items()}
            found = self._rewards(asked, answered, rows).tobytes()
        return np.frombuffer(from_first_process(found), np.float32)

    def _rewards(self, prompts: list, replies: list, rows: dict) -> np.ndarray:
        function, arguments = self._function()
        call = lambda some: function(*(prompts[some], replies[some], {k: v[some] for k, v in rows.items()})[:arguments])
        try:
            values = call(slice(None))
        except Exception as error:
            index = next((i for i in range(len(replies)) if _raises(call, slice(i, i + 1))), None)
            where = f"for {len(replies)} replies" if index is None else _pair(prompts[index], replies[index])
            raise RewardError(f"reward {self.reward!r} raised {type(error).__name__}: {error}; {where}") from error
        try:
            values = np.asarray(values, np.float32)
        except (TypeError, ValueError) as error:
            raise RewardError(f"reward {self.reward!r} gave no numbers ({error})") from None
        if values.shape != (len(replies),):
            raise RewardError(
                f"reward {self.reward!r} gave an array of shape {values.shape} for {len(replies)} replies; expected a "
                "number each"
            )
        for index, value in enumerate(values.tolist()):
            if not math.isfinite(value):
                where = _pair(prompts[index], replies[index])
                raise RewardError(f"reward {self.reward!r} gave {value}, which is not finite, {where}")
        return values

    def _function(self) -> tuple[Callable, int]:
        """The reward, and how many arguments it takes. Raises ConfigError for what is none."""
        function = import_object(self.reward, "objective.reward")
        for count in (3, 2):
            try:
                inspect.signature(function).bind(*range(count))
            except TypeError:
                continue
            return function, count
        raise ConfigError(f"objective.reward = {self.reward!r} cannot be called as reward(prompts, replies[, rows])")

    def check(self, module, data) -> None:
        """Raises ConfigError for another kind of model, data that are no prompts, rows beyond the model's context."""
        need_features(self, module)
        if not hasattr(module, "init_cache"):
            raise ConfigError(f"objective Reinforce needs a model that generates; {type(module).__name__} cannot")
        row = data.train[0]
        self._check_row(row)
        needed, context = row["tokens"].shape[-1] + self.max_new_tokens, getattr(module, "max_length", None)
        if context is not None and needed > context:
            raise ConfigError(
                f"prompts of {row['tokens'].shape[-1]} tokens and objective.max_new_tokens = {self.max_new_tokens} are "
                f"more than model.max_length = {context}"
            )

    def _check_row(self, row) -> None:
        if not {"tokens", "lengths"} <= set(row):
            raise ConfigError(
                f"objective Reinforce needs prompts, rows with tokens and lengths, such as data.name = 'prompts' has; "
                f"these data have {', '.join(sorted(row))}"
            )


def advantages(rewards: np.ndarray, num_samples: int) -> np.ndarray:
    """Each reward less the mean of the `num_samples` - 1 others to its prompt, float32 [rows]."""
    groups = rewards.reshape(-1, num_samples).astype(np.float64)
    others = (groups.sum(axis=1, keepdims=True) - groups) / (num_samples - 1)
    return (groups - others).reshape(-1).astype(np.float32)


def _prompts(rows) -> list[list[int]]:
    return [tokens[:length].tolist() for tokens, length in zip(rows["tokens"], rows["lengths"])]


def _raises(call: Callable, some: slice) -> bool:
    try:
        call(some)
    except Exception:
        return True
    return False


def _pair(prompt, reply) -> str:
    return f"for the reply {reply!r} to {prompt!r}"
