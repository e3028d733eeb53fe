"""The text tower of CLIP and SigLIP: a whole text as one vector."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.errors import ConfigError
from fmjax.layers.checks import check_choice
from fmjax.layers.dense import Init, Linear
from fmjax.layers.embed import Embedding
from fmjax.layers.flops import transformer_flops
from fmjax.layers.tap import check_edits, tap
from fmjax.layers.transformer import Transformer
from fmjax.layers.transformer_config import TransformerConfig
from fmjax.models.stack import LAYER_NORM, TextStack, check_tokens, stack_config
from fmjax.parallel.logical import constrain

POOLINGS = ("last", "first_eos", "largest_id")


class TextTower(TextStack):
    """A pre-norm stack over learned positions, pooled at one token; the defaults are CLIP ViT-B/32's text tower.

    Initialisation is that of CLIP (Radford et al. 2021, section 2.4, and its release), where w is the width and L the
    depth: tokens 0.02, positions 0.01, queries, keys and values w^-1/2, the MLP's first product (2 w)^-1/2, and the two
    that write to the residual stream w^-1/2 (2 L)^-1/2.

    Attributes:
      num_layers, hidden_size, intermediate_size, num_heads, causal: as in TransformerConfig.
      head_dim: width of a head; None is hidden_size / num_heads.
      vocab_size: None until the data's tokenizer is known.
      max_length: number of learned positions.
      activation: "gelu", or another of `fmjax.layers.mlp.ACTIVATIONS` (OpenAI's CLIP: "quick_gelu").
      pooling: which token's output is the text's: "last", the last of the row that is no padding; "first_eos", the
        first that is `eos_id`, or, without one, the last; "largest_id", the first with the largest id, as OpenAI's
        vocabulary, whose end token has the largest, lets one find it.
      eos_id: for "first_eos".
      pad_id: None: padding is not attended. A number: padding is this token, attended like any other, and rows are
        filled up with it to max_length (SigLIP, whose text is pooled at the last of them).
      projection_size: outputs of a product with a bias on what is pooled (SigLIP); None is without it.
      norm_eps: epsilon of LayerNorm.
      dropout: rate on the output of each half of a block.
      attention_dropout: rate on attention probabilities; None is `dropout`.
      init_std, position_init_std: standard deviations of tokens and positions.
    """

    CAUSAL = False  # of a text there is one vector alone, be its attention causal

    num_layers: int = 12
    hidden_size: int = 512
    intermediate_size: int | None = None
    num_heads: int = 8
    head_dim: int | None = None
    vocab_size: int | None = None
    max_length: int = 77
    causal: bool = True
    activation: str = "gelu"
    pooling: str = "last"
    eos_id: int | None = None
    pad_id: int | None = None
    projection_size: int | None = None
    norm_eps: float = 1e-5
    dropout: float = 0.0
    attention_dropout: float | None = None
    init_std: float = 0.02
    position_init_std: float = 0.01

    def __post_init__(self):
        super().__post_init__()
        check_choice("pooling", self.pooling, POOLINGS)
        if (self.pooling == "first_eos") != (self.eos_id is not None):
            raise ConfigError(f"pooling={self.pooling!r} and eos_id={self.eos_id} do not fit: one needs the other")

    @property
    def transformer(self) -> TransformerConfig:
        width, depth = self.hidden_size, self.num_layers
        inner = Init(scale=width**-0.5)
        return stack_config(
            self, causal=self.causal, qkv_bias=True, qk_init=inner, value_init=inner,
            mlp_init=Init(scale=(2 * width) ** -0.5), residual_init=Init(scale=(2 * depth * width) ** -0.5),
            **LAYER_NORM,
        )  # fmt: skip

    def setup(self):
        if self.vocab_size is not None:
            self.token_embedding = Embedding(self.vocab_size, self.hidden_size, stddev=self.init_std, dtype=self.dtype)
        self.position_embedding = Embedding(
            self.max_length, self.hidden_size, ("position", "embed"), self.position_init_std, self.dtype
        )
        self.stack = Transformer(self.transformer)
        if self.projection_size is not None:
            init = Init(scale=self.hidden_size**-0.5)
            self.projection = Linear(self.projection_size, ("embed", None), True, init, self.dtype)

    def __call__(self, tokens, segment_ids=None, train: bool = False) -> jax.Array:
        """Vectors of texts.

        Args:
          tokens: int32 [B, T], one text a row, with what stands around it; T at most max_length.
          segment_ids: int32 [B, T], 1 for the text and 0 for padding, which comes at the end; None is without padding.
          train: whether dropout is on.

        Returns: float32 [B, D], D being projection_size or hidden_size.
        """
        return self.text_states(tokens, segment_ids, train)["vector"]

    pooled = __call__

    def text_states(self, tokens, segment_ids=None, train: bool = False) -> dict[str, jax.Array | None]:
        """What another module may attend to, by the names of its arguments; `tokens` and the rest as of `__call__`.

        Returns: "memory" float [B, T, hidden_size], the last layer's output after its norm; "memory_mask" int32 [B, T],
          0 for padding, None where all is attended; "vector" float32 [B, D], what `__call__` returns. T is max_length
          where rows are filled up with `pad_id`.
        """
        check_tokens(self, tokens)
        if tokens.shape[1] > self.max_length:
            raise ConfigError(f"texts of {tokens.shape[1]} tokens do not fit into max_length = {self.max_length}")
        check_edits(self, tokens, segment_ids, train)
        if self.pad_id is not None:
            tokens, segment_ids = self._filled(tokens, segment_ids), None
        x = self.token_embedding(tokens) + self.position_embedding(jnp.arange(tokens.shape[1])[None])
        x = constrain(tap(self, "embedded", x), ("batch", "length", "act_embed"))
        x, _ = self.stack(x, segment_ids=segment_ids, train=train)
        place = self._place(tokens, segment_ids)
        vector = jnp.take_along_axis(x, place[:, None, None], axis=1)[:, 0]
        vector = vector if self.projection_size is None else self.projection(vector)
        return {"memory": x, "memory_mask": segment_ids, "vector": vector.astype(jnp.float32)}

    @nn.nowrap
    def _filled(self, tokens, segment_ids):
        """The tokens, int32 [B, max_length], with `pad_id` where there is padding and behind the end."""
        if segment_ids is not None:
            tokens = jnp.where(segment_ids > 0, tokens, self.pad_id)
        missing = self.max_length - tokens.shape[1]
        return jnp.pad(tokens, ((0, 0), (0, missing)), constant_values=self.pad_id)

    @nn.nowrap
    def _place(self, tokens, segment_ids):
        """Which token is pooled, int32 [B]."""
        if self.pooling == "largest_id":
            return tokens.argmax(axis=1)
        length = tokens.shape[1]
        is_text = jnp.ones_like(tokens, bool) if segment_ids is None else segment_ids > 0
        last = length - 1 - is_text[:, ::-1].argmax(axis=1)
        if self.pooling == "last":
            return last
        is_end = tokens == self.eos_id
        return jnp.where(is_end.any(axis=1), is_end.argmax(axis=1), last)

    @nn.nowrap
    def flops_per_example(self, shapes: dict) -> float:
        """FLOPs of forward and backward over one text, by the convention of `fmjax.layers.flops`."""
        length = shapes["tokens"][0] if self.pad_id is None else self.max_length
        projection = 6.0 * self.hidden_size * (self.projection_size or 0)
        return transformer_flops(self.transformer, vocab_size=0, sequence_length=length) + projection
