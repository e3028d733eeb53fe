"""Splash attention, JAX's block-sparse flash attention kernel for TPUs.

The kernel wants lengths in whole blocks and whole lanes of head dimensions, and runs on one device: `run` pads both
(exactly: padded keys have a segment of their own, padded dimensions are zero) and maps the kernel over the mesh's batch
and head axes.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import PartitionSpec

LANES = 128
BLOCK = 512
# Tests on a CPU set it to run the kernel in Pallas' interpreter.
INTERPRET = False


def unsupported(q, k, *, segment_ids, positions, causal, window, dropout_rate) -> str | None:
    """Why this backend cannot do what is asked, or None."""
    if positions is not None:
        return "masks by index in the row and takes no positions (cached decoding)"
    if dropout_rate > 0.0:
        return "has no dropout of attention probabilities"
    return None


def run(q, k, v, *, segment_ids, positions, causal, window, scale):
    """Arguments as `fmjax.layers.attention.reference`, without positions."""
    length, head_dim = q.shape[1], q.shape[3]
    q = (q * scale).astype(q.dtype)
    ids = segment_ids
    if ids is None:
        ids = tuple(jnp.ones(x.shape[:2], jnp.int32) for x in (q, k))
    # Padding: its queries attend its own keys, so no row is empty, and nothing else does.
    q, k, v = (_pad(_pad(x, 1, LANES), 3, LANES) for x in (q, k, v))
    ids = tuple(_pad(i.astype(jnp.int32), 1, LANES, -1) for i in ids)
    attend = functools.partial(_on_one_device, causal=causal, window=window)
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and mesh.size > 1:
        batch, heads = nn.logical_to_mesh_axes(("batch", "act_heads"))
        shards = int(np.prod([mesh.shape[name] for name in jax.tree.leaves(heads)], dtype=int))
        if k.shape[2] % shards:  # fewer key-value heads than shards: give every query head its own copy
            k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
        whole, rows = PartitionSpec(batch, None, heads, None), PartitionSpec(batch, None)
        # Splash's own outputs do not say over which axes they vary, hence check_vma=False.
        specs = dict(in_specs=(whole, whole, whole, (rows, rows)), out_specs=whole, check_vma=False)
        attend = jax.shard_map(attend, mesh=mesh, **specs)
    return attend(q, k, v, ids)[:, :length, :, :head_dim]


def _pad(x, axis, multiple, value=0):
    missing = -x.shape[axis] % multiple
    widths = [(0, missing if i == axis else 0) for i in range(x.ndim)]
    return jnp.pad(x, widths, constant_values=value) if missing else x


def _on_one_device(q, k, v, ids, *, causal, window):
    """q [B, T, H, D], k and v [B, S, K, D] and ids ([B, T], [B, S]), all padded."""
    kernel = _kernel(q.shape[2], q.shape[1], k.shape[1], causal, window)
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
    # XLA sees inside no kernel; the plan of a run reads from the scope how much this one computes.
    with jax.named_scope(f"tile_pairs_{tile_pairs(q.shape[2], k.shape[2], causal, window)}"):
        out = jax.vmap(kernel)(q, k, v, splash.SegmentIds(q=ids[0], kv=ids[1]))
    return out.transpose(0, 2, 1, 3)


def _kernel(heads, t, s, causal, window):
    if window is not None:
        mask = splash.LocalMask((t, s), (window - 1, 0 if causal else window - 1), 0)
    elif causal:
        mask = splash.CausalMask((t, s))
    else:
        mask = splash.FullMask((t, s))
    block_q, block_kv = _blocks(t, s)
    sizes = splash.BlockSizes(
        block_q=block_q, block_kv=block_kv, block_kv_compute=block_kv,
        block_q_dkv=block_q, block_kv_dkv=block_kv, block_kv_dkv_compute=block_kv,
        block_q_dq=block_q, block_kv_dq=block_kv,
    )  # fmt: skip
    return splash.make_splash_mha(
        splash.MultiHeadMask([mask] * heads), block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=INTERPRET
    )


def _blocks(t, s) -> tuple[int, int]:
    """Queries and keys of one tile."""
    return tuple(max(b for b in (128, 256, 512) if b <= BLOCK and n % b == 0) for n in (t, s))


def tile_pairs(t: int, s: int, causal: bool, window: int | None) -> int:
    """(query, key) pairs that the kernel computes for one head: those of every tile with a pair that the mask allows."""
    block_q, block_kv = _blocks(t, s)
    first_q, first_k = np.arange(0, t, block_q)[:, None], np.arange(0, s, block_kv)[None, :]
    allowed = np.ones((t // block_q, s // block_kv), bool)
    if causal:
        allowed &= first_k <= first_q + block_q - 1
    if window is not None:
        allowed &= first_q - (first_k + block_kv - 1) < window
        if not causal:
            allowed &= first_k - (first_q + block_q - 1) < window
    return int(allowed.sum()) * block_q * block_kv
