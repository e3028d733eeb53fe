"""Qwen 3 (Yang et al. 2025): LLaMA with a norm on queries and keys, and heads wider than hidden_size / num_heads."""

import dataclasses

from fmjax.layers.transformer_config import TransformerConfig
from fmjax.models.llama import Llama


class Qwen3(Llama):
    """A Qwen 3 decoder (the dense ones); the defaults are Qwen 3 0.6B without its vocabulary. Fields as `Llama`."""

    num_layers: int = 28
    hidden_size: int = 1024
    intermediate_size: int | None = 3072
    num_heads: int = 16
    num_kv_heads: int | None = 8
    head_dim: int | None = 128
    max_length: int = 40960
    rope_theta: float = 1e6
    tie_embeddings: bool = True
    norm_eps: float = 1e-6

    @property
    def transformer(self) -> TransformerConfig:
        return dataclasses.replace(super().transformer, qk_norm=True)
