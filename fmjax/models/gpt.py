"""GPT, GPT-2, GPT-3 (Radford et al. 2018, 2019; Brown et al. 2020): learned positions, GELU, biases, tied head."""

import math

import flax.linen as nn
import jax

from fmjax.layers.dense import Init
from fmjax.layers.embed import Embedding
from fmjax.layers.tap import tap
from fmjax.layers.transformer import Transformer
from fmjax.layers.transformer_config import TransformerConfig, layer_kinds
from fmjax.models.decoder import Decoder
from fmjax.models.stack import LAYER_NORM, stack_config


class GPT(Decoder):
    """A GPT-2 style decoder; the defaults are GPT-2 small without its vocabulary.

    GPT (2018) is placement="post" with position_init_std=0.02 and scale_residual_init=False. GPT-3 is
    layer_pattern=("global", "local") with a window: its dense and locally banded layers alternate.

    Initialisation follows OpenAI's release and section 2.3 of the GPT-2 paper: kernels and token embedding normal 0.02,
    positions normal 0.01 (Hugging Face's port takes 0.02 there), biases 0, and the two kernels of each block that write
    to the residual stream scaled by 1 / sqrt(2 * num_layers).

    Attributes:
      num_layers, hidden_size, num_heads: as in TransformerConfig.
      intermediate_size: width inside the MLP; None is 4 * hidden_size.
      head_dim: width of a head; None is hidden_size / num_heads.
      vocab_size: None until the data's tokenizer is known.
      max_length: number of learned positions.
      placement: "pre" normalises the input of each half of a block, "post" its output after the residual sum.
      activation: "gelu_tanh", or another of `fmjax.layers.mlp.ACTIVATIONS`.
      window, layer_pattern: as in `layer_kinds`.
      qkv_bias: whether the products of query, key and value have biases (GPT-Neo: no).
      query_scale: what queries are multiplied by; None is 1 / sqrt(head_dim) (GPT-Neo: 1).
      dropout: rate after the embedding, on attention probabilities and on the output of each half of a block.
      norm_eps: epsilon of LayerNorm.
      init_std: standard deviation of kernels and token embedding.
      position_init_std: standard deviation of positions.
      scale_residual_init: whether kernels that write to the residual stream are scaled by 1 / sqrt(2 * num_layers).
    """

    num_layers: int = 12
    hidden_size: int = 768
    intermediate_size: int | None = None
    num_heads: int = 12
    head_dim: int | None = None
    vocab_size: int | None = None
    max_length: int = 1024
    placement: str = "pre"
    activation: str = "gelu_tanh"
    window: int | None = None
    layer_pattern: tuple[str, ...] = ()
    qkv_bias: bool = True
    query_scale: float | None = None
    dropout: float = 0.0
    norm_eps: float = 1e-5
    init_std: float = 0.02
    position_init_std: float = 0.01
    scale_residual_init: bool = True

    @property
    def transformer(self) -> TransformerConfig:
        depth = math.sqrt(2 * max(1, self.num_layers)) if self.scale_residual_init else 1.0
        return stack_config(
            self,
            pattern=layer_kinds(self.window, self.layer_pattern),
            residual_init=Init(scale=self.init_std / depth),
            **LAYER_NORM,
        )

    def setup(self):
        if self.vocab_size is not None:
            self.token_embedding = Embedding(
                self.num_embedded, self.hidden_size, stddev=self.init_std, dtype=self.dtype
            )
        self.position_embedding = Embedding(
            self.max_length, self.hidden_size, ("position", "embed"), self.position_init_std, self.dtype
        )
        self.embedding_dropout = nn.Dropout(self.dropout)
        self.stack = Transformer(self.transformer)

    @property
    def num_embedded(self) -> int:
        """Rows of the token embedding."""
        return self.vocab_size

    def embed(self, tokens, positions, train) -> jax.Array:
        """[B, T, D] in the compute dtype."""
        x = self.token_embedding(tokens) + self.position_embedding(positions)
        return tap(self, "embedded", self.embedding_dropout(x, deterministic=not train))

    def head(self) -> dict:
        """Output weights, tied to the token embedding."""
        return {"embedding": self.token_embedding.embedding}
