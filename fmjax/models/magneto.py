"""Foundation Transformer, Magneto (Wang et al. 2022, https://arxiv.org/abs/2210.06423): Sub-LN, its initialisation."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.layers.dense import Init
from fmjax.layers.embed import Embedding
from fmjax.layers.tap import tap
from fmjax.layers.transformer import Transformer
from fmjax.layers.transformer_config import TransformerConfig
from fmjax.models.decoder import Decoder
from fmjax.models.encoder import Encoder
from fmjax.models.stack import LAYER_NORM, TextStack, stack_config


class SubLN(TextStack):
    """What the decoder and the encoder share.

    The gain (section 2.2 and figure 2) is sqrt(log(2 * num_layers)) for either; it multiplies Glorot's normal law for
    values, attention's output and both products of the MLP, while queries and keys keep gain 1. Embeddings are normal
    with standard deviation 1 / sqrt(hidden_size), as in the authors' code (TorchScale); the output head is tied to the
    tokens'.

    Attributes:
      num_layers, hidden_size, num_heads: as in TransformerConfig.
      intermediate_size: width inside the MLP; None is 4 * hidden_size.
      vocab_size: None until the data's tokenizer is known.
      max_length: number of learned positions.
      dropout: rate after the embedding, on attention probabilities and on the output of each half of a block.
      norm_eps: epsilon of LayerNorm.
    """

    num_layers: int = 12
    hidden_size: int = 768
    intermediate_size: int | None = None
    num_heads: int = 12
    vocab_size: int | None = None
    max_length: int = 1024
    dropout: float = 0.0
    norm_eps: float = 1e-5

    @property
    def transformer(self) -> TransformerConfig:
        gained = Init("glorot_normal", math.sqrt(math.log(2 * self.num_layers)))
        return stack_config(
            self, placement="sub", activation="gelu", qkv_bias=True, causal=isinstance(self, Decoder),
            qk_init=Init("glorot_normal", 1.0), value_init=gained, residual_init=gained, **LAYER_NORM,
        )  # fmt: skip

    def setup(self):
        drawn = dict(stddev=self.hidden_size**-0.5, dtype=self.dtype)
        if self.vocab_size is not None:
            self.token_embedding = Embedding(self.vocab_size, self.hidden_size, **drawn)
            if isinstance(self, Encoder):
                init = nn.with_logical_partitioning(nn.initializers.zeros, ("vocab",))
                self.head_bias = self.param("head_bias", init, (self.vocab_size,), jnp.float32)
        self.position_embedding = Embedding(self.max_length, self.hidden_size, ("position", "embed"), **drawn)
        self.embedding_dropout = nn.Dropout(self.dropout)
        self.stack = Transformer(self.transformer)

    def embedded(self, tokens, positions, train) -> jax.Array:
        """[B, T, D] in the compute dtype."""
        x = self.token_embedding(tokens) + self.position_embedding(positions)
        return tap(self, "embedded", self.embedding_dropout(x, deterministic=not train))


class Magneto(SubLN, Decoder):
    """A Magneto decoder; the defaults are the size of GPT-2 small, without a vocabulary."""

    def embed(self, tokens, positions, train) -> jax.Array:
        """[B, T, D] in the compute dtype."""
        return self.embedded(tokens, positions, train)

    def head(self) -> dict:
        """Output weights, tied to the token embedding."""
        return {"embedding": self.token_embedding.embedding}


class MagnetoEncoder(SubLN, Encoder):
    """A Magneto encoder for masked language modelling: as `Magneto`, without causal mask, with a bias on the logits."""

    max_length: int = 512
    dropout: float = 0.1

    def embed(self, tokens, positions, token_types, train) -> jax.Array:
        """[B, T, D] in the compute dtype; token types are not looked at."""
        return self.embedded(tokens, positions, train)

    def predict(self, hidden) -> tuple[jax.Array, dict]:
        """(hidden [..., D], head) from the last layer's output."""
        return hidden, {"embedding": self.token_embedding.embedding, "bias": self.head_bias}
