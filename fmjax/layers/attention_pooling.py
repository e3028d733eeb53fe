"""A sequence as one vector by attention: what a learned query finds in it."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.layers.block import Attention
from fmjax.layers.mlp import MLP
from fmjax.layers.norm import Norm
from fmjax.layers.transformer_config import TransformerConfig


class AttentionPooling(nn.Module):
    """The "MAP" head (Zhai et al. 2022, section 3.2; Lee et al. 2019): a learned query attends to the sequence, and a
    pre-norm MLP is added to what it finds.

    Attributes:
      config: of the stack whose output is pooled: widths, heads, activation, norm and initialisation are its own.
    """

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, segment_ids: jax.Array | None = None) -> jax.Array:
        """[B, T, D] to [B, D]; segment_ids: int32 [B, T], 1 for what is attended, None for all."""
        c = self.config
        init = nn.with_logical_partitioning(nn.initializers.normal(c.hidden_size**-0.5), ("norm",))
        probe = self.param("probe", init, (c.hidden_size,), jnp.float32).astype(x.dtype)
        probe = jnp.broadcast_to(probe, (x.shape[0], 1, c.hidden_size))
        ids = None if segment_ids is None else (jnp.ones((x.shape[0], 1), jnp.int32), segment_ids)
        y, _ = Attention(c, name="attention")(probe, memory=x, segment_ids=ids, train=train)
        z = Norm(c.norm, c.norm_epsilon, name="mlp_norm")(y)
        inits = dict(up_init=c.mlp_init or c.value_init, down_init=c.residual_init)
        z = MLP(c.intermediate_size, c.activation, c.mlp_bias, **inits, dtype=c.dtype, name="mlp")(z)
        return (y + z)[:, 0]


def pooling_flops(config: TransformerConfig, length: int) -> float:
    """FLOPs of pooling `length` tokens, forward and backward, by the convention of `fmjax.layers.flops`."""
    heads, width = config.num_heads * config.head_dim, config.hidden_size
    products = 2 * width * (heads + config.intermediate_size)  # query and output of the one vector, and its MLP
    return 6.0 * (products + length * 2 * width * heads + 2 * length * heads)
