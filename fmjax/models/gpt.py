"""GPT-2 and GPT-3 (Radford et al. 2019, Brown et al. 2020): pre-norm, learned positions, GELU, biases, tied embeddings."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.layers.checks import check_positive
from fmjax.layers.embed import Embedding
from fmjax.layers.position import positions_from_segments
from fmjax.layers.tap import tap
from fmjax.layers.transformer import Transformer, TransformerConfig, head_size
from fmjax.models.decoder import Decoder


class GPT(Decoder):
    """A GPT-2 style decoder; the defaults are GPT-2 small without its vocabulary.

    Initialisation follows OpenAI's release and section 2.3 of the GPT-2 paper: kernels and token embedding normal 0.02,
    positions normal 0.01 (Hugging Face's port takes 0.02 there), biases 0, and the two kernels of each block that write
    to the residual stream scaled by 1 / sqrt(2 * num_layers).

    Attributes:
      num_layers, hidden_size, num_heads: size of the stack.
      intermediate_size: width of the MLP; None is 4 * hidden_size.
      head_dim: None is hidden_size / num_heads.
      vocab_size: None until the data's tokenizer is known.
      max_length: number of learned positions.
      window: attend to this many last tokens only; None for all.
      dropout: rate after the embedding, on attention probabilities and on the output of each half of a block.
      norm_eps: epsilon of LayerNorm.
      init_std: standard deviation of kernels and token embedding.
      dtype: compute dtype (float32, bfloat16); parameters are float32.
      remat, attention, unroll: as in TransformerConfig.
    """

    num_layers: int = 12
    hidden_size: int = 768
    intermediate_size: int | None = None
    num_heads: int = 12
    head_dim: int | None = None
    vocab_size: int | None = None
    max_length: int = 1024
    window: int | None = None
    dropout: float = 0.0
    norm_eps: float = 1e-5
    init_std: float = 0.02
    dtype: str = "float32"
    remat: str = "none"
    attention: str = "auto"
    unroll: int = 1

    def __post_init__(self):
        super().__post_init__()
        check_positive(max_length=self.max_length)
        self.transformer  # checks the rest

    @property
    def transformer(self) -> TransformerConfig:
        return TransformerConfig(
            num_layers=self.num_layers,
            hidden_size=self.hidden_size,
            intermediate_size=4 * self.hidden_size if self.intermediate_size is None else self.intermediate_size,
            num_heads=self.num_heads,
            num_kv_heads=self.num_heads,
            head_dim=head_size(self.hidden_size, self.num_heads, self.head_dim),
            norm="layernorm",
            norm_epsilon=self.norm_eps,
            activation="gelu_tanh",
            use_bias=True,
            window=self.window,
            dropout=self.dropout,
            stddev=self.init_std,
            residual_stddev=self.init_std / math.sqrt(2 * max(1, self.num_layers)),
            attention=self.attention,
            dtype=self.dtype,
            remat=self.remat,
            unroll=self.unroll,
        )

    def setup(self):
        if self.vocab_size is not None:
            self.token_embedding = Embedding(self.vocab_size, self.hidden_size, stddev=self.init_std)
        self.position_embedding = Embedding(self.max_length, self.hidden_size, ("position", "embed"), stddev=0.01)
        self.embedding_dropout = nn.Dropout(self.dropout)
        self.stack = Transformer(self.transformer)

    def embed(self, tokens, segment_ids, positions, train) -> jax.Array:
        """[B, T, D] in the compute dtype."""
        if positions is None:
            alone = segment_ids is None
            positions = jnp.arange(tokens.shape[1])[None] if alone else positions_from_segments(segment_ids)
        x = self.token_embedding(tokens) + self.position_embedding(positions)
        return tap(self, "embedded", self.embedding_dropout(x.astype(self.dtype), deterministic=not train))

    def head(self) -> dict:
        """Output weights, tied to the token embedding."""
        return {"embedding": self.token_embedding.embedding}
