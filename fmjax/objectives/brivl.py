"""BriVL's contrast (Huo et al. 2021; Fei et al. 2022): an image's text, and a text's image, among a queue of others."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from fmjax.errors import ConfigError
from fmjax.layers.checks import check_positive, check_rate
from fmjax.objectives.base import Proposal
from fmjax.objectives.momentum_queue import NO_LABEL, advance, contrast, no_labels, random_keys, start


@dataclasses.dataclass(frozen=True)
class BriVL:
    """The sum of two cross-entropies: of an image, its text's key among those of a queue of texts, and of a text, its
    image's among those of a queue of images.

    Keys are made by towers that are moving averages of those that train, without dropout. Carried are these, and the
    two queues, of the newest `queue_size` pairs: whole batches, the oldest replaced by the next one. Pairs of a label
    mean the same, and what means the same is no negative: so the queue keeps labels too.

    The module is one of images and texts in one space, `fmjax.models.dual_encoder`; cosines are multiplied by its
    scale. BriVL's own is 1 / .07.

    Attributes:
      queue_size: pairs; a multiple of train.batch_size. Towers that start from nothing want few batches: what they make
        of all images is so alike that the keys of a long queue are told by their age, and the loss falls below that of
        chance, 2 ln(1 + queue_size), while nothing is learnt (experiments/shape_pairs).
      momentum: of the towers of keys.
      mask_same_label: whether keys of a query's own label are left out of its negatives. `labels` of -1 are like none.
        Data without labels need False.
    """

    ROWS_APART: ClassVar[bool] = True

    queue_size: int = 9600
    momentum: float = 0.99
    mask_same_label: bool = True

    def __post_init__(self):
        check_positive(queue_size=self.queue_size)
        check_rate("objective.momentum", self.momentum)

    def inputs(self, batch) -> dict:
        """What the module is called with."""
        return {name: batch[name] for name in ("images", "tokens", "segment_ids")}

    def check(self, module, data) -> None:
        """Raises ConfigError for a module of other things than pairs."""
        if not all(hasattr(module, name) for name in ("encode_images", "encode_texts")):
            raise ConfigError(
                f"objective brivl needs encode_images(images) and encode_texts(tokens, segment_ids), which "
                f"{type(module).__name__} does not have; take model.name = 'brivl', or another of images and texts"
            )

    def initial(self, module, params, key) -> dict:
        """{"encoder": the parameters, "queue": {"image" [K, E], "text" [K, E], "labels" int32 [K]}, "place": int32 []},
        the queues full of random keys."""
        example = {name: jnp.zeros(like.shape, like.dtype) for name, like in module.example().items()}
        like = jax.eval_shape(lambda p: module.apply({"params": p}, **example), params)
        keys = zip(("image", "text"), jax.random.split(key))
        queue = {name: random_keys(k, self.queue_size, like[name].shape[-1]) for name, k in keys}
        return start(params, queue | ({"labels": no_labels(self.queue_size)} if self.mask_same_label else {}))

    def __call__(self, apply_fn, params, batch, key, train: bool, *, carry):
        """Sums over the batch: "loss" in nats, and "image_to_text" and "text_to_image", whether no key of the queue is
        nearer than its own; each with the total of `loss_weights` [B]."""
        inputs, weights = self.inputs(batch), batch["loss_weights"]
        rows = apply_fn({"params": params}, **inputs, train=train, rngs={"dropout": key})
        keys = jax.lax.stop_gradient(apply_fn({"params": carry["encoder"]}, **inputs))
        made, left_out = {name: keys[name] for name in ("image", "text")}, None
        if self.mask_same_label:
            made["labels"] = batch["labels"]
            left_out = _same(batch["labels"], carry["queue"])
        losses, metrics = 0.0, {}
        for one, other in (("image", "text"), ("text", "image")):
            found, correct = contrast(rows[one], keys[other], carry["queue"][other], rows["scale"], left_out)
            losses, metrics[f"{one}_to_{other}"] = losses + found, correct
        metrics = {"loss": losses, **metrics}
        return {name: ((value * weights).sum(), weights.sum()) for name, value in metrics.items()}, Proposal(rows=made)

    def after(self, carry, proposal, params) -> dict:
        """See `fmjax.objectives.momentum_queue.advance`."""
        return advance(carry, proposal, params, self.momentum)


def _same(labels: jax.Array, queue: Mapping[str, jax.Array]) -> jax.Array:
    """bool [B, K]: which of the queue mean what a row does."""
    return (labels[:, None] == queue["labels"]) & (labels[:, None] != NO_LABEL)
