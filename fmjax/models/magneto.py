"""Foundation Transformer, Magneto (Wang et al. 2022, https://arxiv.org/abs/2210.06423): Sub-LN, its initialisation."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.layers.dense import Init
from fmjax.layers.embed import Embedding
from fmjax.layers.tap import tap
from fmjax.layers.transformer import Transformer, TransformerConfig
from fmjax.models.decoder import Decoder
from fmjax.models.encoder import Encoder
from fmjax.models.stack import LAYER_NORM, stack_config


def sub_ln_config(module, causal: bool) -> TransformerConfig:
    """The stack of a decoder or an encoder by itself.

    The gain (section 2.2 and figure 2) is sqrt(log(2 * num_layers)) for either; it multiplies Glorot's normal law for
    values, attention's output and both products of the MLP, while queries and keys keep gain 1.
    """
    gained = Init("glorot_normal", math.sqrt(math.log(2 * module.num_layers)))
    inits = dict(qk_init=Init("glorot_normal", 1.0), value_init=gained, residual_init=gained)
    return stack_config(module, placement="sub", activation="gelu", qkv_bias=True, causal=causal, **inits, **LAYER_NORM)


class Magneto(Decoder):
    """A Magneto decoder; the defaults are the size of GPT-2 small, without a vocabulary.

    Embeddings are normal with standard deviation 1 / sqrt(hidden_size), as in the authors' code (TorchScale); the
    output head is tied to the tokens'.

    Attributes:
      num_layers, hidden_size, num_heads: as in TransformerConfig.
      intermediate_size: width inside the MLP; None is 4 * hidden_size.
      vocab_size: None until the data's tokenizer is known.
      max_length: number of learned positions.
      dropout: rate after the embedding, on attention probabilities and on the output of each half of a block.
      norm_eps: epsilon of LayerNorm.
      dtype, remat, attention, unroll, scan_layers: as in TransformerConfig.
    """

    num_layers: int = 12
    hidden_size: int = 768
    intermediate_size: int | None = None
    num_heads: int = 12
    vocab_size: int | None = None
    max_length: int = 1024
    dropout: float = 0.0
    norm_eps: float = 1e-5
    dtype: str = "float32"
    remat: str = "none"
    attention: str = "auto"
    unroll: int = 1
    scan_layers: bool = True

    @property
    def transformer(self) -> TransformerConfig:
        return sub_ln_config(self, causal=True)

    def setup(self):
        drawn = dict(stddev=self.hidden_size**-0.5, dtype=self.dtype)
        if self.vocab_size is not None:
            self.token_embedding = Embedding(self.vocab_size, self.hidden_size, **drawn)
        self.position_embedding = Embedding(self.max_length, self.hidden_size, ("position", "embed"), **drawn)
        self.embedding_dropout = nn.Dropout(self.dropout)
        self.stack = Transformer(self.transformer)

    def embed(self, tokens, positions, train) -> jax.Array:
        """[B, T, D] in the compute dtype."""
        x = self.token_embedding(tokens) + self.position_embedding(positions)
        return tap(self, "embedded", self.embedding_dropout(x, deterministic=not train))

    def head(self) -> dict:
        """Output weights, tied to the token embedding."""
        return {"embedding": self.token_embedding.embedding}


class MagnetoEncoder(Encoder):
    """A Magneto encoder for masked language modelling: as `Magneto`, without causal mask, with a bias on the logits.

    Attributes:
      num_layers, hidden_size, intermediate_size, num_heads, vocab_size, max_length, dropout, norm_eps: as in Magneto.
      dtype, remat, attention, unroll, scan_layers: as in TransformerConfig.
    """

    num_layers: int = 12
    hidden_size: int = 768
    intermediate_size: int | None = None
    num_heads: int = 12
    vocab_size: int | None = None
    max_length: int = 512
    dropout: float = 0.1
    norm_eps: float = 1e-5
    dtype: str = "float32"
    remat: str = "none"
    attention: str = "auto"
    unroll: int = 1
    scan_layers: bool = True

    @property
    def transformer(self) -> TransformerConfig:
        return sub_ln_config(self, causal=False)

    def setup(self):
        drawn = dict(stddev=self.hidden_size**-0.5, dtype=self.dtype)
        if self.vocab_size is not None:
            self.token_embedding = Embedding(self.vocab_size, self.hidden_size, **drawn)
            init = nn.with_logical_partitioning(nn.initializers.zeros, ("vocab",))
            self.head_bias = self.param("head_bias", init, (self.vocab_size,), jnp.float32)
        self.position_embedding = Embedding(self.max_length, self.hidden_size, ("position", "embed"), **drawn)
        self.embedding_dropout = nn.Dropout(self.dropout)
        self.stack = Transformer(self.transformer)

    def embed(self, tokens, positions, token_types, train) -> jax.Array:
        """[B, T, D] in the compute dtype; token types are not looked at."""
        x = self.token_embedding(tokens) + self.position_embedding(positions)
        return tap(self, "embedded", self.embedding_dropout(x, deterministic=not train))

    def predict(self, hidden) -> tuple[jax.Array, dict]:
        """(hidden [..., D], head) from the last layer's output."""
        return hidden, {"embedding": self.token_embedding.embedding, "bias": self.head_bias}
