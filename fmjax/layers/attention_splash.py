"""Splash attention, JAX's block-sparse flash attention kernel for TPUs.

The kernel wants lengths in whole blocks and head dimensions in whole lanes. Both are padded, exactly: padded keys have
a segment of their own, padded dimensions are zero.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention as splash

LANES = 128
BLOCKS = (512, 256, 128)
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
    """Arguments as `fmjax.layers.attention.reference`, without positions; on one device."""
    kernel = make_kernel(np.arange(q.shape[1])[None], q.shape[2], k.shape[1], causal, window)
    return apply(kernel, q, k, v, segment_ids, scale)


def make_kernel(order: np.ndarray, heads: int, keys: int, causal: bool, window: int | None):
    """The kernel for queries that are spread over devices; the keys are whole on each.

    Args:
      order: int [shards, T], the index in the row of each query that a shard holds.
      heads: of the queries, on one device.
      keys: their number S.

    Returns: a pytree to `apply`, whose arrays `kernel.manual_sharding_spec` splits over the shards.
    """
    shards, rows = order.shape
    order = np.pad(order, ((0, 0), (0, -rows % LANES)), mode="edge").astype(np.int32)
    keys += -keys % LANES
    # A shard's queries may be two runs of consecutive ones: no block should have some of both.
    block_q = _block(rows // 2 if shards > 1 and rows % (2 * LANES) == 0 else order.shape[1])
    block_kv = _block(keys)
    sizes = splash.BlockSizes(
        block_q=block_q, block_kv=block_kv, block_kv_compute=block_kv,
        block_q_dkv=block_q, block_kv_dkv=block_kv, block_kv_dkv_compute=block_kv,
        block_q_dq=block_q, block_kv_dq=block_kv,
    )  # fmt: skip
    shape = (order.size, keys)
    mask = splash.FullMask(shape) if not causal and window is None else Band(order.reshape(-1), keys, causal, window)
    return splash.make_splash_mha(
        splash.MultiHeadMask([mask] * heads), block_sizes=sizes, head_shards=1, q_seq_shards=shards, interpret=INTERPRET
    )


def _block(length: int) -> int:
    return next(size for size in BLOCKS if length % size == 0)


def apply(kernel, q, k, v, segment_ids, scale):
    """softmax(scale * q k^T + the kernel's mask) v for q [B, T, H, D], k and v [B, S, K, D]; as `run`."""
    length, head_dim = q.shape[1], q.shape[3]
    if segment_ids is None:
        segment_ids = tuple(jnp.ones(x.shape[:2], jnp.int32) for x in (q, k))
    q = (q * scale).astype(q.dtype)
    q, k, v = (_pad(_pad(x, 1, LANES), 3, LANES).transpose(0, 2, 1, 3) for x in (q, k, v))
    ids = splash.SegmentIds(*(_pad(i.astype(jnp.int32), 1, LANES, -1) for i in segment_ids))
    out = jax.vmap(kernel)(q, k, v, ids)
    return out.transpose(0, 2, 1, 3)[:, :length, :, :head_dim]


def _pad(x, axis, multiple, value=0):
    missing = -x.shape[axis] % multiple
    widths = [(0, missing if i == axis else 0) for i in range(x.ndim)]
    return jnp.pad(x, widths, constant_values=value) if missing else x


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
