"""Heads that draft tokens ahead, trained on a decoder that stays as it is (Medusa-1, Cai et al. 2024,
https://arxiv.org/abs/2401.10774, section 2.2.1)."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from fmjax.errors import ConfigError
from fmjax.objectives.base import need_features
from fmjax.objectives.causal_lm import INPUTS
from fmjax.objectives.cross_entropy import check_chunk_size, cross_entropy


@dataclasses.dataclass(frozen=True)
class Medusa:
    """The sum over heads i = 1, 2, ... of decay^i times the cross-entropy of the token i + 1 places on, a mean over
    positions (equation 1 of the paper).

    Attributes:
      base: the decoder, a run, a published folder or a hub id. It is neither trained nor saved with the run.
      decay: of a head's weight, from one to the next.
      chunk_size: as of the objective `causal_lm`.
    """

    CUT_ALIKE: ClassVar[tuple[str, ...]] = ("base",)
    RESUME_FREE: ClassVar[tuple[str, ...]] = ("chunk_size",)
    ROWS_APART: ClassVar[bool] = True

    base: str = ""
    decay: float = 0.8
    chunk_size: int | None = None

    def __post_init__(self):
        check_chunk_size(self.chunk_size)
        if not self.decay > 0:
            raise ConfigError(f"objective.decay = {self.decay} must be positive")
        if not self.base:
            raise ConfigError("objective.base is empty: give the path of a run, a published folder or a hub id")

    def models(self) -> dict[str, str]:
        """See `fmjax.objectives.base`."""
        return {"base": self.base}

    def check_models(self, module, models) -> None:
        """Raises ConfigError where the base gives no logits for texts, or other vectors than the heads read."""
        base = models["base"].module
        need_features(self, base)
        size = getattr(base, "hidden_size", None)
        if not hasattr(module, "drafted") or module.hidden_size != size:
            raise ConfigError(
                f"objective.base = {self.base!r} has a last layer of {size} numbers: set model.name = 'draft_heads' "
                f"and model.hidden_size = {size}"
            )

    def inputs(self, batch: dict) -> dict:
        """What the heads are called with, by keyword; what the base makes of a batch comes beside it."""
        return {"tokens": batch["tokens"]}

    def __call__(self, apply_fn, params, batch: dict, key, train: bool, *, models) -> dict:
        """Sums over the batch: "loss"; when not training also "accuracy_i" of the likeliest token of head i.

        Args:
          apply_fn: `module.apply` of heads.
          params: their parameters.
          batch: tokens, targets int32 [B, T], loss_weights float32 [B, T], and optionally segment_ids, positions.
          key: unused.
          models: {"base": the decoder}.
        """
        inputs = {name: batch[name] for name in INPUTS if name in batch}
        hidden, head = models["base"].apply(**inputs, method="features")
        drafted = apply_fn({"params": params}, batch["tokens"], hidden)
        targets, weights = further(batch, drafted.shape[2])
        decays = self.decay ** jnp.arange(1, drafted.shape[2] + 1, dtype=jnp.float32)
        total = batch["loss_weights"].sum()
        if train:
            # Heads as further rows, of which a device has all.
            rows = lambda x: x.reshape(-1, *x.shape[2:])
            told = rows(targets), rows(weights * decays[None, :, None])
            sums = cross_entropy(rows(drafted.swapaxes(1, 2)), head, *told, chunk_size=self.chunk_size)
            return {"loss": (sums["loss"], total)}
        found, loss = {}, 0.0
        for place, decay in enumerate(decays):
            told = drafted[:, :, place], head, targets[:, place], weights[:, place]
            sums = cross_entropy(*told, chunk_size=self.chunk_size, count_correct=True)
            found[f"accuracy_{place + 1}"] = sums["correct"], weights[:, place].sum()
            loss += decay * sums["loss"]
        return {"loss": (loss, total), **found}


def further(batch: dict, heads: int) -> tuple[jax.Array, jax.Array]:
    """(targets int32, weights float32 [B, H, T]) of tokens 2, 3, ..., H + 1 places on, within their document."""
    targets, weights = batch["targets"], batch["loss_weights"]
    segments = batch.get("segment_ids")
    shifted = lambda x, by: jnp.pad(x[:, by:], ((0, 0), (0, by)))
    found = []
    for by in range(1, heads + 1):
        own = shifted(weights, by)
        if segments is not None:
            own = own * (shifted(segments, by) == segments)
        found.append((shifted(targets, by), own))
    return tuple(jnp.stack(each, axis=1) for each in zip(*found))
