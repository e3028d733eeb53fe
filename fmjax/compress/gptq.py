"""GPTQ (Frantar et al. 2022, https://arxiv.org/abs/2210.17323): kernels rounded an input at a time, what rounding loses
made up for by the inputs that come later."""

import functools

import jax
import jax.numpy as jnp

from fmjax.compress.sweep import factor, product_error, sweep
from fmjax.errors import ConfigError
from fmjax.layers.codes import to_codes, to_levels
from fmjax.layers.quantized import QTensor, Quantization
from fmjax.layers.scales import scale_values


def check_options(quantization: Quantization, block: int, rows: int, act_order: bool, static: bool) -> None:
    """Raises ConfigError for options that do not fit each other, for kernels of `rows` inputs in blocks of `block`."""
    if act_order and not static and block != rows:
        raise ConfigError(
            f"act_order = True rounds inputs in another order than blocks of {block} of {rows} lie in; set "
            "static = True, by which scales are known beforehand, or block = 0, one scale an output"
        )
    if (quantization.double or quantization.scales == "super") and not static:
        raise ConfigError(
            "scales that are themselves of few bits need those of the whole kernel; set static = True, by which they "
            "are known before anything is rounded, or keep scales as floats"
        )


@functools.partial(jax.jit, static_argnames=("quantization", "damping", "act_order", "static", "keep_zeros"))
def gptq(
    kernel: jax.Array, gram: jax.Array, quantization: Quantization, damping: float = 0.01, act_order: bool = False,
    static: bool = False, keep_zeros: bool = False,
) -> tuple[QTensor, jax.Array]:  # fmt: skip
    """A kernel [in, out] in few bits, for inputs whose sum of x x^T is `gram` [in, in] (algorithm 1).

    The rows of a block of the quantization (the paper's group) share scales, which are those of the rows as they are
    when the first of them is rounded. An input that was never other than 0 gets a row of zeros.

    Args:
      damping: of the mean of the diagonal, what is added to it.
      act_order: inputs are rounded in the order of their squares, the largest first, while later ones are left to make
        up for it.
      static: scales are those of the kernel as it is.
      keep_zeros: weights that are 0 stay so, whatever they could make up for: of a pruned kernel.

    Returns: (the quantized kernel, the share of its product that is lost: `product_error`; NaN where the damped gram
      has no Cholesky factor, and the kernel is of no use).
    Raises ConfigError as `check_options` and where the kernel does not divide.
    """
    block, tile = quantization.cut(kernel.shape)
    rows, out = kernel.shape
    check_options(quantization, block, rows, act_order, static)
    dead = (jnp.diagonal(gram) == 0)[:, None]
    kernel = jnp.where(dead, 0.0, kernel.astype(jnp.float32))
    zeros = kernel == 0 if keep_zeros else jnp.broadcast_to(dead, kernel.shape)
    whole = quantization.quantize(kernel)
    if act_order:
        order = jnp.argsort(-jnp.diagonal(gram), stable=True)
        kernel, gram, zeros = kernel[order], gram[order][:, order], zeros[order]
    upper = factor(gram, damping)

    def rounded(row, told, decided):
        is_zero, scales = told
        return jnp.where(is_zero, 0.0, _rounded(quantization, tile, row, scales if decided is None else decided))

    if static:
        scales = jax.tree.map(lambda x: jnp.repeat(x, block, axis=0), _told(whole))
        if act_order:
            scales = jax.tree.map(lambda x: x[order], scales)
        changed, _ = sweep(kernel, upper, rounded, told=(zeros, scales))
        told = _told(whole)
    else:

        def decide(rows, _):
            part = quantization.quantize(rows)
            return jax.tree.map(lambda x: jnp.broadcast_to(x, (block, *x.shape[1:])), (part.scales, part.offsets))

        changed, decided = sweep(kernel, upper, rounded, told=(zeros, None), decide=decide, size=block)
        scales, offsets = jax.tree.map(lambda x: x[::block], decided)
        whole = whole.replace(scales=scales, offsets=offsets)
        told = _told(whole)
    lost = product_error(kernel, changed, gram)
    if act_order:
        changed = jnp.zeros_like(changed).at[order].set(changed)
    levels = _in_levels(changed, told, block, tile)[0]
    return whole.replace(codes=to_codes(levels, quantization.format)), lost


def _told(weight: QTensor):
    """(scales, offsets or None) as floats [in / block, out / tile]."""
    return scale_values(weight.scales), None if weight.offsets is None else weight.offset_values()


def _rounded(quantization, tile, row, told):
    """The nearest to a row [out] that its scales can stand for."""
    scales, offsets = jax.tree.map(lambda x: x[None], told)
    told = _told(QTensor(row[None], scales, quantization.format, 1, offsets, tile=tile))
    levels, steps, start = _in_levels(row[None], told, 1, tile)
    return nearest_levels(levels[0], quantization) * steps[0] + start[0]


def nearest_levels(x: jax.Array, quantization: Quantization) -> jax.Array:
    """The levels nearest to x [out], float32."""
    kind = quantization.kind
    if kind.is_whole:
        low = kind.low if quantization.half or kind.low == 0 else -kind.top
        return jnp.clip(jnp.round(x), low, kind.high)
    # As many rows as share bytes, all alike.
    alike = jnp.broadcast_to(x, (kind.numbers, *x.shape))
    return to_levels(to_codes(alike, quantization.format), quantization.format)[0]


def _in_levels(kernel, told, block, tile):
    """(a kernel in units of its levels, what a level is worth, what is added), each [in, out]."""
    spread = lambda x: jnp.repeat(jnp.repeat(x, block, axis=0), tile, axis=1)
    steps = spread(told[0])
    start = jnp.zeros_like(steps) if told[1] is None else spread(told[1])
    return jnp.where(steps != 0, (kernel - start) / jnp.where(steps != 0, steps, 1.0), 0.0), steps, start
