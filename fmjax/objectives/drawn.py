"""What objectives share that learn from a model's own replies: drawing them, and the rows that they become."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from fmjax.errors import ConfigError
from fmjax.layers.checks import check_positive
from fmjax.objectives.base import need_features
from fmjax.objectives.cross_entropy import check_chunk_size
from fmjax.objectives.logprobs import token_logprobs

INPUTS = ("tokens", "segment_ids")


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Replies to prompts, `num_samples` each.

    A reply ends with EOS or after `max_new_tokens`; its EOS is a token of it. The ids that were drawn are those that
    are trained on: nothing is encoded again.

    Attributes:
      num_samples: replies to a prompt, a divisor of the batch size.
      max_new_tokens: tokens of a reply at most.
      temperature: that replies are drawn at, and all log-probabilities are taken at; an evaluation's are the likeliest.
      rollout_steps: steps that train on one rollout.
      epochs: how often each row of a rollout is trained on, a divisor of rollout_steps.
      decode_rows: replies drawn at once.
      chunk_size: positions of each row whose logits exist at the same time; none: by the platform.
    """

    ROWS_APART: ClassVar[bool] = True
    FEWEST_SAMPLES: ClassVar[int] = 1

    num_samples: int = 8
    max_new_tokens: int = 32
    temperature: float = 1.0
    rollout_steps: int = 1
    epochs: int = 1
    decode_rows: int = 64
    chunk_size: int | None = None

    def __post_init__(self):
        check_chunk_size(self.chunk_size)
        names = ("num_samples", "max_new_tokens", "rollout_steps", "epochs", "decode_rows")
        check_positive(**{f"objective.{name}": getattr(self, name) for name in names})
        if self.num_samples < self.FEWEST_SAMPLES:
            raise ConfigError(
                f"objective.num_samples = {self.num_samples} must be at least {self.FEWEST_SAMPLES}: a reply is "
                "measured by the others to its prompt"
            )
        if not self.temperature > 0:
            raise ConfigError(f"objective.temperature = {self.temperature} must be above 0: replies are drawn")

    @property
    def CUT_ALIKE(self) -> tuple[str, ...]:  # noqa: N802
        """Names of the other models, which are given the data's tokens."""
        return tuple(self.models())

    def models(self) -> dict[str, str]:
        """See `fmjax.objectives.base`."""
        return {}

    def inputs(self, batch) -> dict:
        """What the module is called with."""
        return {name: batch[name] for name in INPUTS}

    def logprobs(self, features, batch) -> jax.Array:
        """float32 [B, T]: those of a batch's targets; 0 where there is none.

        features: called with the batch's `inputs`, gives (hidden, head), without dropout, as the policy that drew them
          had none.
        """
        hidden, head = features(**self.inputs(batch))
        options = dict(temperature=self.temperature, chunk_size=self.chunk_size)
        found = token_logprobs(hidden, head, batch["targets"], **options)
        return jnp.where(batch["loss_weights"] > 0, found, 0.0)

    def policy(self, apply_fn, params):
        """The `features` of the module that is trained."""
        return lambda **given: apply_fn({"params": params}, **given, method="features")

    def num_prompts(self, rows: int) -> int:
        """How many prompts make so many rows. Raises ConfigError where none do."""
        if rows % self.num_samples:
            raise ConfigError(
                f"train.batch_size = {rows} is not divisible by objective.num_samples = {self.num_samples}: all "
                "replies to a prompt belong to one step"
            )
        return rows // self.num_samples

    def collected(self, prompt) -> dict[str, jax.ShapeDtypeStruct]:
        """The arrays of a row, a prompt and a reply: tokens, segment_ids, targets int32 [T]; loss_weights (1 where a
        target is the reply's), sampler_logprobs float32 [T]; and `further`."""
        self._check_row(prompt)
        length = self._length(prompt["tokens"].shape[-1])
        kinds = dict.fromkeys((*INPUTS, "targets"), ((length,), jnp.int32))
        kinds |= dict.fromkeys(("loss_weights", "sampler_logprobs"), ((length,), jnp.float32))
        kinds |= self.further(prompt, length)
        return {name: jax.ShapeDtypeStruct(*kind) for name, kind in kinds.items()}

    def further(self, prompt, length: int) -> dict[str, tuple]:
        """(shape, dtype) of what else a row has."""
        return {}

    def _length(self, prompt: int) -> int:
        return prompt + self.max_new_tokens - 1

    def laid(self, prompts: Mapping, replies: Sequence) -> dict[str, np.ndarray]:
        """Prompts and replies as arrays, as `collected` tells; replies have `tokens` and `logprobs`, and those to a
        prompt come one after another."""
        starts, count, length = prompt_ids(prompts), len(replies), self._length(prompts["tokens"].shape[1])
        rows = {name: np.zeros((count, length), np.int32) for name in (*INPUTS, "targets")}
        rows |= {name: np.zeros((count, length), np.float32) for name in ("loss_weights", "sampler_logprobs")}
        for index, reply in enumerate(replies):
            start = starts[index * len(starts) // count]
            whole, first = [*start, *reply.tokens], len(start) - 1
            end = len(whole) - 1
            rows["tokens"][index, :end], rows["segment_ids"][index, :end] = whole[:-1], 1
            rows["targets"][index, first:end] = reply.tokens
            rows["loss_weights"][index, first:end] = 1
            rows["sampler_logprobs"][index, first:end] = reply.logprobs
        return rows

    def draw(self, model, prompts: Mapping, num_samples: int, temperature: float, seed: int):
        """Replies to the prompts, by the model as it now is."""
        return model.served.complete(
            prompt_ids(prompts), num_samples=num_samples, temperature=temperature, seed=seed,
            max_new_tokens=self.max_new_tokens, batch_size=self.decode_rows,
            cache_length=self._length(prompts["tokens"].shape[1]),
        )  # fmt: skip

    def check(self, module, data) -> None:
        """Raises ConfigError for another kind of model, data that are no prompts, rows beyond the model's context."""
        name = type(self).__name__
        need_features(self, module)
        draws = getattr(module, getattr(module, "SERVES", ""), module)
        if not hasattr(draws, "init_cache"):
            raise ConfigError(f"objective {name} needs a model that generates; {type(draws).__name__} cannot")
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
                f"objective {type(self).__name__} needs prompts, rows with tokens and lengths, such as data.name = "
                f"'prompts' has; these data have {', '.join(sorted(row))}"
            )
        if "ptx_tokens" in row and not getattr(self, "ptx_weight", 0.0):
            raise ConfigError(
                f"data.name = 'with_pretraining' has texts beside the prompts, and objective {type(self).__name__} "
                f"reads none{' with ptx_weight = 0' if hasattr(self, 'ptx_weight') else ''}: take what is in "
                "data.prompts as the data, or objective.name = 'ppo' with ptx_weight above 0"
            )


def prompt_ids(rows: Mapping) -> list[list[int]]:
    """Token ids of prompts' rows."""
    return [tokens[:length].tolist() for tokens, length in zip(rows["tokens"], rows["lengths"])]
