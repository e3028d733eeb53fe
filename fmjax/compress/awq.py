"""AWQ (Lin et al. 2023, https://arxiv.org/abs/2306.00978): channels that are large in calibration get larger weights
before they are quantized, so that less of them is lost."""

import functools
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fmjax.compress.calibrate import part_at, with_part
from fmjax.compress.folding import Channels, channels_of, scaled
from fmjax.compress.sweep import product_loss
from fmjax.layers.quantized import Quantization
from fmjax.layers.transformer_config import TransformerConfig

STEPS = 20
"""Exponents that are tried, from 0 (no scales) in steps of 1 / 20, as in the authors' code."""


def activation_scales(absolute: jax.Array, exponent: jax.Array) -> jax.Array:
    """Scales of channels (section 3.2, equation 5): the mean magnitude to the power `exponent`, then brought to where
    the least and the largest are each other's inverse, as the authors' code does.

    Args:
      absolute: float32 [in], mean magnitudes of the channels.
      exponent: [], 0 to 1.
    """
    scales = jnp.maximum(absolute, 1e-12) ** exponent
    scales = jnp.maximum(scales, 1e-4)
    return scales / jnp.sqrt(scales.max() * scales.min())


@functools.partial(jax.jit, static_argnames=("channels", "quantization"))
def best_scales(
    kernels: tuple[jax.Array, ...], gram: jax.Array, absolute: jax.Array, channels: Channels, quantization: Quantization
) -> tuple[jax.Array, jax.Array]:
    """The scales under which least is lost of the products with kernels that read the same channels (equation 4).

    Args:
      kernels: each [in, out].
      gram: float32 [in, in], the sum of x x^T of what they are given.
      absolute: float32 [in], means of |x|.
      quantization: how the kernels will be rounded.

    Returns: (scales a channel as it is made, losses [STEPS] of the exponents 0, 1 / STEPS, ...).
    """
    made = channels.shared(absolute)

    def loss(exponent):
        scales = channels.spread(activation_scales(made, exponent))[:, None]
        rounded = [quantization.quantize(kernel * scales).value() / scales for kernel in kernels]
        return sum(product_loss(kernel, found, gram) for kernel, found in zip(kernels, rounded))

    exponents = jnp.arange(STEPS) / STEPS
    losses = jax.lax.map(loss, exponents)
    return activation_scales(made, exponents[jnp.argmin(losses)]), losses


def awq_scaled(
    block: Mapping[str, Any], config: TransformerConfig, sums: Mapping[str, Mapping[str, Any]],
    quantization: Quantization, chosen: Collection[str],
) -> Any:  # fmt: skip
    """A block of the same function whose kernels lose less when they are rounded.

    Channels are scaled where what makes them can take it up (`fmjax.compress.folding`). The losses are of each group of
    products as it was calibrated, whatever the others become.

    Args:
      sums: what its products are given, "gram" and "channels".
      quantization: how its kernels will be rounded.
      chosen: paths of the dense layers inside the block whose kernels will be.
    """
    for channels in channels_of(config, block):
        readers = [path for path in channels.readers if path in chosen]
        if not readers:
            continue
        told = sums[readers[0]]
        kernels = tuple(part_at(block, path)["kernel"].astype(jnp.float32) for path in readers)
        absolute = told["channels"]["absolute"] / jnp.maximum(told["channels"]["count"], 1.0)
        scales, _ = best_scales(kernels, told["gram"], absolute, channels, quantization)
        block = scaled(block, config, channels, scales)
    return block
