"""BERT and RoBERTa (Devlin et al. 2019, Liu et al. 2019): a post-norm encoder that predicts masked tokens."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.errors import ConfigError
from fmjax.layers.checks import check_positive
from fmjax.layers.dense import Init, Linear
from fmjax.layers.embed import Embedding
from fmjax.layers.mlp import ACTIVATIONS
from fmjax.layers.norm import Norm
from fmjax.layers.tap import tap
from fmjax.layers.transformer import Transformer
from fmjax.layers.transformer_config import TransformerConfig
from fmjax.models.encoder import Encoder
from fmjax.models.stack import LAYER_NORM, stack_config


class Bert(Encoder):
    """A BERT; the defaults are BERT base without its vocabulary.

    Kernels and embeddings are normal with standard deviation 0.02 (the original truncates at two deviations), biases 0.
    The masked-language-model head is a product, the activation, a LayerNorm, and the token embedding with a bias.

    Attributes:
      num_layers, hidden_size, num_heads: as in TransformerConfig.
      intermediate_size: width inside the MLP; None is 4 * hidden_size.
      vocab_size: None until the data's tokenizer is known.
      max_length: number of learned positions for text.
      num_token_types: rows of the segment embedding.
      position_offset: rows of the position embedding before the first position's (RoBERTa: 2).
      masked_lm_head: whether there is a masked-language-model head; without one the model gives `hidden` alone, of
        which embeddings of texts are made.
      next_sentence: whether there is a pooler with a next-sentence head on the first token.
      activation: "gelu", or another of `fmjax.layers.mlp.ACTIVATIONS` with one input.
      dropout: rate after the embedding and on the output of each half of a block.
      attention_dropout: rate on attention probabilities.
      norm_eps: epsilon of LayerNorm.
      init_std: standard deviation of kernels and embeddings.
    """

    num_layers: int = 12
    hidden_size: int = 768
    intermediate_size: int | None = None
    num_heads: int = 12
    vocab_size: int | None = None
    max_length: int = 512
    num_token_types: int = 2
    position_offset: int = 0
    masked_lm_head: bool = True
    next_sentence: bool = True
    activation: str = "gelu"
    dropout: float = 0.1
    attention_dropout: float = 0.1
    norm_eps: float = 1e-12
    init_std: float = 0.02

    def __post_init__(self):
        super().__post_init__()
        check_positive(num_token_types=self.num_token_types)

    @property
    def transformer(self) -> TransformerConfig:
        return stack_config(self, placement="post", qkv_bias=True, causal=False, **LAYER_NORM)

    def setup(self):
        size, std, init = self.hidden_size, self.init_std, Init(scale=self.init_std)
        if self.vocab_size is not None:
            self.token_embedding = Embedding(self.vocab_size, size, stddev=std, dtype=self.dtype)
        if self.vocab_size is not None and self.masked_lm_head:
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("vocab",))
            self.head_bias = self.param("head_bias", zeros, (self.vocab_size,), jnp.float32)
        self.position_embedding = Embedding(
            self.max_length + self.position_offset, size, ("position", "embed"), std, self.dtype
        )
        self.type_embedding = Embedding(self.num_token_types, size, (None, "embed"), std, self.dtype)
        self.embedding_norm = Norm("layernorm", self.norm_eps)
        self.embedding_dropout = nn.Dropout(self.dropout)
        self.stack = Transformer(self.transformer)
        if self.masked_lm_head:
            self.head_transform = Linear(size, ("embed", None), True, init, self.dtype)
            self.head_norm = Norm("layernorm", self.norm_eps)
        if self.next_sentence:
            self.pooler = Linear(size, ("embed", None), True, init, self.dtype)
            self.next_sentence_head = Linear(2, ("embed", None), True, init, "float32")

    def embed(self, tokens, positions, token_types, train) -> jax.Array:
        """[B, T, D] in the compute dtype."""
        types = jnp.zeros_like(tokens) if token_types is None else token_types
        x = self.token_embedding(tokens) + self.position_embedding(positions + self.position_offset)
        x = self.embedding_norm(x + self.type_embedding(types))
        return tap(self, "embedded", self.embedding_dropout(x, deterministic=not train))

    def predict(self, hidden) -> tuple[jax.Array, dict]:
        """(hidden [..., D], head) from the last layer's output. Raises ConfigError without a head."""
        if not self.masked_lm_head:
            if self.is_initializing():  # what there is has been made
                return hidden, {"embedding": self.token_embedding.embedding}
            raise ConfigError(
                f"this {type(self).__name__} has no masked-language-model head, so it gives no logits and fills in no "
                "masks; its embeddings of texts are Model.embed"
            )
        hidden = self.head_norm(ACTIVATIONS[self.activation](self.head_transform(hidden)))
        return hidden, {"embedding": self.token_embedding.embedding, "bias": self.head_bias}

    def pooled(self, hidden) -> jax.Array:
        """tanh of a product of each row's first token: [B, D] from the last layer's output [B, T, D]."""
        return jnp.tanh(self.pooler(hidden[:, 0]))

    def features(self, tokens, segment_ids=None, positions=None, token_types=None, train=False):
        """See `Encoder.features`."""
        if self.next_sentence and self.is_initializing():  # every parameter, whichever head is called first
            return self.pretraining(tokens, segment_ids, positions, token_types, train)[:2]
        return super().features(tokens, segment_ids, positions, token_types, train)

    @nn.nowrap
    def flops_per_example(self, shapes: dict) -> float:
        """See `Encoder.flops_per_example`; here with the head's transform and the next-sentence head."""
        (predicted,) = shapes.get("masked_positions", shapes["tokens"]) if self.masked_lm_head else (0,)
        size = self.hidden_size
        sentence = size**2 + 2 * size if self.next_sentence else 0
        encoder = super().flops_per_example(shapes | {"masked_positions": (predicted,)})
        return encoder + 6.0 * (predicted * size**2 + sentence)

    def pretraining(self, tokens, segment_ids=None, positions=None, token_types=None, train=False):
        """(hidden, head, next-sentence logits float32 [B, 2]); class 0 says that the second sentence follows."""
        hidden = self.hidden(tokens, segment_ids, positions, token_types, train)
        return *self.predict(hidden), self.next_sentence_head(self.pooled(hidden).astype(jnp.float32))


class Roberta(Bert):
    """A RoBERTa; the defaults are RoBERTa base without its vocabulary.

    BERT with one token type, no next-sentence head, and positions that begin in the third row of their table.
    """

    num_token_types: int = 1
    position_offset: int = 2
    next_sentence: bool = False
    norm_eps: float = 1e-5
