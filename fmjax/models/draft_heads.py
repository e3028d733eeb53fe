"""Heads that draft tokens ahead for a decoder that stays as it is."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.layers.checks import check_positive
from fmjax.layers.dense import Init, Linear


class DraftHeads(nn.Module):
    """Of what a decoder's last layer gives at a token, one vector a head: h + SiLU(W h + b), from which the decoder's
    own output head reads the token that is one further than the last head's (Medusa, Cai et al. 2024,
    https://arxiv.org/abs/2401.10774, section 2.1.1).

    There each head has an output matrix of its own, which begins as the decoder's; here it stays the decoder's, and one
    product serves all heads. W and b begin as zeros, so that each drafts what the decoder says of the next token.

    Attributes:
      num_heads: tokens ahead: head 1 drafts the token after the next one.
      hidden_size: the decoder's.
      dtype: of the products.
    """

    CAUSAL = False  # nothing to score or to continue by themselves

    num_heads: int = 3
    hidden_size: int = 512
    dtype: str = "float32"

    def __post_init__(self):
        super().__post_init__()
        check_positive(num_heads=self.num_heads, hidden_size=self.hidden_size)

    def setup(self):
        init = Init(scale=0.0)
        make = lambda: Linear(self.hidden_size, ("embed", None), True, init, self.dtype)
        self.heads = [make() for _ in range(self.num_heads)]

    def __call__(self, tokens, hidden=None) -> jax.Array:
        """[B, T, H, D], of the decoder's last layer [B, T, D] at tokens int32 [B, T]; None is zeros."""
        size = (*tokens.shape, self.hidden_size)
        return self.drafted(jnp.zeros(size, self.dtype) if hidden is None else hidden)

    def drafted(self, hidden) -> jax.Array:
        """[..., H, D] of the decoder's last layer [..., D]."""
        hidden = hidden.astype(self.dtype)
        return jnp.stack([hidden + nn.silu(head(hidden)) for head in self.heads], axis=-2)

    @nn.nowrap
    def example(self) -> dict[str, jax.ShapeDtypeStruct]:
        """What `__call__` takes, by name, as small as it can be."""
        return {"tokens": jax.ShapeDtypeStruct((1, 1), jnp.int32)}
