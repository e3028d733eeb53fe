"""What is trained when a model is adapted to labels: heads on features, and their losses."""

import dataclasses
import inspect

import flax.linen as nn
import jax.numpy as jnp

from fmjax.layers.checks import check_choice
from fmjax.layers.dense import Init, Linear
from fmjax.objectives.classification import Classification


@dataclasses.dataclass(frozen=True)
class ProbeLoss(Classification):
    """Cross-entropy, to which half the squared kernel times `l2` is added."""

    input_name: str = "features"
    l2: float = 0.0

    def __call__(self, apply_fn, params, batch, key, train):
        sums = super().__call__(apply_fn, params, batch, key, train)
        penalty = 0.5 * self.l2 * jnp.sum(jnp.square(params["head"]["kernel"]))
        return sums | {"loss": (sums["loss"], (penalty, jnp.ones(())))}


@dataclasses.dataclass(frozen=True)
class LabelLoss(Classification):
    """Cross-entropy of a label a text, a token or another value.

    Attributes:
      input_names: the arrays that the backbone takes.
    """

    input_names: tuple[str, ...] = ("tokens", "segment_ids")

    def inputs(self, batch):
        return {name: batch[name] for name in self.input_names}


class Probe(nn.Module):
    """Logits of `num_classes`, linear in features."""

    num_classes: int

    def setup(self):
        self.head = Linear(self.num_classes, ("embed", None), True, Init(scale=0.0))

    def __call__(self, features, train=False):
        return self.head(features)


class Classifier(nn.Module):
    """Logits of `num_classes`, linear in what a method of the backbone gives.

    Attributes:
      backbone: a module with that method.
      method: "hidden", the last layer's output [B, T, D], or one that gives a vector a value, [B, D].
      pooling: of "hidden": "mean" over a row's tokens or patches, its "last" token, or "none": logits at every token.
    """

    backbone: nn.Module
    num_classes: int
    pooling: str = "none"
    method: str = "hidden"

    def setup(self):
        check_choice("pooling", self.pooling, ("mean", "last", "none"))
        self.head = Linear(self.num_classes, ("embed", None), True, Init(scale=0.0))

    @nn.nowrap
    def example(self):
        return self.backbone.example()

    def __call__(self, train: bool = False, **inputs):
        """Float32 [B, num_classes], or [B, T, num_classes], of the backbone's inputs by name."""
        method = getattr(self.backbone, self.method)
        told = {"train": train} if "train" in inspect.signature(method).parameters else {}
        found = method(**inputs, **told).astype(jnp.float32)
        if self.pooling == "none":
            return self.head(found)
        segment_ids = inputs.get("segment_ids", jnp.ones(found.shape[:2], jnp.int32))
        lengths = jnp.maximum(segment_ids.sum(axis=1), 1)
        if self.pooling == "mean":
            found = jnp.einsum("btd,bt->bd", found, segment_ids / lengths[:, None])
        else:
            found = jnp.take_along_axis(found, (lengths - 1)[:, None, None], axis=1)[:, 0]
        return self.head(found)
