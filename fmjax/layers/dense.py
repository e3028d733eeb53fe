"""The one seam for products of activations with a weight.

Quantized weights, low-rank adapters and low precision enter in `dense` and nowhere else.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax


def dense(x: jax.Array, weight, bias=None, *, dtype=None, transpose: bool = False, out_dtype=None) -> jax.Array:
    """x @ weight + bias.

    Args:
      x: [..., in].
      weight: [in, out], or [out, in] with `transpose` (a tied output head uses its embedding table that way).
      bias: [out] or None.
      dtype: both factors are cast to it before the product; None keeps x's.
      transpose: contract over the weight's last axis instead of its first.
      out_dtype: dtype in which products are accumulated and returned; None is `dtype`.

    Returns: [..., out].
    """
    dtype = jnp.dtype(dtype or x.dtype)
    contracted = 1 if transpose else 0
    y = lax.dot_general(
        x.astype(dtype),
        weight.astype(dtype),
        (((x.ndim - 1,), (contracted,)), ((), ())),
        preferred_element_type=out_dtype or dtype,
    )
    return y if bias is None else y + bias.astype(y.dtype)


class Linear(nn.Module):
    """A dense layer with parameters `kernel` [in, features] and, optionally, `bias` [features], in float32.

    Attributes:
      features: size of the output.
      names: logical names of the kernel's two axes; the bias carries the second.
      use_bias: whether to add a bias, initially 0.
      stddev: standard deviation of the kernel's normal initialisation.
      dtype: dtype of the product.
    """

    features: int
    names: tuple[str, str]
    use_bias: bool = False
    stddev: float = 0.02
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.with_logical_partitioning(nn.initializers.normal(self.stddev), self.names)
        kernel = self.param("kernel", init, (x.shape[-1], self.features), jnp.float32)
        bias = None
        if self.use_bias:
            init = nn.with_logical_partitioning(nn.initializers.zeros, self.names[1:])
            bias = self.param("bias", init, (self.features,), jnp.float32)
        return dense(x, kernel, bias, dtype=self.dtype)
