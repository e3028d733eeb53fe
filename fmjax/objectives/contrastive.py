"""Contrast of images and texts: which of a batch belong together (Radford et al. 2021; Zhai et al. 2023; Yang et al.
2022)."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from fmjax.errors import ConfigError
from fmjax.layers.checks import check_choice, check_positive
from fmjax.models.dual_encoder import other_padding
from fmjax.parallel.logical import constrain

LOSSES = ("softmax", "sigmoid")
MAX_SCALES = {"softmax": 100.0, "sigmoid": math.inf}
POSITIVES = ("own", "labels")


@dataclasses.dataclass(frozen=True)
class Contrastive:
    """The loss of a model of images and texts (`fmjax.models.dual_encoder`) over all pairs of a batch.

    With logits l_ij = scale * image_i . text_j + bias and the positives P(i) of i, of n pairs:
      softmax: the mean over i of 1/2 (a_i + b_i), where a_i is the mean over k in P(i) of
        -log(exp l_ik / sum_j exp l_ij), and b_i the same of the transposed logits. With one positive that is CLIP's
        (figure 3), with several UniCL's, halved as CLIP's.
      sigmoid: 1/n times the sum over all i and j of -log sigmoid(z_ij l_ij), where z_ij is 1 for positives and -1
        else: SigLIP's (section 3.2).

    The batch is the global one, however it is split over the mesh: loss and gradients are those of one device. Of
    `train.accumulate_steps` parts each contrasts its own rows alone, which is another loss: a run must be resumed with
    as many. Rows whose loss_weights are 0 are nobody's negatives.

    Attributes:
      loss: "softmax" or "sigmoid".
      positives: of an image and a text: "own", those of its own row; "labels", those of all rows that have the same
        `labels`, where -1 is a label that no other row has.
      chunk_size: texts whose logits with all images are there at once, in forward and backward pass; None is all of the
        batch. The same numbers, with bounded memory, for one more computation of the logits.
      max_scale: what the scale is kept at, at most, by a bound on the parameter after each update, so that its gradient
        can always take it back; inf is without bound. None goes by the loss: 100 of softmax, as in CLIP, none of
        sigmoid, as in SigLIP.
    """

    loss: str = "softmax"
    positives: str = "own"
    chunk_size: int | None = None
    max_scale: float | None = None

    def __post_init__(self):
        check_choice("objective.loss", self.loss, LOSSES)
        check_choice("objective.positives", self.positives, POSITIVES)
        if self.chunk_size is not None:
            check_positive(**{"objective.chunk_size": self.chunk_size})
        if self.max_scale is not None and not self.max_scale > 0:
            raise ConfigError(f"objective.max_scale = {self.max_scale} must be above 0, or None; inf is without bound")

    def check(self, module, data) -> None:
        """Raises ConfigError where the module is none of pairs, or the rows are no pairs."""
        name = type(module).__name__
        if not (hasattr(module, "encode_images") and hasattr(module, "encode_texts")):
            raise ConfigError(f"objective contrastive needs a model of images and texts, such as 'clip', not {name}")
        if self.loss == "softmax" and getattr(module, "initial_bias", None) is not None:
            raise ConfigError(
                f"objective.loss = 'softmax' does not see a bias, which {name} would learn; take model.name = 'clip', "
                "or objective.loss = 'sigmoid'"
            )
        row = data.train[0]
        needed = ("images", "tokens", "segment_ids", *["labels"] * (self.positives == "labels"))
        missing = [name for name in needed if name not in row]
        if missing:
            raise ConfigError(f"objective contrastive reads {missing[0]!r}, which these rows lack: {', '.join(row)}")
        if (wrong := other_padding(module, data.tokenizer)) is not None:
            raise ConfigError(wrong)

    def inputs(self, batch) -> dict:
        """What the module is called with."""
        more = {name: batch[name] for name in ("image_ids", "image_grids") if name in batch}  # of a NaFlex
        return {name: batch[name] for name in ("images", "tokens", "segment_ids")} | more

    def bounded(self, params):
        """The parameters with the scale within its bound, where it is a parameter."""
        most = MAX_SCALES[self.loss] if self.max_scale is None else self.max_scale
        if most == math.inf or "log_scale" not in params:
            return params
        return {**params, "log_scale": jnp.minimum(params["log_scale"], math.log(most))}

    def __call__(self, apply_fn, params, batch, key, train: bool) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Sums over the batch, each with its weight: "loss" in nats; "image_to_text" and "text_to_image", for how many
        images a text of their own meaning fits better than all others, and the reverse; and "scale".

        Their own meaning: the same `labels`, where the rows have any, whatever `positives` says.
        """
        out = apply_fn({"params": params}, **self.inputs(batch), train=train, rngs={"dropout": key})
        weights, labels = batch["loss_weights"], batch.get("labels")
        found = contrast(
            **out, weights=weights, labels=labels, loss=self.loss, several=self.positives == "labels",
            chunk_size=self.chunk_size,
        )  # fmt: skip
        sums = {name: ((value * weights).sum(), weights.sum()) for name, value in found.items()}
        return sums | {"scale": (out["scale"], jnp.ones(()))}


def contrast(
    image: jax.Array, text: jax.Array, scale: jax.Array, bias: jax.Array, *, weights: jax.Array,
    labels: jax.Array | None = None, loss: str = "softmax", several: bool = False, chunk_size: int | None = None,
) -> dict[str, jax.Array]:  # fmt: skip
    """The row-wise losses of `Contrastive`, and which rows find their own meaning.

    Args:
      image, text: float32 [B, E], of length 1.
      scale, bias: float32 [].
      weights: float32 [B]; rows of 0 are no negatives.
      labels: int32 [B], -1 for one that no other row has; None: no two rows mean the same.
      loss, chunk_size: as in `Contrastive`. several: whether rows of one label are positives of one another.

    Returns: "loss" float32 [B], "image_to_text" and "text_to_image" bool [B].
    Raises ConfigError where chunks do not divide the batch.
    """
    count = len(image)
    labels = jnp.full(count, -1) if labels is None else labels
    rows = {"place": jnp.arange(count), "is_there": weights > 0, "label": labels}
    both = lambda columns: _both_ways(image, rows, columns, scale, bias, loss, several)
    columns = {"vector": text, **rows}
    if chunk_size is None or chunk_size >= count:
        parts = jax.tree.map(lambda x: x[None], both(columns))
    else:
        if count % chunk_size:
            raise ConfigError(f"objective.chunk_size = {chunk_size} does not divide the batch's {count} rows")
        # Every device reads all texts, chunk by chunk; the images stay where they are.
        columns = {name: constrain(x, (None,) * x.ndim) for name, x in columns.items()}
        chunks = {name: x.reshape(-1, chunk_size, *x.shape[1:]) for name, x in columns.items()}
        parts = jax.lax.map(jax.checkpoint(both, prevent_cse=False), chunks)
    of_images, of_texts = parts
    of_texts = {name: x.reshape(count) for name, x in of_texts.items()}
    one = {name: _JOINED[name](x, axis=0) for name, x in of_images.items()}
    losses = 0.5 * (_losses(one, loss) + _losses(of_texts, loss))
    return {
        "loss": losses,
        "image_to_text": one["best_positive"] > one["best_other"],
        "text_to_image": of_texts["best_positive"] > of_texts["best_other"],
    }


LEAST = -1e30
"""The logit of what is not there: finite, so that a row of nothing has no gradient instead of none that is finite."""
_JOINED = {
    "normaliser": jax.nn.logsumexp, "positives": jnp.sum, "count": jnp.sum, "losses": jnp.sum, "best_other": jnp.max,
    "best_positive": jnp.max,
}  # fmt: skip
"""How what chunks of texts say of one image is joined."""


def _both_ways(image, rows, columns, scale, bias, loss, several):
    """What all images say of some texts: for each image, and for each text, a dict of arrays [B] and [C]."""
    logits = constrain(scale * image @ columns["vector"].T + bias, ("batch", None))
    own = rows["place"][:, None] == columns["place"]
    alike = own | ((rows["label"][:, None] == columns["label"]) & (rows["label"][:, None] >= 0))
    positive = alike if several else own
    of = lambda logits, positive, alike, is_there: _one_way(logits, positive, alike, is_there, loss)
    return (
        of(logits, positive, alike, columns["is_there"]),
        of(logits.T, positive.T, alike.T, rows["is_there"]),
    )


def _one_way(logits, positive, alike, is_there, loss) -> dict[str, jax.Array]:
    """Of logits [M, N] the statistics of each of M over those of N that are there."""
    fixed = jax.lax.stop_gradient(jnp.where(is_there, logits, LEAST))
    others = jnp.where(alike, LEAST, fixed)
    found = {"best_other": others.max(1), "best_positive": jnp.where(alike, fixed, LEAST).max(1)}
    if loss == "sigmoid":
        losses = jax.nn.softplus(jnp.where(positive, -logits, logits))
        return found | {"losses": jnp.where(is_there, losses, 0.0).sum(1)}
    positive = positive & is_there
    return found | {
        "normaliser": jax.nn.logsumexp(jnp.where(is_there, logits, LEAST), axis=1),
        "positives": jnp.where(positive, logits, 0.0).sum(1),
        "count": positive.sum(1),
    }


def _losses(one, loss) -> jax.Array:
    if loss == "sigmoid":
        return one["losses"]
    return one["normaliser"] - one["positives"] / jnp.maximum(one["count"], 1)
