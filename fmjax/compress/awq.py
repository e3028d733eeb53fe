"""AWQ (Lin et al. 2023, https://arxiv.org/abs/2306.00978): channels that are large in calibration get larger weights
before they are quantized, so that less of them is lost; and the largest weights of a block are clipped where that loses
less."""

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

CLIPS = tuple(1 - i / 20 for i in range(10))
"""Shares of a block's largest magnitude that are tried, as in the authors' code."""


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


@functools.partial(jax.jit, static_argnames=("quantization",))
def clipped(kernel: jax.Array, gram: jax.Array, quantization: Quantization) -> jax.Array:
    """A kernel [in, out], of its dtype, whose blocks are clipped to the share of their largest magnitude, of `CLIPS`,
    under which least is lost of the product when it is rounded.

    The loss of an output is that of all its blocks together, by the sum of x x^T `gram` [in, in]; blocks are searched
    one after another, with what the others lose as it is by then, so that no choice raises it.
    """
    size, tile = quantization.cut(kernel.shape)
    exact = kernel.astype(jnp.float32)
    product = functools.partial(jnp.matmul, precision="highest")

    def one(i, state):
        limited, change = state
        cut = lambda x: jax.lax.dynamic_slice_in_dim(x, i * size, size)
        put = lambda x, part: jax.lax.dynamic_update_slice_in_dim(x, part, i * size, 0)
        own, rows = cut(exact), cut(gram)
        square = jax.lax.dynamic_slice_in_dim(rows, i * size, size, axis=1)
        others = product(rows, change) - product(square, cut(change))
        largest = jnp.abs(own).max(0).reshape(-1, tile).max(1)

        def tried(share):  # [out / tile] each
            limit = jnp.repeat(share * largest, tile)
            made = jnp.clip(own, -limit, limit)
            lost = quantization.quantize(made).value() - own
            loss = jnp.sum(lost * (product(square, lost) + 2 * others), axis=0)
            return made, lost, loss.reshape(-1, tile).sum(1)

        losses = jax.lax.map(lambda share: tried(share)[2], jnp.asarray(CLIPS))
        made, lost, _ = tried(jnp.asarray(CLIPS)[jnp.argmin(losses, axis=0)])
        return put(limited, made), put(change, lost)

    change = quantization.quantize(exact).value() - exact
    return jax.lax.fori_loop(0, len(exact) // size, one, (exact, change))[0].astype(kernel.dtype)


def awq_scaled(
    block: Mapping[str, Any], config: TransformerConfig, sums: Mapping[str, Mapping[str, Any]],
    quantization: Quantization, chosen: Collection[str], clip: bool = False,
) -> Any:  # fmt: skip
    """A block of the same function whose kernels lose less when they are rounded.

    Channels are scaled where what makes them can take it up (`fmjax.compress.folding`). The losses are of each group of
    products as it was calibrated, whatever the others become.

    Args:
      sums: what its products are given, "gram" and "channels".
      quantization: how its kernels will be rounded.
      chosen: paths of the dense layers inside the block whose kernels will be.
      clip: whether they are clipped after that (`clipped`), all but those of queries and keys, as in the authors' code.
    """
    grams = {path: sums[path]["gram"] for path in chosen}
    for channels in channels_of(config, block):
        readers = [path for path in channels.readers if path in chosen]
        if not readers:
            continue
        told = sums[readers[0]]
        kernels = tuple(part_at(block, path)["kernel"].astype(jnp.float32) for path in readers)
        absolute = told["channels"]["absolute"] / jnp.maximum(told["channels"]["count"], 1.0)
        scales, _ = best_scales(kernels, told["gram"], absolute, channels, quantization)
        block = scaled(block, config, channels, scales)
        read = channels.spread(scales)
        grams |= {path: grams[path] / jnp.outer(read, read) for path in readers}
    for path in chosen if clip else ():
        if path.rpartition("/")[2] not in ("query", "key"):
            layer = part_at(block, path)
            block = with_part(block, path, {**layer, "kernel": clipped(layer["kernel"], grams[path], quantization)})
    return block
