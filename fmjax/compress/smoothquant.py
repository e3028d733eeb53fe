"""SmoothQuant (Xiao et al. 2022, https://arxiv.org/abs/2211.10438): what is hard to quantize in activations is moved
into the weights."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fmjax.compress.calibrate import part_at
from fmjax.compress.folding import channels_of, scaled
from fmjax.layers.transformer_config import TransformerConfig


def smoothing(largest: jax.Array, kernels: list[jax.Array], alpha: float) -> jax.Array:
    """max |x_j|^alpha / max |W_j|^(1 - alpha) of each channel j, float32 [in] (equation 4); what activations are
    divided by and kernels multiplied with. 1 for a channel that is always 0.

    Args:
      largest: float32 [in], the largest |x| in calibration.
      kernels: each [in, out], that read the channels.
    """
    weights = jnp.max(jnp.stack([jnp.max(jnp.abs(kernel), axis=1) for kernel in kernels]), axis=0)
    scales = largest**alpha / jnp.maximum(weights, 1e-5) ** (1 - alpha)
    return jnp.where(largest > 0, jnp.maximum(scales, 1e-5), 1.0)


def smoothed(
    block: Mapping[str, Any], config: TransformerConfig, sums: Mapping[str, Mapping[str, Any]], alpha: float = 0.5
) -> Any:
    """A block of the same function whose norms give smoother activations, as the paper has it: those that query, key
    and value, and the first products of the MLP, read.

    Args:
      sums: what its products are given, "channels".
      alpha: how much is moved; 0.5 in the paper, more where activations have larger outliers.
    """
    for channels in channels_of(config, block, of_norms=True):
        kernels = [part_at(block, path)["kernel"].astype(jnp.float32) for path in channels.readers]
        scales = smoothing(sums[channels.readers[0]]["channels"]["largest"], kernels, alpha)
        block = scaled(block, config, channels, scales)
    return block
