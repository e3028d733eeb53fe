"""Vectors as logits over prototypes: the head of self-distillation."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.layers.dense import Init, Linear, dense
from fmjax.layers.mlp import gelu
from fmjax.layers.norm import unit


class ProjectionHead(nn.Module):
    """DINO's head (Caron et al. 2021, appendix C): three products with a GELU between each two, a vector of length 1,
    and its cosines with prototypes, which are columns of length 1 of a last product.

    Attributes:
      num_prototypes: logits of a vector.
      hidden_size, bottleneck_size: of the inner products, and of the vector.
      dtype: of the products; logits are float32.
    """

    num_prototypes: int = 65536
    hidden_size: int = 2048
    bottleneck_size: int = 256
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] to float32 [..., num_prototypes], from -1 to 1."""
        options = dict(use_bias=True, kernel_init=Init(scale=0.02), dtype=self.dtype)
        x = gelu(Linear(self.hidden_size, ("embed", "mlp"), **options, name="up")(x))
        x = gelu(Linear(self.hidden_size, ("mlp", "embed"), **options, name="inner")(x))
        x = unit(Linear(self.bottleneck_size, ("embed", None), **options, name="bottleneck")(x))
        init = nn.with_logical_partitioning(nn.initializers.normal(0.02), ("embed", "vocab"))
        prototypes = self.param("prototypes", init, (self.bottleneck_size, self.num_prototypes), jnp.float32)
        return dense(x, unit(prototypes.T).T, dtype=self.dtype).astype(jnp.float32)
