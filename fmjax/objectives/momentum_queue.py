"""A queue of keys, and the moving average of the parameters that makes them (He et al. 2020), in an objective's carry.

The carry is {"encoder": parameters, "queue": {name: [K, ...]}, "place": int32 []}. The queue holds whole batches; the
next one takes the place of the oldest.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from fmjax.errors import ConfigError
from fmjax.objectives.base import Proposal

NO_LABEL = -1
"""The label of a place that no row of the data has taken yet, and of rows whose label is not known."""


def start(params, queue: dict[str, jax.Array]) -> dict:
    """The carry at the start: a copy of the parameters, and a queue {name: [K, ...]} that is whole on every device."""
    boxed = {name: nn.LogicallyPartitioned(rows, ("queue", *[None] * (rows.ndim - 1))) for name, rows in queue.items()}
    return {"encoder": jax.tree.map(jnp.copy, params), "queue": boxed, "place": jnp.zeros((), jnp.int32)}


def random_keys(key: jax.Array, size: int, width: int) -> jax.Array:
    """Keys of length 1 that nothing made, float32 [size, width]."""
    return unit(jax.random.normal(key, (size, width)))


def no_labels(size: int) -> jax.Array:
    """int32 [size], each `NO_LABEL`."""
    return jnp.full(size, NO_LABEL, jnp.int32)


def advance(carry: dict, proposal: Proposal, params, momentum: float) -> dict:
    """The carry after an update: the encoder of keys moved towards the new parameters, and the proposal's rows
    {name: [B, ...]} in the place of the queue's oldest.

    Raises ConfigError where the queue does not hold whole batches.
    """
    sizes = [jax.tree.leaves(rows)[0].shape[0] for rows in (carry["queue"], proposal.rows)]
    if sizes[0] % sizes[1]:
        raise ConfigError(
            f"objective.queue_size = {sizes[0]} is not a multiple of train.batch_size = {sizes[1]}: the queue holds "
            "whole batches"
        )
    replace = lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, carry["place"], axis=0)
    return {
        "encoder": optax.incremental_update(params, carry["encoder"], 1.0 - momentum),
        "queue": jax.tree.map(replace, carry["queue"], proposal.rows),
        "place": (carry["place"] + sizes[1]) % sizes[0],
    }


def contrast(
    queries: jax.Array, keys: jax.Array, queue: jax.Array, scale: jax.Array | float, left_out: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Of each query its own key, to be told from those of the queue (InfoNCE, van den Oord et al. 2018).

    Args:
      queries, keys: float32 [B, D], of length 1.
      queue: float32 [K, D], of length 1.
      scale: what cosines are multiplied by, 1 / temperature.
      left_out: bool [B, K], which of the queue a query is not compared with; None: it is with all.

    Returns: (losses [B] in nats, whether the own key is the nearest [B]).
    """
    own = (queries * keys).sum(-1, keepdims=True) * scale
    others = queries @ queue.T * scale
    if left_out is not None:
        others = jnp.where(left_out, -jnp.inf, others)
    logits = jnp.concatenate([own, others], axis=1)
    return -jax.nn.log_softmax(logits)[:, 0], logits[:, 0] > logits[:, 1:].max(-1)


def unit(vectors: jax.Array) -> jax.Array:
    """Vectors [..., D] of length 1."""
    return vectors * jax.lax.rsqrt((vectors**2).sum(-1, keepdims=True) + 1e-12)
