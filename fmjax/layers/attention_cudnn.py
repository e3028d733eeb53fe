"""cuDNN's fused attention on NVIDIA GPUs, through `jax.nn.dot_product_attention`.

Causal masks and causal windows are the kernel's own. Packing is handed over as an explicit mask of [B, 1, T, S], which
the kernel reads as a bias: exact, at the memory of one such array in the compute dtype.
"""

import jax
import jax.numpy as jnp

from fmjax.layers.attention import attention_mask
from fmjax.parallel.platform import target_platform

MAX_HEAD_DIM = 128


def unsupported(q, k, *, segment_ids, positions, causal, window, dropout_rate) -> str | None:
    """Why this backend cannot do what is asked, or None."""
    if target_platform() != "gpu":
        return f"needs an NVIDIA GPU, and the platform is {target_platform()!r}"
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"computes in bfloat16 or float16, not {q.dtype}"
    if q.shape[-1] % 8 or q.shape[-1] > MAX_HEAD_DIM:
        return f"takes a head_dim that is a multiple of 8 up to {MAX_HEAD_DIM}, not {q.shape[-1]}"
    if positions is not None:
        return "masks by index in the row and takes no positions (cached decoding)"
    if window is not None and not causal:
        return "has windows for causal attention only"
    if dropout_rate > 0.0:
        return "has no dropout of attention probabilities here"
    return None


def run(q, k, v, *, segment_ids, positions, causal, window, scale):
    """Arguments as `fmjax.layers.attention.reference`, without positions."""
    mask = None
    if segment_ids is not None:
        same = attention_mask(
            q.shape[1], k.shape[1], segment_ids=segment_ids, positions=None, causal=False, window=None
        )
        mask = same[:, None]
    return jax.nn.dot_product_attention(
        q, k, v,
        mask=mask,
        scale=scale,
        is_causal=causal,
        local_window_size=None if window is None else (window - 1, 0),
        implementation="cudnn",
    )  # fmt: skip
