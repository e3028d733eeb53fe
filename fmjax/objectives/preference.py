"""Objectives of preferences: of two answers to the same chat the better one is to have more of something.

A row has K answers (`fmjax.data.chats.ranked`), each with a score. Every pair of answers that were told apart counts;
all pairs of a row are averaged, and then the rows. With K = 2 that is the loss of pairs as the papers have it.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from fmjax.errors import ConfigError
from fmjax.objectives.base import check_reads_alike, need_features
from fmjax.objectives.cross_entropy import check_chunk_size
from fmjax.objectives.logprobs import token_logprobs
from fmjax.objectives.text_samples import TextSamples

INPUTS = ("tokens", "segment_ids", "positions")


class Answers(NamedTuple):
    """What a model says of answers.

    Attributes:
      logprobs: float32 [B, K], the sum over an answer's tokens.
      lengths: float32 [B, K], how many those are; at least 1.
    """

    logprobs: jax.Array
    lengths: jax.Array

    @property
    def means(self) -> jax.Array:
        """A token's, float32 [B, K]."""
        return self.logprobs / self.lengths


def folded(x):
    """[B, K, ...] as [B * K, ...], the answers of all rows one after another; also of an array that is only
    described."""
    shape = (x.shape[0] * x.shape[1], *x.shape[2:])
    if isinstance(x, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(shape, x.dtype, sharding=x.sharding)
    return x.reshape(shape)


def answers(features, batch: Mapping, chunk_size: int | None = None) -> Answers:
    """The answers of a batch, each read once.

    features: called with the batch's `inputs`, gives (hidden, head) as a decoder's `features`.
    """
    hidden, head = features(**inputs(batch))
    found = token_logprobs(hidden, head, folded(batch["targets"]), chunk_size=chunk_size)
    weights = folded(batch["loss_weights"])
    shape = batch["loss_weights"].shape[:2]
    lengths = jnp.maximum(weights.sum(axis=1), 1.0)
    return Answers(jnp.sum(found * weights, axis=1).reshape(shape), lengths.reshape(shape))


def inputs(batch: Mapping) -> dict[str, jax.Array]:
    """What a decoder is called with, an answer a row."""
    return {name: folded(batch[name]) for name in INPUTS}


def told_apart(scores, weights) -> jax.Array:
    """float32 [B, K, K]: 1 at (i, j) where answer i is better than answer j.

    Args:
      scores: float32 [B, K].
      weights: float32 [B, K], 1 where there is an answer.
    """
    return (scores[:, :, None] > scores[:, None, :]) * weights[:, :, None] * weights[:, None, :]


def over_pairs(values, pairs) -> tuple[jax.Array, jax.Array]:
    """(sum, weight) over rows of the mean over each row's pairs.

    Args:
      values: float32 [B, K, K].
      pairs: as of `told_apart`; a row without any counts nothing.
    """
    count = pairs.sum(axis=(1, 2))
    means = jnp.sum(values * pairs, axis=(1, 2)) / jnp.maximum(count, 1.0)
    return means.sum(), (count > 0).astype(jnp.float32).sum()


def logistic(difference, smoothing: float = 0.0) -> jax.Array:
    """-log sigmoid(difference), where `smoothing` is the share of pairs whose better answer is the other."""
    right, wrong = jax.nn.softplus(-difference), jax.nn.softplus(difference)
    return (1.0 - smoothing) * right + smoothing * wrong if smoothing else right


@dataclasses.dataclass(frozen=True)
class Preference(TextSamples):
    """What the objectives of preferences share.

    Attributes:
      beta: how strongly answers are told apart; see the objective.
      label_smoothing: the share of pairs that is taken to be the wrong way round (conservative DPO, Mitchell 2023).
      chunk_size: positions of each answer whose logits exist at the same time; none: by the platform.
    """

    RESUME_FREE: ClassVar[tuple[str, ...]] = ("chunk_size", *TextSamples.RESUME_FREE)
    ROWS_APART: ClassVar[bool] = True

    beta: float = 0.1
    label_smoothing: float = 0.0
    chunk_size: int | None = None

    def __post_init__(self):
        super().__post_init__()
        check_chunk_size(self.chunk_size)
        if not self.beta > 0:
            raise ConfigError(f"objective.beta = {self.beta} must be positive")
        if not 0 <= self.label_smoothing < 0.5:
            raise ConfigError(f"objective.label_smoothing = {self.label_smoothing}: expected at least 0 and below 0.5")

    def inputs(self, batch) -> dict:
        """The arrays of `batch` that the module takes, by keyword: an answer a row."""
        return inputs(batch)

    def values(self, policy: Answers, reference: Answers | None) -> jax.Array:
        """float32 [B, K]: what the better of two answers is to have more of."""
        raise NotImplementedError

    def of_pairs(self, difference) -> jax.Array:
        """The loss by how much more the better answer has."""
        raise NotImplementedError

    def beside(self, policy: Answers, batch) -> jax.Array | float:
        """What is added to a row's loss, float32 [B]."""
        return 0.0

    def __call__(self, apply_fn, params, batch: dict, key, train: bool) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Sums over the batch, each a row's mean over its pairs: "loss"; "accuracy", of the pairs whose better answer
        has more; "margin", how much more. "better_logprob" and "worse_logprob" are the model's, an answer: losses of
        differences may fall while both fall."""
        return self._sums(self._policy(apply_fn, params, batch, key, train), None, batch)

    def _policy(self, apply_fn, params, batch, key, train: bool) -> Answers:
        rngs = {"dropout": key} if train and key is not None else None
        features = lambda **given: apply_fn({"params": params}, **given, train=train, rngs=rngs, method="features")
        return answers(features, batch, self.chunk_size)

    def _sums(self, policy: Answers, reference: Answers | None, batch) -> dict[str, tuple[jax.Array, jax.Array]]:
        pairs = told_apart(batch["scores"], batch["answer_weights"])
        values = self.values(policy, reference)
        difference = values[:, :, None] - values[:, None, :]
        loss, rows = over_pairs(self.of_pairs(difference), pairs)
        has_pair = (pairs.sum(axis=(1, 2)) > 0).astype(jnp.float32)
        found = jax.lax.stop_gradient(policy.logprobs)
        both = lambda x, axis: jnp.broadcast_to(jnp.expand_dims(x, axis), pairs.shape)
        return {
            "loss": (loss + jnp.sum(self.beside(policy, batch) * has_pair), rows),
            "accuracy": over_pairs(difference > 0, pairs),
            "margin": over_pairs(jax.lax.stop_gradient(difference), pairs),
            "better_logprob": over_pairs(both(found, 2), pairs),
            "worse_logprob": over_pairs(both(found, 1), pairs),
        }

    def check(self, module, data) -> None:
        """Raises ConfigError for another kind of model, or data whose rows have no ranked answers."""
        need_features(self, module)
        super().check(module, data)
        row = data.train[0]
        if not {"scores", "answer_weights"} <= set(row):
            raise ConfigError(
                f"objective {type(self).__name__} needs ranked answers, such as data.name = 'preferences' has; these "
                f"data have {', '.join(sorted(row))}"
            )


@dataclasses.dataclass(frozen=True)
class Referenced(Preference):
    """An objective of preferences beside a reference model.

    Attributes:
      reference: a run, a published folder or a hub id, usually what the run begins with (`train.init_from`). It is not
        saved with the run. "": the data have `reference_logprobs`, computed before
        (`python -m fmjax.commands.reference`).
    """

    CUT_ALIKE: ClassVar[tuple[str, ...]] = ("reference",)

    reference: str = ""

    def models(self) -> dict[str, str]:
        """See `fmjax.objectives.base`."""
        return {"reference": self.reference} if self.reference else {}

    def check_models(self, module, models) -> None:
        """Raises ConfigError where the reference gives no logits for texts, or has another vocabulary."""
        check_reads_alike(self, "reference", models["reference"].module, module)

    def check(self, module, data) -> None:
        """As of `Preference`; ConfigError also where there is neither a reference nor what it said."""
        super().check(module, data)
        if not self.reference and "reference_logprobs" not in data.train[0]:
            raise ConfigError(
                "objective.reference is empty, and these data have no reference_logprobs: give the path of a run, a "
                "published folder or a hub id, or compute them once (python -m fmjax.commands.reference)"
            )

    def __call__(self, apply_fn, params, batch: dict, key, train: bool, *, models) -> dict:
        """Sums as of `Preference`."""
        policy = self._policy(apply_fn, params, batch, key, train)
        return self._sums(policy, self.referred(policy, batch, models), batch)

    def referred(self, policy: Answers, batch, models) -> Answers:
        """What the reference says of the answers."""
        if not self.reference:
            return Answers(batch["reference_logprobs"], policy.lengths)
        features = lambda **given: models["reference"].apply(**given, method="features")
        return answers(features, batch, self.chunk_size)
