"""The one seam for products of activations with a weight.

Quantized weights, low-rank adapters and low precision enter in `dense` and nowhere else.
"""

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from fmjax.layers.checks import check_choice
from fmjax.layers.few_rows import few_rows_product, reads_codes
from fmjax.layers.observe import observe
from fmjax.layers.quantized import QTensor
from fmjax.layers.weights import (
    ADAPTED,
    DoRAWeight,
    FakeQuantized,
    LoRAWeight,
    MaskedWeight,
    ScaledWeight,
    Turned,
    column_factors,
    is_weight,
    rounded,
    value_of,
)
from fmjax.layers.whole_product import rounded_rows, whole_product
from fmjax.parallel.logical import vary_alike

MANY_ROWS = 64
"""Rows from which a product with a `Turned` weight is computed rows first, as it comes out."""

INITS = ("normal", "glorot_normal", "glorot_uniform")


@dataclasses.dataclass(frozen=True)
class Init:
    """How a kernel [in, out] is drawn.

    Attributes:
      kind: "normal" with standard deviation `scale`; "glorot_normal" and "glorot_uniform" (Glorot & Bengio 2010) with
        standard deviation `scale` * sqrt(2 / (in + out)), so that `scale` is the gain.
      scale: see above.
    """

    kind: str = "normal"
    scale: float = 0.02

    def __post_init__(self):
        check_choice("init", self.kind, INITS)

    def make(self):
        """The initializer: a function (key, shape, dtype) -> array."""
        if self.kind == "normal":
            return nn.initializers.normal(self.scale)
        # Not `variance_scaling`, whose normal law is truncated where the papers' code does not truncate.
        draw = jax.random.normal if self.kind == "glorot_normal" else _unit_uniform
        return lambda key, shape, dtype: draw(key, shape, dtype) * (self.scale * (2.0 / sum(shape)) ** 0.5)


def _unit_uniform(key, shape, dtype):
    """Uniform with standard deviation 1."""
    return jax.random.uniform(key, shape, dtype, -(3.0**0.5), 3.0**0.5)


def dense(x: jax.Array, weight, bias=None, *, dtype=None, transpose: bool = False, out_dtype=None) -> jax.Array:
    """x @ weight + bias.

    Args:
      x: [..., in].
      weight: [in, out], or [out, in] with `transpose` (a tied output head uses its embedding table that way), an array
        or a weight of `fmjax.layers.weights`: of one with adapters base and adapters each take a product, a quantized
        one is computed for its product, and again for its gradient, or, where it says so, multiplied as whole numbers
        with x as such; `FakeQuantized` is rounded for it; or `Turned`, whatever `transpose` says.
      bias: [out] or None.
      dtype: both factors are cast to it before the product; None keeps x's.
      transpose: contract over the weight's last axis instead of its first.
      out_dtype: dtype in which products are accumulated and returned; None is `dtype`.

    Returns: [..., out].
    """
    dtype = jnp.dtype(dtype or x.dtype)
    out_dtype = jnp.dtype(out_dtype or dtype)
    if isinstance(weight, QTensor) and weight.is_table:
        weight, transpose = weight.replace(is_table=False), not transpose
    if isinstance(weight, Turned):
        y = _turned_product(x.astype(dtype), weight.weight, out_dtype)
    elif isinstance(weight, FakeQuantized):
        y = _fake_product(x.astype(dtype), weight, transpose, out_dtype)
    elif isinstance(weight, ADAPTED):
        y = _adapted_product(x, weight, transpose, dtype, out_dtype)
    elif isinstance(weight, MaskedWeight):
        y = _product(x.astype(dtype), value_of(weight), transpose, out_dtype)
    elif isinstance(weight, QTensor) and weight.activations == "int8":
        y = _rounded_product(x.astype(dtype), weight, transpose, out_dtype)
    elif isinstance(weight, QTensor):
        # Kept is what it is computed from; an array as large as the kernel would be kept a layer.
        product = jax.checkpoint(lambda x, weight: _product(x, weight.value(dtype), transpose, out_dtype))
        if reads_codes(x, weight, transpose):
            product = partial(few_rows_product, product)
        y = product(x.astype(dtype), weight).astype(out_dtype)
    else:
        y = _product(x.astype(dtype), weight, transpose, out_dtype)
    return y if bias is None else y + bias.astype(y.dtype)


def _adapted_product(x, weight, transpose, dtype, out_dtype):
    """x @ weight of one that is made around a base."""
    product = partial(dense, dtype=dtype, transpose=transpose, out_dtype=out_dtype)
    if isinstance(weight, ScaledWeight):
        # Rounded to bfloat16 last: there factors such as 1.001, and what they change in it, are lost.
        if transpose:
            return product(x.astype(jnp.float32) * weight.columns, weight.base)
        return (product(x, weight.base, out_dtype=jnp.float32) * weight.columns).astype(out_dtype)
    if isinstance(weight, DoRAWeight):
        constants = lax.stop_gradient((weight.base, weight.a, weight.b))
        base, a, b = value_of(constants[0]), *constants[1:]
        columns = column_factors(weight.magnitude, base + weight.scale * a @ b)
        return product(x, ScaledWeight(LoRAWeight(weight.base, weight.a, weight.b, weight.scale), columns))
    inner, outer = (weight.b, weight.a) if transpose else (weight.a, weight.b)
    low = dense(x, inner, dtype=dtype, transpose=transpose) * jnp.asarray(weight.scale, dtype)
    return product(x, weight.base) + product(low, outer)


@partial(jax.checkpoint, static_argnums=(2, 3))
def _fake_product(x, weight, transpose, out_dtype):
    """x @ weight of one that is rounded anew in every product, and again for its gradient."""
    if weight.quantization.activations == "int8":
        x = rounded_rows(x)
    return _product(x, rounded(weight.base, weight.quantization), transpose, out_dtype)


@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _rounded_product(x, weight, transpose, out_dtype):
    return whole_product(x, weight, transpose).astype(out_dtype)


@_rounded_product.defjvp
def _straight_through(transpose, out_dtype, primals, tangents):
    """As if x were not rounded (Bengio et al. 2013)."""
    (x, weight), (dx, _) = primals, tangents
    return _rounded_product(x, weight, transpose, out_dtype), _product(dx, weight.value(x.dtype), transpose, out_dtype)


def _turned_product(x, weight, out_dtype):
    rows = x.reshape(-1, x.shape[-1])
    weight = weight.astype(x.dtype)
    if len(rows) == 1:
        y = lax.dot_general(weight, rows[0], (((1,), (0,)), ((), ())), preferred_element_type=out_dtype)
    elif len(rows) >= MANY_ROWS:
        y = lax.dot_general(rows, weight, (((1,), (1,)), ((), ())), preferred_element_type=out_dtype)
    else:
        y = lax.dot_general(weight, rows, (((1,), (1,)), ((), ())), preferred_element_type=out_dtype)
        # Without the barrier XLA turns the product around, which takes longer.
        y = lax.optimization_barrier(y).T
    return y.reshape(*x.shape[:-1], weight.shape[0])


# The product is a primitive because its gradients are written out and a `custom_vjp` has no forward mode: what is
# bilinear has derivatives of either mode and any order once its two transposes are given. They are written out because
# the order of factors decides what XLA's CPU backend does. In the weight's gradient the first factor is copied to be
# transposed, so it must be the smaller one; autodiff takes the output's gradient there. The weight's gradient is
# accumulated in the weight's own dtype, which no product of two bfloat16 factors has as its transpose.


def _dot(x, weight, *, transpose, out_dtype):
    """[..., out]; leading axes of weight beyond two are shared with x."""
    shared = tuple(range(weight.ndim - 2))
    contracted = ((x.ndim - 1,), (weight.ndim - (1 if transpose else 2),))
    return lax.dot_general(x, weight.astype(x.dtype), (contracted, (shared, shared)), preferred_element_type=out_dtype)


def weight_gradient(x: jax.Array, g: jax.Array, transpose: bool, dtype, shared: int = 0) -> jax.Array:
    """The sum over rows of x_i g_j: [in, out] from x [..., in] and g [..., out], or [out, in] with `transpose`.

    Of `shared` leading axes each index has a sum of its own.
    """
    rows, own = tuple(range(shared, x.ndim - 1)), tuple(range(shared))
    swap = g.shape[-1] < x.shape[-1]
    factors = (g, x) if swap else (x, g)
    product = lax.dot_general(*factors, ((rows, rows), (own, own)), preferred_element_type=dtype)
    # Without the barrier XLA folds the transposition into the product, and the factors are back in the slow order.
    return lax.optimization_barrier(product).swapaxes(-1, -2) if swap != transpose else product


def _input_transposed(g, x, weight, *, transpose, out_dtype):
    return _product(g.astype(x.aval.dtype), weight, not transpose, x.aval.dtype)


def _weight_transposed(g, x, weight, *, transpose, out_dtype):
    return weight_gradient(x, g.astype(x.dtype), transpose, weight.aval.dtype, weight.aval.ndim - 2)


def _batched(arrays, axes, **options):
    """Under `vmap`: an axis of x alone is one of rows, others are shared."""
    (x, weight), (x_axis, weight_axis) = arrays, axes
    if weight_axis is None:
        shared = weight.ndim - 2
        return product_p.bind(jnp.moveaxis(x, x_axis, shared), weight, **options), shared
    weight = jnp.moveaxis(weight, weight_axis, 0)
    x = jnp.broadcast_to(x, (len(weight), *x.shape)) if x_axis is None else jnp.moveaxis(x, x_axis, 0)
    return product_p.bind(x, weight, **options), 0


product_p = Primitive("product")
product_p.def_impl(jax.jit(_dot, static_argnames=("transpose", "out_dtype")))
product_p.def_abstract_eval(lambda *like, **options: jax.make_jaxpr(partial(_dot, **options))(*like).out_avals[0])
mlir.register_lowering(product_p, mlir.lower_fun(_dot, multiple_results=False))
ad.defbilinear(product_p, _input_transposed, _weight_transposed)
batching.primitive_batchers[product_p] = _batched


def _product(x, weight, transpose, out_dtype):
    return product_p.bind(*vary_alike(x, weight), transpose=transpose, out_dtype=out_dtype)


def weight_param(module: nn.Module, name: str, init, shape: tuple[int, int]):
    """A parameter, float32, of a module that is handed to `dense`: where it is already more than an array, that."""
    held = module.get_variable("params", name)
    if isinstance(held, Turned) or is_weight(held):
        return held
    return module.param(name, init, shape, jnp.float32)


class Linear(nn.Module):
    """A dense layer with parameters `kernel` [in, features] and, optionally, `bias` [features], in float32.

    Attributes:
      features: size of the output.
      names: logical names of the kernel's two axes; the bias carries the second.
      use_bias: whether to add a bias, initially 0.
      kernel_init: how the kernel is drawn.
      dtype: dtype of the product.
    """

    features: int
    names: tuple[str, str]
    use_bias: bool = False
    kernel_init: Init = Init()
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.with_logical_partitioning(self.kernel_init.make(), self.names)
        kernel = weight_param(self, "kernel", init, (x.shape[-1], self.features))
        bias = None
        if self.use_bias:
            init = nn.with_logical_partitioning(nn.initializers.zeros, self.names[1:])
            bias = self.param("bias", init, (self.features,), jnp.float32)
        observe(self, x)
        return dense(x, kernel, bias, dtype=self.dtype)
