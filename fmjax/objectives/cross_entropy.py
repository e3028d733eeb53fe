"""Cross-entropy over a large vocabulary without the [B, T, V] array of logits.

A chunk of positions at a time: logits, their log-sum-exp, and, when a gradient will be wanted, the gradients with
respect to hidden states and head at once, while the logits are at hand. That takes three products with the head in
all, where recomputing the logits in the backward pass would take four.

On a mesh each device goes through its own rows and positions in chunks, for its part of the vocabulary (the logical
axes `batch`, `length` and `act_vocab`). Of a chunk only what a position has one number of is added up over the
vocabulary's parts; gradients are added up once, at the end.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from fmjax.layers.checks import check_positive
from fmjax.layers.dense import weight_gradient
from fmjax.layers.embed import output_logits
from fmjax.layers.weights import value_of
from fmjax.parallel.logical import mesh_axes, num_shards
from fmjax.parallel.platform import target_platform

CHUNK_SIZE = 128
CPU_POSITIONS = 512
"""Positions of all rows in a chunk on a CPU: enough for the products' full rate, and the fewest logits in memory."""


def cross_entropy(
    hidden,
    head,
    targets,
    weights,
    *,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    chunk_size: int | None = None,
    count_correct: bool = False,
):
    """Weighted sums of the cross-entropy of softmax(output_logits(hidden, head)) with `targets`.

    Args:
      hidden: [B, T, D] in the compute dtype.
      head: output weights as for `output_logits`.
      targets: int32 [B, T].
      weights: float32 [B, T]; constants to a derivative of either mode.
      z_loss: adds z_loss * log(Z)**2 per position, Z the softmax's denominator (Chowdhery et al. 2022, section 5).
      label_smoothing: share of the target's probability that is spread evenly over all V classes, the target among
        them (Szegedy et al. 2016, section 7; `label_smoothing` of PyTorch's CrossEntropyLoss).
      chunk_size: positions of each row, of those on one device, that are processed at once; None goes by the platform
        (`default_chunk_size`).
      count_correct: whether to compare the largest logit with the target's; a target that shares the largest with
        others counts as correct.

    Returns: dict of float32 scalars, sums over positions times weights: "loss" (with z-loss and smoothing; the only
    one with a derivative, of either mode, with respect to hidden and head only), "cross_entropy" (without them),
    "z_loss", and "correct" if asked for.
    """
    head = {name: value_of(x) for name, x in head.items()}
    options = _Options(z_loss, label_smoothing, chunk_size, count_correct)
    return _cross_entropy(hidden, head, targets, weights, options)


def target_sums(
    apply_fn, params, batch: dict, inputs: dict, key, train: bool, parts: Sequence[str] = (), **options
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Sums of an objective that predicts the batch's `targets` at every place: "loss"; "accuracy" when not training.

    Args:
      inputs: what the module's method `features` is called with.
      key: for dropout; may be None when not training.
      parts: of the loss, told beside it.
      options: of `cross_entropy`.
    """
    rngs = {"dropout": key} if train and key is not None else None
    hidden, head = apply_fn({"params": params}, **inputs, train=train, rngs=rngs, method="features")
    weights = batch["loss_weights"]
    sums = cross_entropy(hidden, head, batch["targets"], weights, count_correct=not train, **options)
    named = {name: sums[name] for name in ("loss", *parts)} | ({} if train else {"accuracy": sums["correct"]})
    weight = weights.sum()
    return {name: (value, weight) for name, value in named.items()}


class _Options(NamedTuple):
    z_loss: float
    label_smoothing: float
    chunk_size: int | None
    count_correct: bool


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def _cross_entropy(hidden, head, targets, weights, options):
    return _on_mesh(hidden, head, targets, weights, options, gradients=False)[0]


@_cross_entropy.defjvp
def _derivative(options, primals, tangents):
    """The gradients at hand times the tangents, whose transpose is the gradients times the loss's cotangent."""
    sums, *gradients = _with_gradients(*primals, options)
    along = lambda gradient, tangent: jnp.sum(gradient.astype(jnp.float32) * tangent.astype(jnp.float32))
    loss = jax.tree.reduce(jnp.add, jax.tree.map(along, gradients, list(tangents[:2])))
    return sums, {name: loss if name == "loss" else jnp.zeros_like(x) for name, x in sums.items()}


# JAX would linearize the loop over chunks with the rest, and take out of it what every turn has alike: arrays as large
# as the logits. It does not look into a function with a derivative of its own.
@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def _with_gradients(hidden, head, targets, weights, options):
    return _on_mesh(hidden, head, targets, weights, options, gradients=True)


@_with_gradients.defjvp
def _second_derivative(options, primals, tangents):
    return jax.jvp(functools.partial(_on_mesh, options=options, gradients=True), primals, tangents)


def _on_mesh(hidden, head, targets, weights, options, gradients):
    """`_over_chunks` for each device's share of the mesh in context, and what it returns for all of them."""
    dtypes = {name: value.dtype for name, value in head.items()}
    # Cast before parameters that are split over devices are gathered.
    head = {name: value if name == "bias" else value.astype(hidden.dtype) for name, value in head.items()}
    mesh = jax.sharding.get_abstract_mesh()
    batch, length, vocab = mesh_axes(mesh, ("batch", "length", "act_vocab"))
    if head_size(head) % num_shards(mesh, vocab):
        vocab = ()
    if batch + length + vocab:
        args = (hidden, head, targets, weights, options, gradients)
        sums, d_hidden, d_head = _mapped(mesh, batch, length, vocab, *args)
    else:
        sums, d_hidden, d_head = _over_chunks(hidden, head, targets, weights, (), options, gradients)
    return sums, d_hidden, {name: x.astype(dtypes[name]) for name, x in d_head.items()} if gradients else None


def _mapped(mesh, batch, length, vocab, hidden, head, targets, weights, options, gradients):
    rows, positions = hidden.shape[:2]
    missing = (-rows % num_shards(mesh, batch), -positions % num_shards(mesh, length))
    # What is added to make the shards even has no weight.
    hidden, targets, weights = (_pad(x, missing) for x in (hidden, targets, weights))
    # The gradient to the head is split as the parameter is, where its axes are among those it is summed over.
    (embed,) = mesh_axes(mesh, ("embed",))
    if not set(embed) <= set(batch + length) or hidden.shape[-1] % num_shards(mesh, embed):
        embed = ()
    others = tuple(axis for axis in batch + length if axis not in embed)

    def add_up(name, x):
        if embed and name != "bias":
            x = lax.psum_scatter(x, embed, scatter_dimension=1 if name == "embedding" else 0, tiled=True)
            return lax.psum(x, others) if others else x
        return lax.psum(x, batch + length)

    def share(hidden, head, targets, weights):
        sums, d_hidden, d_head = _over_chunks(hidden, head, targets, weights, vocab, options, gradients)
        sums = lax.psum(sums, batch + length)
        if not gradients:
            return sums, None, None
        return sums, lax.psum(d_hidden, vocab), {name: add_up(name, x) for name, x in d_head.items()}

    def head_specs(embed):
        made = {"embedding": (vocab or None, embed or None), "kernel": (embed or None, vocab or None)}
        return {name: PartitionSpec(*made.get(name, (vocab or None,))) for name in head}

    place = PartitionSpec(batch or None, length or None)
    specs = dict(in_specs=(place, head_specs(()), place, place))
    specs["out_specs"] = (PartitionSpec(), place, head_specs(embed)) if gradients else (PartitionSpec(), None, None)
    # The check cannot see that what was added up over the vocabulary's parts is the same on all of them.
    sums, d_hidden, d_head = jax.shard_map(share, mesh=mesh, check_vma=False, **specs)(hidden, head, targets, weights)
    return sums, d_hidden[:rows, :positions] if gradients else None, d_head


def head_size(head: dict) -> int:
    """V of an output head."""
    return head["embedding"].shape[0] if "embedding" in head else head["kernel"].shape[1]


def check_chunk_size(chunk_size: int | None) -> None:
    """Raises ConfigError unless it is None or a whole number of at least 1."""
    if chunk_size is not None:
        check_positive(chunk_size=chunk_size)


def default_chunk_size(rows: int, length: int) -> int:
    """Positions of each of a device's rows that are processed at once where nothing else is asked for."""
    if target_platform() != "cpu":
        return CHUNK_SIZE
    size = max(1, CPU_POSITIONS // rows)
    # Without a rest, if half as many or more leave none: it would be compiled a second time.
    return next((n for n in range(size, size // 2, -1) if length % n == 0), size)


def _pad(x, missing):
    return jnp.pad(x, [(0, n) for n in missing] + [(0, 0)] * (x.ndim - 2)) if any(missing) else x


def _over_chunks(hidden, head, targets, weights, vocab_axes, options, gradients):
    """(sums, gradient of "loss" to hidden, gradient to head); the gradients are None unless asked for.

    The head's classes are one part of those of all devices along the mesh axes `vocab_axes`. The sums are of all
    classes; the gradient to hidden is of that part, and of the device's own rows all three.
    """
    rows, length, _ = hidden.shape
    chunk_size = min(options.chunk_size or default_chunk_size(rows, length), length)
    tied, vocab_size = "embedding" in head, head_size(head)
    chunk = functools.partial(_chunk, head=head, vocab_axes=vocab_axes, options=options, gradients=gradients)

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
    return sums, d_hidden, d_head


def _chunk(hidden, targets, weights, *, head, vocab_axes, options, gradients):
    """Sums and gradients of one chunk [B, C, D]."""
    z_loss, smoothing = options.z_loss, options.label_smoothing
    over_vocab = lambda x: lax.psum(x, vocab_axes) if vocab_axes else x
    logits = output_logits(hidden, head)
    part = logits.shape[-1]
    classes = over_vocab(1) * part
    first = lax.axis_index(vocab_axes) * part if vocab_axes else 0
    # A comparison with an iota, rather than a gather, which is slow on TPUs and may be of another device's class.
    is_target = (targets - first)[..., None] == lax.broadcasted_iota(jnp.int32, logits.shape, 2)
    top = jnp.max(logits, axis=-1, keepdims=True)
    top = lax.pmax(top, vocab_axes) if vocab_axes else top
    exponentials = jnp.exp(logits - top)
    total = over_vocab(jnp.sum(exponentials, axis=-1, keepdims=True))
    log_z = (jnp.log(total) + top)[..., 0]
    target_logit = over_vocab(jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1))
    entropy = jnp.sum((log_z - target_logit) * weights)
    z = z_loss * jnp.sum(log_z * log_z * weights)
    loss = entropy + z
    if smoothing:
        # The distribution aimed at is (1 - smoothing) one_hot + smoothing / V.
        mean = over_vocab(jnp.sum(logits, axis=-1)) / classes
        loss += smoothing * jnp.sum((target_logit - mean) * weights)
    sums = {"loss": loss, "cross_entropy": entropy, "z_loss": z}
    if options.count_correct:
        sums["correct"] = jnp.sum((target_logit >= top[..., 0]) * weights)
    if not gradients:
        return sums, None, None
    # d loss / d logits = weight * ((1 + 2 z_loss log Z) softmax - (1 - smoothing) one_hot - smoothing / V)
    factor = weights * (1.0 + 2.0 * z_loss * log_z)
    off_target = weights[..., None] * (smoothing / classes) if smoothing else 0.0
    on_target = weights[..., None] * (1.0 - smoothing) + off_target
    d_logits = exponentials * (factor[..., None] / total) - jnp.where(is_target, on_target, off_target)
    d_bias = {"bias": jnp.sum(d_logits, axis=(0, 1))} if "bias" in head else {}
    d_logits = d_logits.astype(hidden.dtype)
    tied = "embedding" in head
    weight = head["embedding" if tied else "kernel"].astype(hidden.dtype)
    d_hidden = lax.dot_general(d_logits, weight, (((2,), (0 if tied else 1,)), ((), ())))
    d_weight = weight_gradient(hidden, d_logits, False, jnp.float32)
    return sums, d_hidden.astype(hidden.dtype), {"weight": d_weight} | d_bias
