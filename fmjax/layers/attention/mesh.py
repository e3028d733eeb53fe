"""Attention kernels on a mesh: each device computes its rows, heads and, on a `length` axis, its part of the queries.

XLA does not partition a kernel, so it is mapped over the shards that the logical axes `batch`, `act_heads` and `length`
have in the mesh in context. Rows and heads do not concern each other. The length does, and there are two ways
(sequence or context parallelism):

- By heads: an all-to-all trades the split of the length for one of the heads, each device computes whole rows of its
  heads with the backend's kernel, and another all-to-all trades back (Jacobs et al. 2023,
  https://arxiv.org/abs/2309.14509). It moves the least and is balanced for every mask; it needs key-value heads that
  divide over the shards.
- By queries, where they do not: keys and values are gathered, and each device computes its own queries. With the few
  key-value heads of grouped queries that costs less than the queries themselves, and unlike a ring it is one collective
  that every kernel can follow. Under a causal mask the first queries have few keys and the last have all, so the
  devices trade halves first: of 2n chunks device i computes i and 2n - 1 - i (Llama 3, Grattafiori et al. 2024, section
  3.3.2). On TPU the kernel is splash attention, elsewhere `fmjax.layers.attention.blocks`.

A length that does not divide is padded. Padding and order are undone before anything else sees them: batches, positions
and modules know the natural length and order alone.
"""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from fmjax.layers.attention.blocks import attend
from fmjax.layers.padding import pad
from fmjax.parallel.logical import mesh_axes, num_shards

log = logging.getLogger(__name__)


def run(kernel, q, k, v, *, segment_ids, positions, causal, window, scale, mask=None):
    """`kernel.run` on every device of the mesh in context, on its share; on the one at hand without a mesh.

    Args:
      kernel: a backend's module; the others as for `fmjax.layers.attention.reference`.
    """
    options = dict(causal=causal, window=window, scale=scale, mask=mask)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return kernel.run(q, k, v, segment_ids=segment_ids, positions=positions, **options)
    batch, length, heads = mesh_axes(mesh, ("batch", "length", "act_heads"))
    if q.shape[2] % num_shards(mesh, heads):
        _warn(
            f"attention of {q.shape[2]} heads does not divide over the {num_shards(mesh, heads)} devices of the mesh "
            f"axes {heads}: each of them computes all heads. Choose an axis size that divides num_heads."
        )
    # Rows or heads that do not divide stay whole.
    batch, heads = (
        () if size % num_shards(mesh, names) else names for names, size in ((batch, q.shape[0]), (heads, q.shape[2]))
    )
    head_shards, shards = num_shards(mesh, heads), num_shards(mesh, length)
    if k.shape[2] % head_shards:  # fewer key-value heads than shards: give every query head its own copy
        k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    extra, extra_specs, queries = None, None, q.shape[1]
    if shards == 1:
        attend = lambda _, q, k, v, ids: kernel.run(q, k, v, segment_ids=ids, positions=None, **options)
    elif k.shape[2] // head_shards % shards == 0:
        q, k, v, segment_ids = _pad_length(q, k, v, segment_ids, shards, causal)
        attend = lambda _, *arrays: _by_heads(kernel, length, *arrays, options)
    else:
        balanced = causal and window is None
        if not hasattr(kernel, "make_kernel"):
            _warn(
                f"attention over a length split {shards} ways, with {k.shape[2]} key-value heads that do not divide by "
                f"it, is computed in blocks by XLA rather than by {kernel.__name__}."
            )
        q, k, v, segment_ids = _pad_length(q, k, v, segment_ids, 2 * shards if balanced else shards, causal)
        order = _order(q.shape[1], shards, balanced)
        if hasattr(kernel, "make_kernel") and (causal or window is not None or mask is not None):
            extra = kernel.make_kernel(order, q.shape[2] // head_shards, k.shape[1], causal, window, mask)
            extra_specs = extra.manual_sharding_spec(NamedSharding(mesh, PartitionSpec(None, length)))
        attend = lambda extra, *arrays: _by_queries(kernel, extra, order, length, balanced, *arrays, options)
    rows = PartitionSpec(batch or None, length or None)
    whole = PartitionSpec(*rows, heads or None)
    # Splash's own outputs do not say over which axes they vary, hence check_vma=False.
    specs = dict(in_specs=(extra_specs, whole, whole, whole, rows), out_specs=whole, check_vma=False)
    return jax.shard_map(attend, mesh=mesh, **specs)(extra, q, k, v, segment_ids)[:, :queries]


@functools.lru_cache(maxsize=None)
def _warn(text: str) -> None:
    """Once each, as every layer says the same."""
    log.warning("%s", text)


def _pad_length(q, k, v, ids, multiple: int, causal: bool):
    """Lengths in multiples that divide over the shards; what is added has a segment of its own."""
    if ids is None and k.shape[1] % multiple and not causal:  # a causal mask hides keys after the last query by itself
        ids = tuple(jnp.ones(x.shape[:2], jnp.int32) for x in (q, k))
    if ids is not None:
        ids = tuple(pad(i, 1, multiple, constant_values=-1) for i in ids)
    return *(pad(x, 1, multiple) for x in (q, k, v)), ids


def _by_heads(kernel, axis, q, k, v, ids, options):
    trade = lambda x, split, join: lax.all_to_all(x, axis, split_axis=split, concat_axis=join, tiled=True)
    q, k, v = (trade(x, 2, 1) for x in (q, k, v))
    if ids is not None:
        ids = tuple(_gather(i, axis) for i in ids)
    return trade(kernel.run(q, k, v, segment_ids=ids, positions=None, **options), 1, 2)


def _by_queries(kernel, extra, order, axis, balanced, q, k, v, ids, options):
    k, v = _gather(k, axis), _gather(v, axis)
    index = jnp.asarray(order)[lax.axis_index(axis)]
    if ids is not None:
        ids = (jnp.take(_gather(ids[0], axis), index, axis=1), _gather(ids[1], axis))
    q = _trade_halves(q, axis, len(order)) if balanced else q
    if extra is not None:
        out = kernel.apply(extra, q, k, v, ids, options["scale"])
    elif hasattr(kernel, "make_kernel"):  # without a mask all queries are alike
        out = kernel.run(q, k, v, segment_ids=ids, positions=None, **options)
    else:
        out = attend(q, k, v, index, segment_ids=ids, order=order, **options)
    return _trade_halves(out, axis, len(order), back=True) if balanced else out


def _gather(x, axis):
    return lax.all_gather(x, axis, axis=1, tiled=True)


def _order(length: int, shards: int, balanced: bool) -> np.ndarray:
    """int32 [shards, T / shards]: which queries each shard computes."""
    index = np.arange(length, dtype=np.int32)
    if not balanced:
        return index.reshape(shards, -1)
    chunks = index.reshape(2 * shards, -1)
    return np.concatenate([chunks[:shards], chunks[::-1][:shards]], axis=1)


def _trade_halves(x, axis, shards: int, back: bool = False):
    """From consecutive chunks 2i, 2i + 1 on device i to chunks i, 2n - 1 - i, or back.

    The first halves have even numbers, the second odd ones, and of i and 2n - 1 - i one is even: each half has one
    destination, and each device gets one of either.
    """
    home = lambda chunk: min(chunk, 2 * shards - 1 - chunk)
    to = [[(i, home(2 * i + parity)) for i in range(shards)] for parity in (0, 1)]
    odd = lax.axis_index(axis) % 2 == 1  # where the device's first chunk, i, is an odd one
    if back:
        first, second = jnp.split(x, 2, axis=1)
        halves = jnp.where(odd, second, first), jnp.where(odd, first, second)
        moved = [lax.ppermute(half, axis, [(b, a) for a, b in way]) for half, way in zip(halves, to)]
        return jnp.concatenate(moved, axis=1)
    even, uneven = (lax.ppermute(half, axis, way) for half, way in zip(jnp.split(x, 2, axis=1), to))
    return jnp.concatenate([jnp.where(odd, uneven, even), jnp.where(odd, even, uneven)], axis=1)
