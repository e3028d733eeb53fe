"""MoCo (He et al. 2020; v2, Chen et al. 2020): an image's view is to be told from a queue of other images' keys."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from fmjax.errors import ConfigError
from fmjax.layers.checks import check_positive, check_rate
from fmjax.objectives.base import Proposal, per_row
from fmjax.objectives.momentum_queue import NO_LABEL, advance, contrast, no_labels, random_keys, start, unit
from fmjax.objectives.views import Views


@dataclasses.dataclass(frozen=True)
class MoCo(Views):
    """Cross-entropy of a query's own key among those of the queue.

    Query and key are made of two views of an image, the key by an encoder that is a moving average of the one that
    trains. Carried are that encoder and the queue: of the newest `queue_size` images, whole batches, the oldest
    replaced by the next one. Beside the keys it keeps what the images' vectors and labels are, with which an
    evaluation, and no gradient, counts how many held-out images have the label of their nearest neighbours.

    The module has `pooled(images)` to [B, F] and `project` of these, such as `fmjax.models.conv_encoder.ConvEncoder`.

    Attributes:
      queue_size: images; a multiple of train.batch_size.
      momentum: of the encoder of keys.
      temperature: similarities, cosines, are divided by it.
      neighbours: that vote for a label.
    """

    ROWS_APART: ClassVar[bool] = True

    queue_size: int = 65536
    momentum: float = 0.999
    temperature: float = 0.2
    neighbours: int = 5

    def __post_init__(self):
        super().__post_init__()
        check_positive(queue_size=self.queue_size, neighbours=self.neighbours)
        check_rate("objective.momentum", self.momentum)
        if not self.temperature > 0:
            raise ConfigError(f"objective.temperature = {self.temperature} must be above 0")
        if self.neighbours > self.queue_size:
            raise ConfigError(
                f"objective.neighbours = {self.neighbours} is more than objective.queue_size = {self.queue_size}"
            )

    def inputs(self, batch) -> dict:
        """What the module is called with."""
        return {"images": batch["images"]}

    def initial(self, module, params, key) -> dict:
        """{"encoder": the parameters, "queue": {"keys" [K, D], "vectors" [K, F], "labels" int32 [K]},
        "place": int32 []}, the queue full of random keys, whose label -1 is none."""
        if not all(hasattr(module, name) for name in ("pooled", "project")):
            raise ConfigError(
                f"objective moco needs pooled(images) and project(vectors), which {type(module).__name__} does not "
                "have; take model.name = 'conv_encoder'"
            )
        encoded = lambda p, images: self._encoded(module.apply, p, images)
        vectors, keys = jax.eval_shape(encoded, params, module.example()["images"])
        return start(params, {
            "keys": random_keys(key, self.queue_size, keys.shape[-1]),
            "vectors": jnp.zeros((self.queue_size, vectors.shape[-1])),
            "labels": no_labels(self.queue_size),
        })  # fmt: skip

    def _encoded(self, apply_fn, params, images) -> tuple[jax.Array, jax.Array]:
        """(vectors of length 1 [B, F], keys or queries of length 1 [B, D])."""
        vectors = apply_fn({"params": params}, images, method="pooled")
        return unit(vectors), unit(apply_fn({"params": params}, vectors, method="project"))

    def __call__(self, apply_fn, params, batch, key, train: bool, *, carry):
        """Sums over the batch: "loss" in nats and "accuracy", whether no key of the queue is nearer than its own, and
        in an evaluation "neighbours", whether the nearest images of the queue vote for the right label; each with the
        total of `loss_weights` [B]."""
        images, labels, weights = batch["images"], batch["labels"], batch["loss_weights"]
        first, second = jnp.moveaxis(per_row(self._pair, batch["keys"], images), 1, 0)
        _, queries = self._encoded(apply_fn, params, first)
        vectors, keys = jax.lax.stop_gradient(self._encoded(apply_fn, carry["encoder"], second))
        losses, correct = contrast(queries, keys, carry["queue"]["keys"], 1.0 / self.temperature)
        metrics = {"loss": losses, "accuracy": correct}
        if not train:
            metrics["neighbours"] = self._vote(self._encoded(apply_fn, params, images)[0], carry["queue"]) == labels
        sums = {name: ((value * weights).sum(), weights.sum()) for name, value in metrics.items()}
        return sums, Proposal(rows={"keys": keys, "vectors": vectors, "labels": labels})

    def _pair(self, key, image) -> jax.Array:
        """Two views of an image, [2, H, W, C]."""
        return jax.vmap(self.view, (0, None))(jax.random.split(key), image)

    def _vote(self, vectors: jax.Array, queue: Mapping[str, jax.Array]) -> jax.Array:
        """int32 [B]: the label that most of the nearest images of the queue have; of equally many the nearest's."""
        nearness = jnp.where(queue["labels"] != NO_LABEL, vectors @ queue["vectors"].T, -jnp.inf)
        _, nearest = jax.lax.top_k(nearness, self.neighbours)
        labels = queue["labels"][nearest]
        votes = (labels[:, :, None] == labels[:, None, :]).sum(-1)
        return jnp.take_along_axis(labels, votes.argmax(-1)[:, None], axis=1)[:, 0]

    def after(self, carry, proposal, params) -> dict:
        """See `fmjax.objectives.momentum_queue.advance`."""
        return advance(carry, proposal, params, self.momentum)
