"""FLOPs of what the compiler only calls: kernels, and products that a library computes."""

import math
import re

import numpy as np

from fmjax.planning.hlo import Array, Computation, Instruction

# Beginnings of what custom calls that compute are called; others allocate, or say something to the compiler.
_COMPUTING = ("tpu_custom_call", "__cu", "__onednn", "mosaic", "triton", "__gpu", "cudnn", "xla.gpu")
# Of those, what multiplies no matrices: sorting, norms, other layouts.
_NO_PRODUCTS = ("__cub$", "xla.gpu.ext.cub_", "__gpu$TopK", "__cudnn$norm", "__cudnn$convReorder")

# Products of a [queries, keys] tile with a head's dimensions, by the beginning of the name of a kernel.
_SPLASH_PRODUCTS = {
    "splash_mha_fwd": 2,  # logits; probabilities times values
    "splash_mha_dq": 3,  # logits again; gradient of the probabilities; of the queries
    "splash_mha_dkv": 4,  # logits again; gradient of the probabilities; of the keys; of the values
}


def flops(computation: Computation, one: Instruction) -> float | None:
    """Of the matrix products of a custom call; None for one that computes what is not known here."""
    target = call_target(one)
    if target.startswith(_NO_PRODUCTS):
        return 0.0
    if target.startswith("__cudnn$fmha"):
        return _cudnn_attention_flops(computation, one)
    if re.match(r"__cublas\$(gemm|lt\$matmul)", target):
        return _cublas_flops(computation, one)
    if target == "__onednn$matmul":
        return _onednn_flops(computation, one)
    if target == "tpu_custom_call":
        return _splash_flops(computation, one)
    return None if target.startswith(_COMPUTING) else 0.0


def call_target(one: Instruction) -> str:
    """What a custom call calls."""
    return (one.attribute("custom_call_target") or "").strip('"')


def workspace(one: Instruction) -> Array | None:
    """Scratch memory, which libraries on GPUs return last of their results; None where there is none."""
    is_scratch = len(one.arrays) > 1 and one.arrays[-1].dtype in ("s8", "u8") and len(one.arrays[-1].shape) == 1
    return one.arrays[-1] if is_scratch and call_target(one).startswith(("__cu", "xla.gpu.ext.cub_")) else None


def _splash_flops(computation: Computation, one: Instruction) -> float | None:
    """An attention kernel is named after what it computes, and the scope it was called in says how many (query, key)
    pairs one head goes through, whole tiles of masked pairs left out (`fmjax.layers.attention.splash`)."""
    products = next((number for name, number in _SPLASH_PRODUCTS.items() if one.name.startswith(name)), None)
    tiles = re.search(r"tile_pairs_(\d+)_(\d+)_(fused|apart)", one.op_name)
    arrays = [a for name in one.operands for a in computation[name].arrays]
    # The integers before them are the mask's.
    queries = next((a for a in arrays if a.dtype.startswith(("f", "bf")) and len(a.shape) >= 3), None)
    if products is None or tiles is None or queries is None:
        return None
    *heads, _, features = queries.shape
    backward = not one.name.startswith("splash_mha_fwd")
    products += backward and tiles[3] == "fused"  # the gradient of the queries in the kernel of the others
    # The kernel of the queries' gradient, where there is one, has the tiles of the forward pass.
    pairs = int(tiles[2] if one.name.startswith("splash_mha_dkv") else tiles[1])
    return 2.0 * products * pairs * features * math.prod(heads)


def _cudnn_attention_flops(computation: Computation, one: Instruction) -> float | None:
    """As `jax.nn.dot_product_attention` calls it; None where the data say how long rows are.

    From below: pairs of a query and a key that the kernel's own mask allows. Of the others cuDNN computes those in the
    same tiles, whose size it does not tell. A mask in an array is a bias to the kernel, which leaves nothing out.

    Forward, logits and probabilities times values; backward, the logits again and the gradients of probabilities,
    values, queries and keys. Operands begin with queries, keys and values, whose last dimension is a head's.
    """
    config = one.backend_config.get("cudnn_fmha_backend_config", {})
    dimensions = config.get("intermediate_tensor_shape", {}).get("dimensions", ())
    mask, window = config.get("mask_type"), int(config.get("sliding_window_length") or 0)
    several = int(config.get("max_seg_per_batch") or 1) > 1 or config.get("is_paged_attention", False)
    if len(dimensions) != 4 or mask not in ("NO_MASK", "CAUSAL") or several:
        return None
    batch, heads, queries, keys = map(int, dimensions)
    if mask == "CAUSAL" or window:
        last = np.minimum(np.arange(1, queries + 1), keys)
        first = np.maximum(np.arange(1, queries + 1) - window, 0) if window else 0
        pairs = int(np.maximum(last - first, 0).sum())
    else:
        pairs = queries * keys
    query, value = (computation[one.operands[place]].arrays[0].shape[-1] for place in (0, 2))
    products = 3 * query + 2 * value if "Backward" in call_target(one) else query + value
    return 2.0 * batch * heads * pairs * products


def _cublas_flops(computation: Computation, one: Instruction) -> float | None:
    """None where the call does not say what it sums over."""
    numbers = one.backend_config.get("gemm_backend_config", {}).get("dot_dimension_numbers")
    if numbers is None:
        return None
    left = computation[one.operands[0]].arrays[0].shape
    over = math.prod(left[int(place)] for place in numbers.get("lhs_contracting_dimensions", ()))
    return 2.0 * one.arrays[0].size * over


def _onednn_flops(computation: Computation, one: Instruction) -> float:
    """The left operand holds ... x rows x summed, its last two maybe exchanged; the result ... x rows x columns."""
    over = computation[one.operands[0]].arrays[0].size / math.prod(one.arrays[0].shape[:-1])
    return 2.0 * one.arrays[0].size * over
