"""Splash attention, JAX's block-sparse flash attention kernel for TPUs.

The kernel wants lengths in whole blocks and head dimensions in whole sublanes. Both are padded, exactly: padded keys
have a segment of their own, padded dimensions are zero.

The backward pass is one kernel that computes the probabilities once, for all three gradients. It writes the queries'
gradient once for every block of keys, to be summed; for long rows larger blocks bound that memory, up to what the
chip's vector memory holds. Beyond MAX_PARTS of the largest, the two kernels that need no such memory take over, with
seven products where the one has five.

The kernel has no forward mode: for `jax.jvp` take the backend "reference".

For a remat policy, what the backward pass reads of the forward pass (the output and its log-sums) is called RESIDUALS.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention as splash

from fmjax.layers.padding import pad
from fmjax.parallel.platform import target_platform

LANES = 128
SUBLANES = 8
BLOCKS = (512, 256, 128)
BACKWARD_BLOCKS = (2048, 1024, 512)
ENOUGH_PARTS, MAX_PARTS = 16, 64
RESIDUALS = "attention_residuals"
# Tests on a CPU set it to run the kernel in Pallas' interpreter.
INTERPRET = False


def unsupported(q, k, *, segment_ids, positions, causal, window, mask, dropout_rate) -> str | None:
    """Why this backend cannot do what is asked, or None."""
    if target_platform() != "tpu" and not INTERPRET:
        return f"is a kernel for TPUs, and the program is for {target_platform()!r}"
    if positions is not None:
        return "masks by index in the row and takes no positions (cached decoding)"
    if dropout_rate > 0.0:
        return "has no dropout of attention probabilities"
    return None


def run(q, k, v, *, segment_ids, positions, causal, window, scale, mask=None):
    """Arguments as `fmjax.layers.attention.reference`, without positions; on one device."""
    kernel = make_kernel(np.arange(q.shape[1])[None], q.shape[2], k.shape[1], causal, window, mask)
    return apply(kernel, q, k, v, segment_ids, scale)


def make_kernel(order: np.ndarray, heads: int, keys: int, causal: bool, window: int | None, rule=None):
    """The kernel for queries that are spread over devices; the keys are whole on each.

    Args:
      order: int [shards, T], the index in the row of each query that a shard holds.
      heads: of the queries, on one device.
      keys: their number S.
      rule: the `mask` of `attention`.

    Returns: a `Kernel` to `apply`, whose arrays `manual_sharding_spec` splits over the shards.
    """
    shards, rows = order.shape
    order = np.pad(order, ((0, 0), (0, -rows % LANES)), mode="edge").astype(np.int32)
    keys += -keys % LANES
    # A shard's queries may be two runs of consecutive ones: no block should have some of both.
    block_q = _block(rows // 2 if shards > 1 and rows % (2 * LANES) == 0 else order.shape[1])
    block_kv = _block(keys)
    # Large blocks compute more of what a causal mask hides: a part in 2 x 16 of it is little.
    long = (size for size in BACKWARD_BLOCKS if keys % size == 0 and keys // size >= ENOUGH_PARTS)
    backward = next(long, block_kv)
    fused = keys // backward <= MAX_PARTS
    sizes = splash.BlockSizes(
        block_q=block_q, block_kv=block_kv, block_kv_compute=block_kv,
        block_q_dkv=block_q, block_kv_dkv=backward, block_kv_dkv_compute=min(backward, BLOCKS[0]),
        block_q_dq=None if fused else block_q, block_kv_dq=None if fused else block_kv,
        use_fused_bwd_kernel=fused,
    )  # fmt: skip
    shape = (order.size, keys)
    mask = splash.FullMask(shape) if not causal and window is None else Band(order.reshape(-1), keys, causal, window)
    mask = mask if rule is None else Ruled(mask, order.reshape(-1), rule)
    attend = splash.make_splash_mha(
        splash.MultiHeadMask([mask] * heads), block_sizes=sizes, head_shards=1, q_seq_shards=shards,
        interpret=INTERPRET, residual_checkpoint_name=RESIDUALS,
    )  # fmt: skip
    pairs = [tile_pairs(order, keys, causal, window, block_q, size, rule) for size in (block_kv, backward)]
    return Kernel(attend, (pairs[0], pairs[1], fused))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Kernel:
    """Splash attention with how much it computes, which XLA cannot see: (pairs of queries and keys of one head on one
    device in the forward pass, in the backward pass, whether that is one kernel)."""

    attend: Callable
    tiles: tuple[int, int, bool] = dataclasses.field(metadata={"static": True})

    def manual_sharding_spec(self, sharding):
        return Kernel(self.attend.manual_sharding_spec(sharding), self.tiles)


def tile_pairs(order, keys: int, causal: bool, window: int | None, block_q: int, block_kv: int, rule=None) -> int:
    """Pairs in tiles of which the mask allows any, for the queries of one shard of `order`."""
    blocks = order.reshape(-1, block_q)
    low, high = blocks.min(axis=1)[:, None], blocks.max(axis=1)[:, None]
    first = np.arange(0, keys, block_kv)[None, :]
    allowed = np.ones((len(blocks), first.size), bool)
    if causal:
        allowed &= first <= high
    if window is not None:
        allowed &= first + block_kv - 1 > low - window
        if not causal:
            allowed &= first < high + window
    if rule is not None:
        tiles = rule.allowed(order.reshape(-1)[:, None], np.arange(keys)[None])
        allowed &= tiles.reshape(len(blocks), block_q, -1, block_kv).any(axis=(1, 3))
    return int(allowed.sum()) * block_q * block_kv // len(order)


def _block(length: int) -> int:
    return next(size for size in BLOCKS if length % size == 0)


def apply(kernel, q, k, v, segment_ids, scale):
    """softmax(scale * q k^T + the kernel's mask) v for q [B, T, H, D], k and v [B, S, K, D]; as `run`."""
    length, head_dim = q.shape[1], q.shape[3]
    if segment_ids is None:
        segment_ids = tuple(jnp.ones(x.shape[:2], jnp.int32) for x in (q, k))
    q = (q * scale).astype(q.dtype)
    q, k, v = (pad(pad(x, 1, LANES), 3, SUBLANES).transpose(0, 2, 1, 3) for x in (q, k, v))
    ids = splash.SegmentIds(*(pad(i.astype(jnp.int32), 1, LANES, constant_values=-1) for i in segment_ids))
    forward, backward, fused = kernel.tiles
    # What XLA cannot see, `fmjax.plan` reads from the scope.
    with jax.named_scope(f"tile_pairs_{forward}_{backward}_{'fused' if fused else 'apart'}"):
        out = jax.vmap(kernel.attend)(q, k, v, ids)
    return out.transpose(0, 2, 1, 3)[:, :length, :, :head_dim]


@functools.lru_cache(maxsize=8)
def _constant(value: bool, *shape: int) -> np.ndarray:
    return np.full(shape, value)


class Band(splash.Mask):
    """The mask of queries at any index in the row: query t is allowed key s where t - s is within two bounds.

    With `q_sequence` and `mask_function` the kernel computes the mask rather than reading it.
    """

    def __init__(self, q_sequence: np.ndarray, keys: int, causal: bool, window: int | None):
        self.q_sequence = q_sequence
        self._columns = np.arange(keys, dtype=np.int32)
        self._bounds = 0 if causal else 1 - window, None if window is None else window - 1

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.q_sequence), len(self._columns)

    def mask_function(self, queries, keys):
        first, last = self._bounds
        allowed = queries - first >= keys if first else queries >= keys
        return allowed if last is None else allowed & (queries - last <= keys)

    def __getitem__(self, index) -> np.ndarray:
        rows, columns = self.q_sequence[index[0]], self._columns[index[1]]
        # The kernel is made by asking for every block: most of a long row's are all of one kind, which is quick to say.
        first, last = self._bounds
        low, high = rows.min() - columns[-1], rows.max() - columns[0]
        if low >= first and (last is None or high <= last):
            return _constant(True, len(rows), len(columns))
        if high < first or (last is not None and low > last):
            return _constant(False, len(rows), len(columns))
        return self.mask_function(rows[:, None], columns[None, :])

    def __eq__(self, other):
        return isinstance(other, Band) and self._key == other._key

    def __hash__(self):
        return hash(self._key)

    @property
    def _key(self):
        return len(self._columns), self._bounds, self.q_sequence.tobytes()


class Ruled(splash.Mask):
    """Another mask, and a rule of the indices in the row: the kernel reads it block by block.

    Without `q_sequence` and `mask_function`: a rule may need what the kernel's processor does not do with integers.
    """

    def __init__(self, mask: splash.Mask, q_sequence: np.ndarray, rule):
        self._mask, self._rows, self._rule = mask, q_sequence, rule

    @property
    def shape(self) -> tuple[int, int]:
        return self._mask.shape

    def __getitem__(self, index) -> np.ndarray:
        rows, columns = self._rows[index[0]], np.arange(self.shape[1], dtype=np.int32)[index[1]]
        return self._mask[index] & self._rule.allowed(rows[:, None], columns[None, :])

    def __eq__(self, other):
        return isinstance(other, Ruled) and self._key == other._key

    def __hash__(self):
        return hash(self._key)

    @property
    def _key(self):
        return self._mask, self._rows.tobytes(), self._rule
