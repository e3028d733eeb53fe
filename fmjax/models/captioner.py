"""A decoder of captions: a text by cross attention to what an image tower found (LocCa, Wan et al. 2024)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.layers.attention.reference import Ordered
from fmjax.layers.dense import Init, weight_param
from fmjax.layers.embed import Embedding, output_logits
from fmjax.layers.flops import transformer_flops
from fmjax.layers.tap import check_edits, tap
from fmjax.layers.transformer import Transformer
from fmjax.layers.transformer_config import TransformerConfig
from fmjax.models.stack import LAYER_NORM, TextStack, check_tokens, stack_config
from fmjax.parallel.logical import constrain


class Captioner(TextStack):
    """A pre-norm decoder over learned positions, with cross attention and an output head of its own.

    A text is read in one of two ways, row by row (Tschannen et al. 2023, "CapPa"): token by token, each predicted of
    those before it; or in parallel, every token predicted at once of an input that is the mask token alone, without a
    causal mask. Two tokens lie behind the vocabulary: `end_id`, which a text also starts from, and `mask_id`.

    Attributes:
      num_layers, hidden_size, intermediate_size, num_heads: as in TransformerConfig; LocCa's decoder has the text
        tower's with half of the layers.
      vocab_size: None until the data's tokenizer is known.
      max_length: number of learned positions.
      activation: "gelu_tanh", or another of `fmjax.layers.mlp.ACTIVATIONS`.
      norm_eps: epsilon of LayerNorm.
      dropout: rate on the output of each half of a block.
      attention_dropout: rate on attention probabilities; None is `dropout`.
      init_std: standard deviation of the initialisation.
    """

    CAUSAL = False  # it continues no texts by itself: an image comes first

    num_layers: int = 6
    hidden_size: int = 768
    intermediate_size: int | None = None
    num_heads: int = 12
    vocab_size: int | None = None
    max_length: int = 64
    activation: str = "gelu_tanh"
    norm_eps: float = 1e-6
    dropout: float = 0.0
    attention_dropout: float | None = None
    init_std: float = 0.02

    @property
    def transformer(self) -> TransformerConfig:
        return stack_config(self, causal=True, cross_attention=True, qkv_bias=True, **LAYER_NORM)

    @property
    def end_id(self) -> int:
        return self.vocab_size

    @property
    def mask_id(self) -> int:
        return self.vocab_size + 1

    def setup(self):
        if self.vocab_size is not None:
            names = ("embed", "vocab")
            self.token_embedding = Embedding(
                self.vocab_size + 2, self.hidden_size, stddev=self.init_std, dtype=self.dtype
            )
            init = nn.with_logical_partitioning(Init(scale=self.init_std).make(), names)
            self.head_kernel = weight_param(self, "head", init, (self.hidden_size, self.vocab_size + 2))
        self.position_embedding = Embedding(
            self.max_length, self.hidden_size, ("position", "embed"), self.init_std, self.dtype
        )
        self.stack = Transformer(self.transformer)

    def __call__(self, tokens, memory, memory_segment_ids=None, parallel=None, train: bool = False) -> jax.Array:
        """Logits of each token of a text, float32 [B, T, vocab_size + 2]; arguments as `states`."""
        logits = output_logits(*self.states(tokens, memory, memory_segment_ids, parallel, train))
        return constrain(logits, ("batch", "length", "act_vocab"))

    def states(self, tokens, memory, memory_segment_ids=None, parallel=None, train: bool = False):
        """(hidden [B, T, D], head): `output_logits(hidden, head)` are the logits of `tokens`.

        Args:
          tokens: int32 [B, T], the texts that are predicted; T at most max_length. What is behind a text's end is read
            by nothing before it.
          memory: float [B, S, E], an image's tokens.
          memory_segment_ids: int32 [B, S], 0 for those that are padding; None is without padding.
          parallel: bool [B], which rows are predicted in parallel; None for none.
          train: whether dropout is on.
        """
        check_tokens(self, tokens)
        check_edits(self, tokens, memory, memory_segment_ids, parallel, train)
        start = jnp.full_like(tokens[:, :1], self.end_id)
        inputs, segments = jnp.concatenate([start, tokens[:, :-1]], axis=1), jnp.ones_like(tokens)
        if parallel is not None:
            inputs = jnp.where(parallel[:, None], self.mask_id, inputs)
            segments = Ordered(segments, jnp.where(parallel[:, None], 0, jnp.arange(tokens.shape[1])[None]))
        x = self.token_embedding(inputs) + self.position_embedding(jnp.arange(tokens.shape[1])[None])
        x = constrain(tap(self, "embedded", x), ("batch", "length", "act_embed"))
        x, _ = self.stack(x, segment_ids=segments, memory=(memory, memory_segment_ids), train=train)
        return x, {"kernel": self.head_kernel}

    @nn.nowrap
    def example(self) -> dict[str, jax.ShapeDtypeStruct]:
        """What `__call__` takes, by name; the memory is of this decoder's own width."""
        return super().example() | {"memory": jax.ShapeDtypeStruct((1, 1, self.hidden_size), jnp.float32)}

    @nn.nowrap
    def flops_per_example(self, shapes: dict) -> float:
        """FLOPs of forward and backward over one text, by the convention of `fmjax.layers.flops`; `shapes` has that of
        "memory" too, whose width counts as this decoder's."""
        return transformer_flops(
            self.transformer, vocab_size=self.vocab_size + 2, sequence_length=shapes["tokens"][0],
            memory_length=shapes["memory"][0],
        )  # fmt: skip
