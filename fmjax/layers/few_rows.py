"""Products of a few rows with a weight of few bits, by `fmjax.native`: what decoding on a CPU consists of."""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fmjax import native
from fmjax.layers.codes import FORMATS
from fmjax.layers.quantized import QTensor
from fmjax.layers.scales import scale_values

MOST_ROWS = 8
"""With more rows making floats of the weight and multiplying these takes less time."""


def reads_codes(x: jax.Array, weight: QTensor, transpose: bool) -> bool:
    """Whether `few_rows_product` computes x [..., in] @ weight where it runs on a CPU: one device's weight, of int8 or
    four bits, for rows that are few."""
    kind = FORMATS[weight.format]
    known = weight.codes.dtype == jnp.int8 if kind.bits == 8 else kind.bits == 4 and weight.block % 2 == 0
    fits = known and weight.tile == 1 and weight.codes.ndim == 2 and weight.activations == "float" and not transpose
    is_one = jax.sharding.get_abstract_mesh().size <= 1
    return fits and is_one and native.is_installed() and math.prod(x.shape[:-1]) <= MOST_ROWS


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def few_rows_product(plain: Callable, x: jax.Array, weight: QTensor) -> jax.Array:
    """x [..., in] @ weight, its levels summed in float32: [..., out] in float32 on a CPU, elsewhere `plain(x, weight)`,
    which also has the derivatives. Under `vmap` each example reads the weight."""
    elsewhere = lambda x, weight: plain(x, weight).astype(jnp.float32)
    return lax.platform_dependent(x, weight, cpu=_called, default=elsewhere)


@few_rows_product.defjvp
def _derivative(plain, primals, tangents):
    _, change = jax.jvp(plain, primals, tangents)
    return few_rows_product(plain, *primals), change.astype(jnp.float32)


def _called(x, weight):
    rows = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
    out = weight.codes.shape[-1]
    call = jax.ffi.ffi_call(
        native.TARGET, jax.ShapeDtypeStruct((len(rows), out), jnp.float32), vmap_method="sequential"
    )
    y = call(rows, weight.codes, scale_values(weight.scales), _levels(weight.format))
    if weight.offsets is not None:
        blocks = rows.reshape(len(rows), -1, weight.block).sum(axis=-1)
        y = y + blocks @ weight.offset_values()
    return y.reshape(*x.shape[:-1], out)


def _levels(format: str) -> np.ndarray:
    """float32 [16]: those of codes of four bits."""
    kind = FORMATS[format]
    return np.asarray(kind.levels or np.arange(16) + kind.low, np.float32)
