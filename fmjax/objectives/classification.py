"""Classification: cross-entropy of one label an example, or of a distribution over labels."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fmjax.errors import ConfigError
from fmjax.objectives.base import check_labels


@dataclasses.dataclass(frozen=True)
class Classification:
    """Softmax cross-entropy of `labels` given the module's logits for `input_name`.

    Labels are int32 [B], or soft: float32 [B, num_classes], as mixed images have them.

    Attributes:
      input_name: the batch's array that the module takes, by the same name.
      label_smoothing: share of the target's mass spread evenly over all classes (Szegedy et al. 2016).
    """

    ROWS_APART: ClassVar[bool] = True
    predicts: ClassVar[str] = "label"

    input_name: str = "images"
    label_smoothing: float = 0.0

    def __post_init__(self):
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ConfigError(f"objective.label_smoothing = {self.label_smoothing} must be in [0, 1)")

    def check(self, module, data) -> None:
        """Raises ConfigError where the data have no labels, one class alone, or more classes than the model."""
        row, codec = data.train[0], data.codecs.get("label")
        if getattr(codec, "num_classes", None) == 1:
            raise ConfigError(
                f"all of these data have one class, {codec.decode({codec.array: 0})!r}, so there is nothing to tell "
                "apart; name each example's class: of images in folders, by a subfolder for each class"
            )
        if "labels" not in row:
            raise ConfigError(f"classification learns `labels`, which the rows of these data lack: {', '.join(row)}")
        if np.issubdtype(row["labels"].dtype, np.integer):
            check_labels(module, data)
        elif row["labels"].shape != (module.num_classes,):
            raise ConfigError(
                f"the data's soft labels are of {row['labels'].shape[0]} classes, and model.num_classes = "
                f"{module.num_classes}; leave it out, and the data tell it"
            )

    def inputs(self, batch) -> dict:
        """What the module is called with."""
        if self.input_name not in batch:
            raise ConfigError(f"objective.input_name = {self.input_name!r} is not in the batch: {', '.join(batch)}")
        return {self.input_name: batch[self.input_name]}

    def __call__(self, apply_fn, params, batch, key, train: bool) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Sums over the batch: "loss" in nats and "accuracy", each with the total of `loss_weights` [B]. Right, of soft
        labels, is the likeliest one."""
        logits = apply_fn({"params": params}, **self.inputs(batch), train=train, rngs={"dropout": key})
        labels, weights = batch["labels"], batch["loss_weights"]
        is_soft = jnp.issubdtype(labels.dtype, jnp.floating)  # numbers of classes may be a row's, or a token's
        targets = labels if is_soft else jax.nn.one_hot(labels, logits.shape[-1])
        labels = jnp.argmax(labels, axis=-1) if is_soft else labels
        targets = optax.smooth_labels(targets, self.label_smoothing if train else 0.0)
        losses = optax.softmax_cross_entropy(logits, targets)
        correct = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
        total = weights.sum()
        return {"loss": ((losses * weights).sum(), total), "accuracy": ((correct * weights).sum(), total)}
