"""Next-token prediction."""

import dataclasses
from typing import ClassVar

import jax

from fmjax.errors import ConfigError
from fmjax.objectives.cross_entropy import check_chunk_size, target_sums
from fmjax.objectives.text_samples import TextSamples

INPUTS = ("tokens", "segment_ids", "positions")


@dataclasses.dataclass(frozen=True)
class CausalLM(TextSamples):
    """Mean negative log-likelihood of the targets, over positions weighted by `loss_weights`.

    Attributes:
      z_loss: coefficient of the squared log-partition function, added to the training loss only; 0 for none.
      chunk_size: positions of each row whose logits exist at the same time; none: by the platform.
    """

    RESUME_FREE: ClassVar[tuple[str, ...]] = ("chunk_size", *TextSamples.RESUME_FREE)
    ROWS_APART: ClassVar[bool] = True

    z_loss: float = 0.0
    chunk_size: int | None = None

    def __post_init__(self):
        super().__post_init__()
        check_chunk_size(self.chunk_size)
        if self.z_loss < 0:
            raise ConfigError(f"z_loss={self.z_loss!r}: expected a number of at least 0.")

    def inputs(self, batch: dict) -> dict:
        """The arrays of `batch` that the module takes, by keyword."""
        return {name: batch[name] for name in INPUTS if name in batch}

    def __call__(self, apply_fn, params, batch: dict, key, train: bool) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Sums over the batch.

        Args:
          apply_fn: `module.apply` of a decoder.
          params: its parameters.
          batch: tokens, targets int32 [B, T], loss_weights float32 [B, T], and optionally segment_ids, positions.
          key: for dropout; may be None when not training.
          train: whether dropout and z-loss are on.

        Returns: name to (sum, weight), float32 scalars: "loss"; when training with a z-loss, also "cross_entropy" and
        "z_loss" (its two parts); when not training, "accuracy" of the likeliest token.
        """
        parts = ("cross_entropy", "z_loss") if train and self.z_loss else ()
        options = dict(z_loss=self.z_loss if train else 0.0, chunk_size=self.chunk_size)
        return target_sums(apply_fn, params, batch, self.inputs(batch), key, train, parts, **options)
