"""MaskGIT (Chang et al. 2022, https://arxiv.org/abs/2202.04200): an encoder that predicts the hidden ones of an image's
codes, given a class or a caption."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.errors import ConfigError
from fmjax.layers.checks import check_positive
from fmjax.layers.dense import Init, Linear
from fmjax.layers.embed import Embedding, output_logits
from fmjax.layers.flops import transformer_flops
from fmjax.layers.mlp import ACTIVATIONS
from fmjax.layers.modulation import LabelEmbedding
from fmjax.layers.norm import Norm
from fmjax.layers.tap import tap
from fmjax.layers.transformer import Transformer
from fmjax.layers.transformer_config import TransformerConfig
from fmjax.models.stack import LAYER_NORM, Stacked, stack_config
from fmjax.parallel.logical import constrain


class MaskGIT(Stacked):
    """The condition and the codes in one row, read both ways; the defaults are the paper's size at 256x256 pixels.

    The condition stands in front: a class as one vector, a caption token after token. Codes are tied to the head, which
    is a product, the activation and a norm before (the masked language model's).

    Attributes:
      num_layers, hidden_size, num_heads: as in TransformerConfig.
      intermediate_size: width inside the MLP; None is 4 * hidden_size.
      num_codes: of the first stage's codebook. The number `num_codes` stands for one that is hidden.
      num_places: codes of an image.
      num_classes: of the labels; None until the data are known, or for data without.
      vocab_size: of the captions; None until the data's tokenizer is known, or for data without.
      max_length: tokens of a caption; None until the data are known.
      activation: "gelu", or another of `fmjax.layers.mlp.ACTIVATIONS` with one input.
      dropout: rate after the embedding and on the output of each half of a block.
      norm_eps: epsilon of LayerNorm.
      init_std: standard deviation of kernels and embeddings.
    """

    num_layers: int = 24
    hidden_size: int = 768
    intermediate_size: int | None = None
    num_heads: int = 8
    num_codes: int = 1024
    num_places: int = 256
    num_classes: int | None = None
    vocab_size: int | None = None
    max_length: int | None = None
    activation: str = "gelu"
    dropout: float = 0.1
    norm_eps: float = 1e-5
    init_std: float = 0.02

    def __post_init__(self):
        super().__post_init__()
        check_positive(num_codes=self.num_codes, num_places=self.num_places)
        if self.num_classes and self.vocab_size:
            raise ConfigError(
                f"model.num_classes = {self.num_classes} and model.vocab_size = {self.vocab_size}: an image has a "
                "class or a caption; set model.num_classes to 0, or take data without captions"
            )

    @property
    def transformer(self) -> TransformerConfig:
        return stack_config(self, placement="pre", qkv_bias=True, causal=False, **LAYER_NORM)

    def setup(self):
        size, std = self.hidden_size, self.init_std
        self.code_embedding = Embedding(self.num_codes, size, stddev=std, dtype=self.dtype)
        init = nn.with_logical_partitioning(nn.initializers.normal(std), ("norm",))
        self.hidden_code = self.param("hidden_code", init, (size,), jnp.float32)
        self.position_embedding = Embedding(self.num_places, size, ("position", "embed"), std, self.dtype)
        if self.num_classes:
            self.label = LabelEmbedding(self.num_classes, size)
        if self.vocab_size:
            self.token_embedding = Embedding(self.vocab_size, size, stddev=std, dtype=self.dtype)
            self.text_position = Embedding(self.max_length, size, ("position", "embed"), std, self.dtype)
        self.embedding_dropout = nn.Dropout(self.dropout)
        self.stack = Transformer(self.transformer)
        self.head_transform = Linear(size, ("embed", None), True, Init(scale=std), self.dtype)
        self.head_norm = Norm("layernorm", self.norm_eps)
        zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("vocab",))
        self.head_bias = self.param("head_bias", zeros, (self.num_codes,), jnp.float32)

    def __call__(self, codes, classes=None, source_tokens=None, source_segment_ids=None, train: bool = False):
        """Logits of the code at each place.

        Args:
          codes: int32 [B, N], `num_codes` where one is hidden.
          classes: int32 [B], `NO_LABEL` for none.
          source_tokens, source_segment_ids: int32 [B, T], captions and 1 where there is one, 0 for padding; segments
            of zeros alone are no caption.
          train: whether dropout is on.

        Returns: float32 [B, N, num_codes].
        """
        logits = output_logits(*self.features(codes, classes, source_tokens, source_segment_ids, train))
        return constrain(logits, ("batch", "length", "act_vocab"))

    def features(self, codes, classes=None, source_tokens=None, source_segment_ids=None, train: bool = False):
        """(hidden [B, N, D], head): `output_logits(hidden, head)` are the logits."""
        front, segments = self._condition(classes, source_tokens, source_segment_ids)
        is_hidden = codes == self.num_codes
        x = self.code_embedding(jnp.where(is_hidden, 0, codes))
        x = jnp.where(is_hidden[..., None], self.hidden_code.astype(x.dtype), x)
        x = x + self.position_embedding(jnp.arange(codes.shape[1])[None])
        if front is not None:
            x = jnp.concatenate([front.astype(x.dtype), x], axis=1)
        if segments is not None:
            segments = jnp.concatenate([segments, jnp.ones_like(codes)], axis=1)
        x = tap(self, "embedded", self.embedding_dropout(x, deterministic=not train))
        x, _ = self.stack(constrain(x, ("batch", "length", "act_embed")), segment_ids=segments, train=train)
        x = x[:, x.shape[1] - codes.shape[1] :]
        x = self.head_norm(ACTIVATIONS[self.activation](self.head_transform(x)))
        return x, {"embedding": self.code_embedding.embedding, "bias": self.head_bias}

    def _condition(self, classes, tokens, segments):
        """(what stands before the codes [B, C, D], its segments int32 [B, C]); None for what there is not."""
        if self.num_classes:
            if classes is None:
                raise ConfigError(f"model.num_classes = {self.num_classes}, but there are no labels; set it to 0")
            return self.label(classes)[:, None], None
        if not self.vocab_size:
            return None, None
        if tokens is None or segments is None:
            raise ConfigError(f"model.vocab_size = {self.vocab_size}, but there are no captions; leave it out")
        if tokens.shape[1] > self.max_length:
            raise ConfigError(f"captions of {tokens.shape[1]} tokens do not fit into max_length = {self.max_length}")
        return self.token_embedding(tokens) + self.text_position(jnp.arange(tokens.shape[1])[None]), segments

    @nn.nowrap
    def example(self) -> dict[str, jax.ShapeDtypeStruct]:
        """What `__call__` takes, by name, as small as it can be: enough to know the parameters."""
        ints = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)
        found = {"codes": ints(1, 1)}
        if self.num_classes:
            found["classes"] = ints(1)
        elif self.vocab_size:
            found |= {"source_tokens": ints(1, 1), "source_segment_ids": ints(1, 1)}
        return found

    @nn.nowrap
    def flops_per_example(self, shapes: dict) -> float:
        """FLOPs of forward and backward over one image, by the convention of `fmjax.layers.flops`; those of the first
        stage are not among them."""
        front = 1 if self.num_classes else (self.max_length if self.vocab_size else 0)
        stack = transformer_flops(self.transformer, vocab_size=0, sequence_length=front + self.num_places)
        return stack + 6.0 * self.num_places * self.hidden_size * (self.hidden_size + self.num_codes)
