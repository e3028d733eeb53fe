"""Image GPT (Chen et al. 2020, "Generative Pretraining from Pixels"): a decoder of colours, pixel after pixel."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.layers.dense import weight_param
from fmjax.layers.flops import transformer_flops
from fmjax.layers.tap import tap
from fmjax.layers.transformer_config import TransformerConfig
from fmjax.models.gpt import GPT


class ImageGPT(GPT):
    """A decoder whose tokens are the colours of a palette, row by row, after one that begins an image.

    The id `vocab_size - 1` begins an image and is never predicted: logits are of the colours alone. Its embedding is a
    vector of its own.

    Attributes:
      vocab_size: colours of the palette and one; None until the data are known.
      max_length: pixels of an image; None until the data are known.
      norm: kind of the norms: "layernorm", or "rmsnorm" as in the paper's release.
      tie_embeddings: whether the colours' embedding is the output head too; else that is a product of its own, without
        bias.
    """

    max_length: int | None = None
    norm: str = "layernorm"
    tie_embeddings: bool = False

    @property
    def transformer(self) -> TransformerConfig:
        return dataclasses.replace(super().transformer, norm=self.norm)

    def setup(self):
        super().setup()
        init = nn.initializers.normal(self.init_std)
        self.start = self.param("start", nn.with_logical_partitioning(init, ("norm",)), (self.hidden_size,))
        if not self.tie_embeddings:
            init = nn.with_logical_partitioning(init, ("embed", "vocab"))
            self.head_kernel = weight_param(self, "head", init, (self.hidden_size, self.num_embedded))

    @property
    def num_embedded(self) -> int:
        """Colours of the palette."""
        return self.vocab_size - 1

    def embed(self, tokens, positions, train) -> jax.Array:
        """[B, T, D] in the compute dtype."""
        begins = tokens == self.num_embedded
        colours = self.token_embedding(jnp.where(begins, 0, tokens))
        x = jnp.where(begins[..., None], self.start.astype(colours.dtype), colours)
        x = x + self.position_embedding(positions)
        return tap(self, "embedded", self.embedding_dropout(x, deterministic=not train))

    def head(self) -> dict:
        """Output weights, a column a colour."""
        return {"embedding": self.token_embedding.embedding} if self.tie_embeddings else {"kernel": self.head_kernel}

    @nn.nowrap
    def example(self) -> dict[str, jax.ShapeDtypeStruct]:
        """What `__call__` takes, by name: an image."""
        return {"tokens": jax.ShapeDtypeStruct((1, self.max_length), jnp.int32)}

    @nn.nowrap
    def flops_per_example(self, shapes: dict) -> float:
        """FLOPs of forward and backward over one image, by the convention of `fmjax.layers.flops`."""
        (length,) = shapes["tokens"]
        return transformer_flops(self.transformer, vocab_size=self.num_embedded, sequence_length=length)
