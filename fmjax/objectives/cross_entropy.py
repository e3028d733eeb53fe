"""Cross-entropy over a large vocabulary without the [B, T, V] array of logits.

A chunk of positions at a time: logits, their log-sum-exp, and, when a gradient will be wanted, the gradients with
respect to hidden states and head at once, while the logits are at hand. That takes three products with the head in
all, where recomputing the logits in the backward pass would take four.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fmjax.layers.dense import weight_gradient
from fmjax.layers.embed import output_logits


def cross_entropy(
    hidden,
    head,
    targets,
    weights,
    *,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    chunk_size: int = 128,
    count_correct: bool = False,
):
    """Weighted sums of the cross-entropy of softmax(output_logits(hidden, head)) with `targets`.

    Args:
      hidden: [B, T, D] in the compute dtype.
      head: output weights as for `output_logits`.
      targets: int32 [B, T].
      weights: float32 [B, T]; no gradient flows to them.
      z_loss: adds z_loss * log(Z)**2 per position, Z the softmax's denominator (Chowdhery et al. 2022, section 5).
      label_smoothing: share of the target's probability that is spread evenly over all V classes, the target among
        them (Szegedy et al. 2016, section 7; `label_smoothing` of PyTorch's CrossEntropyLoss).
      chunk_size: positions of each row that are processed at once.
      count_correct: whether to compare the largest logit with the target's.

    Returns: dict of float32 scalars, sums over positions times weights: "loss" (with z-loss and smoothing; the only
    one through which gradients flow), "cross_entropy" (without them), "z_loss", and "correct" if asked for.
    """
    options = _Options(z_loss, label_smoothing, min(chunk_size, hidden.shape[1]), count_correct)
    return _cross_entropy(hidden, head, targets, weights, options)


class _Options(NamedTuple):
    z_loss: float
    label_smoothing: float
    chunk_size: int
    count_correct: bool


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _cross_entropy(hidden, head, targets, weights, options):
    return _over_chunks(hidden, head, targets, weights, options, gradients=False)[0]


def _forward(hidden, head, targets, weights, options):
    sums, d_hidden, d_head = _over_chunks(hidden, head, targets, weights, options, gradients=True)
    return sums, (d_hidden, d_head)


def _backward(options, saved, cotangents):
    d_hidden, d_head = jax.tree.map(lambda x: (x * cotangents["loss"]).astype(x.dtype), saved)
    return d_hidden, d_head, None, None


_cross_entropy.defvjp(_forward, _backward)


def _over_chunks(hidden, head, targets, weights, options, gradients):
    """(sums, gradient of "loss" to hidden, gradient to head); the gradients are None unless asked for."""
    length, chunk_size = hidden.shape[1], options.chunk_size
    tied = "embedding" in head
    vocab_size = head["embedding"].shape[0] if tied else head["kernel"].shape[1]
    chunk = functools.partial(_chunk, head=head, options=options, gradients=gradients)

    def cut(start, size):
        return (lax.dynamic_slice_in_dim(x, start, size, axis=1) for x in (hidden, targets, weights))

    def body(carry, start):
        sums, d_hidden, d_head = carry
        new_sums, new_d_hidden, new_d_head = chunk(*cut(start, chunk_size))
        sums = jax.tree.map(jnp.add, sums, new_sums)
        if gradients:
            d_hidden = lax.dynamic_update_slice_in_dim(d_hidden, new_d_hidden, start, axis=1)
            d_head = jax.tree.map(jnp.add, d_head, new_d_head)
        return (sums, d_hidden, d_head), None

    whole = length // chunk_size
    names = ["loss", "cross_entropy", "z_loss"] + ["correct"] * options.count_correct
    carry = ({name: jnp.zeros((), jnp.float32) for name in names}, None, None)
    if gradients:
        d_head = {"weight": jnp.zeros((hidden.shape[-1], vocab_size), jnp.float32)}
        if "bias" in head:
            d_head["bias"] = jnp.zeros((vocab_size,), jnp.float32)
        carry = (carry[0], jnp.zeros_like(hidden), d_head)
    carry, _ = lax.scan(body, carry, jnp.arange(whole) * chunk_size)
    if whole * chunk_size < length:
        chunk_size, start = length - whole * chunk_size, whole * chunk_size
        carry, _ = body(carry, start)
    sums, d_hidden, d_head = carry
    if gradients:
        # Summed as [D, V] and turned once: see `weight_gradient`.
        weight = d_head.pop("weight")
        d_head["embedding" if tied else "kernel"] = lax.optimization_barrier(weight).T if tied else weight
        d_head = {name: d_head[name].astype(value.dtype) for name, value in head.items()}
    return sums, d_hidden, d_head


def _chunk(hidden, targets, weights, *, head, options, gradients):
    """Sums and gradients of one chunk [B, C, D]."""
    z_loss, smoothing = options.z_loss, options.label_smoothing
    logits = output_logits(hidden, head)
    # A comparison with an iota, rather than a gather, keeps a sharded vocabulary where it is.
    is_target = targets[..., None] == lax.broadcasted_iota(jnp.int32, logits.shape, 2)
    top = jnp.max(logits, axis=-1, keepdims=True)
    exponentials = jnp.exp(logits - top)
    total = jnp.sum(exponentials, axis=-1, keepdims=True)
    log_z = (jnp.log(total) + top)[..., 0]
    target_logit = jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
    entropy = jnp.sum((log_z - target_logit) * weights)
    z = z_loss * jnp.sum(log_z * log_z * weights)
    loss = entropy + z
    if smoothing:
        # The distribution aimed at is (1 - smoothing) one_hot + smoothing / V.
        loss += smoothing * jnp.sum((target_logit - jnp.mean(logits, axis=-1)) * weights)
    sums = {"loss": loss, "cross_entropy": entropy, "z_loss": z}
    if options.count_correct:
        sums["correct"] = jnp.sum((target_logit >= top[..., 0]) * weights)
    if not gradients:
        return sums, None, None
    # d loss / d logits = weight * ((1 + 2 z_loss log Z) softmax - (1 - smoothing) one_hot - smoothing / V)
    factor = weights * (1.0 + 2.0 * z_loss * log_z)
    off_target = weights[..., None] * (smoothing / logits.shape[-1]) if smoothing else 0.0
    on_target = weights[..., None] * (1.0 - smoothing) + off_target
    d_logits = exponentials * (factor[..., None] / total) - jnp.where(is_target, on_target, off_target)
    d_bias = {"bias": jnp.sum(d_logits, axis=(0, 1))} if "bias" in head else {}
    d_logits = d_logits.astype(hidden.dtype)
    tied = "embedding" in head
    weight = head["embedding" if tied else "kernel"].astype(hidden.dtype)
    d_hidden = lax.dot_general(d_logits, weight, (((2,), (0 if tied else 1,)), ((), ())))
    d_weight = weight_gradient(hidden, d_logits, False, jnp.float32)
    return sums, d_hidden.astype(hidden.dtype), {"weight": d_weight} | d_bias
