"""DALL-E 2's prior (Ramesh et al. 2022, https://arxiv.org/abs/2204.06125, section 2.2): what denoises a CLIP's vector
of an image, told what that CLIP says of a text."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.errors import ConfigError
from fmjax.layers.checks import check_positive
from fmjax.layers.dense import Linear
from fmjax.layers.embed import Embedding
from fmjax.layers.flops import transformer_flops
from fmjax.layers.modulation import TimeEmbedding
from fmjax.layers.tap import tap
from fmjax.layers.transformer import Transformer
from fmjax.layers.transformer_config import TransformerConfig
from fmjax.models.stack import LAYER_NORM, Stacked, stack_config
from fmjax.parallel.logical import constrain

ADDED = 4
"""Tokens after the text's: its vector, the time, the noisy vector, and the one of which the answer is made."""


class PriorTransformer(Stacked):
    """A causal stack over the states of a text's tokens, the text's vector, the time, the image's noisy vector, and a
    learned token whose output is the answer. The defaults are the published shape, as diffusers has it.

    `embedding_mean` and `embedding_std` say how a CLIP's vectors are prepared (`from_embedding`): the first is taken
    off, and what is left divided by the second; at the start, for vectors of length 1. No gradient reaches them.

    Attributes:
      num_layers, hidden_size, num_heads: as in TransformerConfig.
      intermediate_size: width inside the MLP; None is 4 * hidden_size.
      embedding_size: of the vectors, and of the states of a text's tokens.
      max_length: tokens of a text.
      dropout: rate on the output of each half of a block.
      norm_eps: epsilon of LayerNorm.
      init_std: standard deviation of kernels and positions.
    """

    num_layers: int = 20
    hidden_size: int = 2048
    intermediate_size: int | None = None
    num_heads: int = 32
    embedding_size: int = 768
    max_length: int = 77
    dropout: float = 0.0
    norm_eps: float = 1e-5
    init_std: float = 0.02

    def __post_init__(self):
        super().__post_init__()
        check_positive(embedding_size=self.embedding_size, max_length=self.max_length)

    @property
    def transformer(self) -> TransformerConfig:
        return stack_config(self, placement="pre", activation="gelu", qkv_bias=True, causal=True, **LAYER_NORM)

    @property
    def memory_size(self) -> int:
        """Width of the states of a text's tokens."""
        return self.embedding_size

    @property
    def vector_size(self) -> int:
        """Width of a text's vector."""
        return self.embedding_size

    def setup(self):
        size = self.hidden_size
        linear = lambda features, names: Linear(features, names, True, self.transformer.qk_init, self.dtype)
        self.text_embedding, self.vector_embedding = (linear(size, (None, "embed")) for _ in range(2))
        self.embedding = linear(size, (None, "embed"))
        self.time = TimeEmbedding(size, frequencies=size, dtype=self.dtype)
        places = self.max_length + ADDED
        self.position_embedding = Embedding(places, size, ("position", "embed"), self.init_std, self.dtype)
        own = lambda name, init, shape: self.param(
            name, nn.with_logical_partitioning(init, (None,)), shape, jnp.float32
        )
        self.answer = own("answer", nn.initializers.normal(self.init_std), (size,))
        self.embedding_mean = own("embedding_mean", nn.initializers.zeros, (self.embedding_size,))
        spread = nn.initializers.constant(self.embedding_size**-0.5)
        self.embedding_std = own("embedding_std", spread, (self.embedding_size,))
        self.stack = Transformer(self.transformer)
        self.head = linear(self.embedding_size, ("embed", None))

    def __call__(
        self, inputs=None, times=None, memory=None, memory_mask=None, vector=None, train: bool = False
    ) -> jax.Array:  # fmt: skip
        """The image's vector without noise, float32 [B, E].

        Args:
          inputs: float32 [B, E], noisy; None, as of memory and vector, to make parameters alone.
          times: float32 [B] in [0, 1].
          memory: [B, max_length, E], states of a text's tokens.
          memory_mask: int32 [B, max_length], 0 for padding; None for no padding.
          vector: [B, E], of the text.
          train: whether dropout is on.
        """
        if self.is_initializing() and inputs is None:
            known, names = self.example(), ("inputs", "memory", "vector")
            inputs, memory, vector = (jnp.zeros((len(times), *known[name].shape[1:])) for name in names)
        if memory is None or vector is None:
            raise ConfigError("PriorTransformer is told `memory` and `vector` of a text; give it both")
        if memory.shape[1] != self.max_length:
            raise ConfigError(f"texts of {memory.shape[1]} tokens: model.max_length = {self.max_length}")
        answer = jnp.broadcast_to(self.answer.astype(self.dtype), (len(inputs), self.hidden_size))
        added = [self.vector_embedding(vector), self.time(times), self.embedding(inputs), answer]
        x = jnp.concatenate([self.text_embedding(memory), jnp.stack(added, axis=1).astype(self.dtype)], axis=1)
        x = x + self.position_embedding(jnp.arange(x.shape[1])[None])
        x = constrain(tap(self, "embedded", x), ("batch", "length", "act_embed"))
        seen = None
        if memory_mask is not None:
            ones = jnp.ones(x.shape[:2], jnp.int32)
            seen = ones, ones.at[:, : self.max_length].set((memory_mask > 0).astype(jnp.int32))
        x, _ = self.stack(x, segment_ids=seen, train=train)
        return self.head(x[:, -1]).astype(jnp.float32)

    def from_embedding(self, vectors: jax.Array) -> jax.Array:
        """What the stack denoises, of a CLIP's vectors [B, E]."""
        return (vectors - self.embedding_mean) / self.embedding_std

    def to_embedding(self, vectors: jax.Array) -> jax.Array:
        """A CLIP's vectors of what the stack denoised, [B, E]."""
        return vectors * self.embedding_std + self.embedding_mean

    @nn.nowrap
    def example(self) -> dict[str, jax.ShapeDtypeStruct]:
        """What `__call__` takes, by name, as small as it can be: enough to know the parameters."""
        floats = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
        vectors = dict.fromkeys(("inputs", "vector"), floats(1, self.embedding_size))
        return vectors | {"times": floats(1), "memory": floats(1, self.max_length, self.embedding_size)}

    @nn.nowrap
    def flops_per_example(self, shapes: dict) -> float:
        """FLOPs of forward and backward over one image and its text, by the convention of `fmjax.layers.flops`."""
        stack = transformer_flops(self.transformer, vocab_size=0, sequence_length=self.max_length + ADDED)
        widths = (self.max_length + 3) * self.embedding_size + 2 * self.hidden_size
        return stack + 6.0 * self.hidden_size * widths
