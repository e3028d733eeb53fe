"""LLaMA 1, 2 and 3, Mistral (Touvron et al. 2023, Grattafiori et al. 2024, Jiang et al. 2023).

RMSNorm, rotary positions, SwiGLU, grouped queries.
"""

from typing import Annotated

import flax.linen as nn
import jax

from fmjax.layers.dense import weight_param
from fmjax.layers.embed import Embedding
from fmjax.layers.position import ROPE_SCALINGS, Rope
from fmjax.layers.tap import tap
from fmjax.layers.transformer import Transformer
from fmjax.layers.transformer_config import TransformerConfig, layer_kinds
from fmjax.models.decoder import Decoder
from fmjax.models.stack import stack_config


class Llama(Decoder):
    """A LLaMA style decoder; the defaults are LLaMA 7B without its vocabulary. With `window`, Mistral.

    The papers do not state an initialisation; as in the published configurations, every kernel and embedding is normal
    with standard deviation 0.02 (`init_std`), those that write to the residual stream included.

    Attributes:
      num_layers, hidden_size, num_heads: as in TransformerConfig.
      intermediate_size: width inside the MLP; None is 8/3 * hidden_size rounded up to a multiple of 256, LLaMA's rule.
      num_kv_heads: heads of keys and values, a divisor of num_heads; None is num_heads.
      head_dim: width of a head; None is hidden_size / num_heads.
      vocab_size: None until the data's tokenizer is known.
      max_length: longest sequence that the model is meant for.
      rope_theta: base of the rotary embedding.
      rope_scaling: how the rotary embedding is stretched: a section with the name of one of `ROPE_SCALINGS` ("linear",
        "llama3", "yarn") and its fields; None for not at all.
      window, layer_pattern: as in `layer_kinds`.
      qkv_bias: biases on the products of query, key and value.
      out_bias: a bias on attention's output.
      mlp_bias: biases in the MLP.
      tie_embeddings: whether the token embedding is the output head too.
      norm_eps: epsilon of RMSNorm.
      init_std: standard deviation of all kernels and embeddings.
      dropout: rate on attention probabilities and the output of each half of a block; published models use none.
    """

    num_layers: int = 32
    hidden_size: int = 4096
    intermediate_size: int | None = None
    num_heads: int = 32
    num_kv_heads: int | None = None
    head_dim: int | None = None
    vocab_size: int | None = None
    max_length: int = 2048
    rope_theta: float = 10000.0
    rope_scaling: Annotated[dict, ROPE_SCALINGS] | None = None
    window: int | None = None
    layer_pattern: tuple[str, ...] = ()
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    tie_embeddings: bool = False
    norm_eps: float = 1e-5
    init_std: float = 0.02
    dropout: float = 0.0

    @property
    def transformer(self) -> TransformerConfig:
        intermediate = self.intermediate_size
        if intermediate is None:
            intermediate = -(-(8 * self.hidden_size // 3) // 256) * 256
        return stack_config(
            self,
            intermediate_size=intermediate,
            pattern=layer_kinds(self.window, self.layer_pattern, Rope(self.rope_theta, self.rope_scaling)),
        )

    def setup(self):
        if self.vocab_size is not None:
            self.token_embedding = Embedding(self.vocab_size, self.hidden_size, stddev=self.init_std, dtype=self.dtype)
            if not self.tie_embeddings:
                init = nn.with_logical_partitioning(nn.initializers.normal(self.init_std), ("embed", "vocab"))
                self.head_kernel = weight_param(self, "head", init, (self.hidden_size, self.vocab_size))
        self.stack = Transformer(self.transformer)

    def embed(self, tokens, positions, train) -> jax.Array:
        """[B, T, D] in the compute dtype; positions enter in the attention."""
        return tap(self, "embedded", self.token_embedding(tokens))

    def head(self) -> dict:
        """Output weights."""
        if self.tie_embeddings:
            return {"embedding": self.token_embedding.embedding}
        return {"kernel": self.head_kernel}
