"""Masked-token prediction, with next-sentence prediction where the data ask for it (Devlin et al. 2019)."""

import dataclasses
import logging
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax

from fmjax.errors import ConfigError
from fmjax.objectives.base import need_features
from fmjax.objectives.cross_entropy import check_chunk_size, cross_entropy

log = logging.getLogger("fmjax")

INPUTS = ("tokens", "segment_ids", "positions", "token_types")


@dataclasses.dataclass(frozen=True)
class MaskedLM:
    """Mean negative log-likelihood of the masked tokens, plus that of the next-sentence labels of the rows.

    Attributes:
      chunk_size: predicted positions of each row whose logits exist at the same time; none: by the platform.
    """

    RESUME_FREE: ClassVar[tuple[str, ...]] = ("chunk_size",)
    ROWS_APART: ClassVar[bool] = True

    chunk_size: int | None = None

    def __post_init__(self):
        check_chunk_size(self.chunk_size)

    def inputs(self, batch: dict) -> dict:
        """The arrays of `batch` that the module takes, by keyword."""
        return {name: batch[name] for name in INPUTS if name in batch}

    def __call__(self, apply_fn, params, batch: dict, key, train: bool) -> dict:
        """Sums over the batch.

        Args:
          apply_fn: `module.apply` of an encoder with a masked-language-model head.
          params: its parameters.
          batch: tokens, targets int32 [B, T], loss_weights float32 [B, T]; optionally segment_ids, positions,
            token_types int32 [B, T]; masked_positions int32 [B, P], which hold all positions with a weight, each
            once (further entries point to a weight of 0): logits are then computed for those alone;
            next_sentence_labels int32 [B], counted in rows with any weight.
          key: for dropout; may be None when not training.
          train: whether dropout is on.

        Returns: name to (sum, weight), float32 scalars: "loss" and, when not training, "accuracy" of the likeliest
        token. With next_sentence_labels "loss" has two terms, a tuple of such pairs: the means of both over the
        global batch are added. They are "masked_lm_loss" and "next_sentence_loss" alone, and when not training there
        is "next_sentence_accuracy".
        """
        rngs = {"dropout": key} if train and key is not None else None
        has_labels = "next_sentence_labels" in batch
        method = "pretraining" if has_labels else "features"
        hidden, head, *rest = apply_fn({"params": params}, **self.inputs(batch), train=train, rngs=rngs, method=method)
        hidden, targets, weights = predicted(batch, hidden, batch["targets"], batch["loss_weights"])
        sums = cross_entropy(hidden, head, targets, weights, chunk_size=self.chunk_size, count_correct=not train)
        masked_lm = (sums["loss"], weights.sum())
        named = {"loss": masked_lm}
        if not train:
            named["accuracy"] = (sums["correct"], weights.sum())
        if has_labels:
            rows = (batch["loss_weights"].max(axis=1) > 0).astype(jnp.float32)
            named |= next_sentence_sums(*rest, batch["next_sentence_labels"], rows, count_correct=not train)
            named |= {"loss": (masked_lm, named["next_sentence_loss"]), "masked_lm_loss": masked_lm}
        return named

    def check(self, module, data) -> None:
        """Raises ConfigError for another kind of model, or next-sentence labels without a head for them."""
        need_features(self, module)
        has_head = hasattr(module, "pretraining") and getattr(module, "next_sentence", True)
        has_labels = "next_sentence_labels" in data.train[0]
        if has_labels and not has_head:
            raise ConfigError(
                f"data.next_sentence is on, but the model {type(module).__name__} has no next-sentence head; "
                "set model.next_sentence = True where it has that field, or data.next_sentence = False"
            )
        if has_head and not has_labels:
            log.warning("The next-sentence head of the model stays as it is: data.next_sentence is not on.")


def predicted(batch, *arrays) -> list[jax.Array]:
    """Arrays [B, T, ...] at the places of a batch that are predicted: [B, P, ...] where it says which
    (`masked_positions`), and else as they are."""
    if "masked_positions" not in batch:
        return list(arrays)
    places = batch["masked_positions"]
    at = lambda x: jnp.take_along_axis(x, places.reshape(*places.shape, *[1] * (x.ndim - 2)), axis=1)
    return [at(x) for x in arrays]


def next_sentence_sums(logits, labels, weights, count_correct: bool) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Cross-entropy of logits [B, 2] with labels int32 [B], rows weighted: "next_sentence_loss", and, if asked for,
    "next_sentence_accuracy"."""
    total = weights.sum()
    losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)
    named = {"next_sentence_loss": (jnp.sum(losses * weights), total)}
    if count_correct:
        correct = jnp.argmax(logits, axis=-1) == labels
        named["next_sentence_accuracy"] = (jnp.sum(correct * weights), total)
    return named
