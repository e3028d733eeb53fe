"""cuDNN's fused attention on NVIDIA GPUs, through `jax.nn.dot_product_attention`.

Causal masks and causal windows are the kernel's own. Packing, windows to both sides and other masks are handed over as
an explicit mask [B or 1, 1, T, S], which the kernel reads as a bias: exact, at the memory of one such array in the
compute dtype. The kernel has a backward pass and no forward mode: for `jax.jvp` take the backend "reference".

The kernel wants head dimensions in eights and, with a mask, even lengths; both are padded, exactly.
"""

import jax

from fmjax.layers.attention.reference import attention_mask
from fmjax.layers.padding import pad
from fmjax.parallel.platform import target_platform

MAX_HEAD_DIM = 128
DTYPES = ("bfloat16", "float16")
# Tests without a GPU set it to "xla", which takes the same arguments.
IMPLEMENTATION = "cudnn"


def unsupported(q, k, *, segment_ids, positions, causal, window, mask, dropout_rate) -> str | None:
    """Why this backend cannot do what is asked, or None."""
    if target_platform() != "gpu":
        return f"needs an NVIDIA GPU, and the platform is {target_platform()!r}"
    if q.dtype.name not in DTYPES:
        return f"computes in {' or '.join(DTYPES)}, not {q.dtype}"
    if q.shape[-1] > MAX_HEAD_DIM:
        return f"takes a head_dim of up to {MAX_HEAD_DIM}, not {q.shape[-1]}"
    if positions is not None:
        return "masks by index in the row and takes no positions (cached decoding)"
    if dropout_rate > 0.0:
        return "has no dropout of attention probabilities here"
    return None


def run(q, k, v, *, segment_ids, positions, causal, window, scale, mask=None):
    """Arguments as `fmjax.layers.attention.reference`, without positions; on one device."""
    t, s, head_dim = q.shape[1], k.shape[1], q.shape[3]
    banded = None if causal else window
    allowed = attention_mask(t, s, segment_ids=segment_ids, positions=None, causal=False, window=banded, mask=mask)
    lengths = 1
    if allowed is not None:
        allowed, lengths = pad(pad(allowed, 1, 2), 2, 2)[:, None], 2
    q, k, v = (pad(pad(x, 1, lengths), 3, 8) for x in (q, k, v))
    out = jax.nn.dot_product_attention(
        q, k, v,
        mask=allowed,
        scale=scale,
        is_causal=causal,
        local_window_size=(window - 1, 0) if causal and window is not None else None,
        implementation=IMPLEMENTATION,
    )  # fmt: skip
    return out[:, :t, :, :head_dim]
