"""Gemma 3, text (Gemma Team 2025, https://arxiv.org/abs/2503.19786): local and global layers, each its rotary base."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from fmjax.layers.position import Rope
from fmjax.layers.tap import tap
from fmjax.layers.transformer_config import TransformerConfig, layer_kinds
from fmjax.models.llama import Llama


class Gemma3(Llama):
    """A Gemma 3 text decoder; the defaults are Gemma 3 270M without its vocabulary.

    Fields as `Llama`, and:

    Attributes:
      local_rope_theta: base of the rotary embedding in local layers, which `rope_scaling` leaves alone.
      query_scale: what queries are multiplied by; None is 1 / sqrt(head_dim).
    """

    num_layers: int = 18
    hidden_size: int = 640
    intermediate_size: int | None = 2048
    num_heads: int = 4
    num_kv_heads: int | None = 1
    head_dim: int | None = 256
    max_length: int = 32768
    rope_theta: float = 1e6
    local_rope_theta: float = 10000.0
    window: int | None = 512
    layer_pattern: tuple[str, ...] = ("local", "local", "local", "local", "local", "global")
    query_scale: float | None = None
    tie_embeddings: bool = True
    norm_eps: float = 1e-6

    @property
    def transformer(self) -> TransformerConfig:
        ropes = Rope(self.rope_theta, self.rope_scaling), Rope(self.local_rope_theta)
        return dataclasses.replace(
            super().transformer,
            pattern=layer_kinds(self.window, self.layer_pattern, *ropes),
            norm="rmsnorm_offset",
            placement="sandwich",
            activation="geglu_tanh",
            qk_norm=True,
            query_scale=self.query_scale,
        )

    def embed(self, tokens, positions, train) -> jax.Array:
        """[B, T, D] in the compute dtype, scaled by sqrt(hidden_size) as rounded to that dtype."""
        x = self.token_embedding(tokens)
        return tap(self, "embedded", x * jnp.asarray(math.sqrt(self.hidden_size), self.dtype))
