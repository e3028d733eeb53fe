"""Sequence to sequence: prediction of the target's next token from the source and the target so far."""

import dataclasses
from typing import ClassVar

import jax

from fmjax.layers.checks import check_rate
from fmjax.objectives.base import need_features
from fmjax.objectives.cross_entropy import check_chunk_size, target_sums

INPUTS = ("tokens", "source_tokens", "segment_ids", "source_segment_ids", "positions", "source_positions")


@dataclasses.dataclass(frozen=True)
class Seq2Seq:
    """Mean cross-entropy of the targets, over positions weighted by `loss_weights`.

    Attributes:
      label_smoothing: share of a target's probability that is spread evenly over the vocabulary in training
        (Vaswani et al. 2017, section 5.4).
      chunk_size: positions of each row whose logits exist at the same time; none: by the platform.
    """

    RESUME_FREE: ClassVar[tuple[str, ...]] = ("chunk_size",)
    ROWS_APART: ClassVar[bool] = True

    label_smoothing: float = 0.1
    chunk_size: int | None = None

    def __post_init__(self):
        check_chunk_size(self.chunk_size)
        check_rate("label_smoothing", self.label_smoothing)

    def inputs(self, batch: dict) -> dict:
        """The arrays of `batch` that the module takes, by keyword."""
        return {name: batch[name] for name in INPUTS if name in batch}

    def __call__(self, apply_fn, params, batch: dict, key, train: bool) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Sums over the batch.

        Args:
          apply_fn: `module.apply` of an encoder-decoder.
          params: its parameters.
          batch: tokens (the decoder's inputs), targets int32 [B, T], loss_weights float32 [B, T], source_tokens int32
            [B, S]; optionally segment_ids, positions int32 [B, T] and source_segment_ids, source_positions [B, S].
          key: for dropout; may be None when not training.
          train: whether dropout and label smoothing are on.

        Returns: name to (sum, weight), float32 scalars: "loss"; when training with label smoothing, also
        "cross_entropy", the loss without it; when not training, "accuracy" of the likeliest token.
        """
        smoothing = self.label_smoothing if train else 0.0
        parts = ("cross_entropy",) if smoothing else ()
        options = dict(label_smoothing=smoothing, chunk_size=self.chunk_size)
        return target_sums(apply_fn, params, batch, self.inputs(batch), key, train, parts, **options)

    def check(self, module, data) -> None:
        """Raises ConfigError for another kind of model."""
        need_features(self, module)
