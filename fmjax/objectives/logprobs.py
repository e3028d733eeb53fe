"""Log-probabilities of tokens, differentiable: what policies and preferences are trained with."""

import jax
import jax.numpy as jnp

from fmjax.layers.embed import output_logits
from fmjax.objectives.chunks import cut, joined, positions_at_once
from fmjax.parallel.logical import constrain


def token_logprobs(hidden, head, targets, *, temperature: float = 1.0, chunk_size: int | None = None) -> jax.Array:
    """float32 [B, T]: those of `targets` under softmax(output_logits(hidden, head) / temperature).

    A chunk of positions at a time, whose logits are computed again in the backward pass: no [B, T, V] array exists.

    Args:
      hidden: [B, T, D].
      head: output weights as for `output_logits`.
      targets: int32 [B, T].
      chunk_size: positions of each row in a chunk; None goes by the platform.
    """
    size = positions_at_once(*targets.shape, chunk_size)

    def chunk(part):
        states, wanted = part
        logits = output_logits(states, head)
        logits = constrain(logits, ("batch", "length", "act_vocab")) / temperature
        top = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
        log_z = jnp.log(jnp.sum(jnp.exp(logits - top), axis=-1))
        # A comparison with an iota, rather than a gather, which is slow on TPUs and may cross devices.
        is_target = wanted[..., None] == jax.lax.broadcasted_iota(jnp.int32, logits.shape, 2)
        chosen = jnp.sum(jnp.where(is_target, logits - top, 0.0), axis=-1)
        return chosen - log_z

    found = jax.lax.map(jax.checkpoint(chunk), (cut(hidden, size), cut(targets, size)))
    return joined(found, targets.shape[1])
