"""What every decoder-only language model shares: the protocol that objectives, generation and evaluation rely on."""

import flax.linen as nn
import jax.numpy as jnp

from fmjax.errors import ConfigError
from fmjax.layers.cache import init_cache
from fmjax.layers.embed import output_logits
from fmjax.layers.flops import transformer_flops
from fmjax.layers.tap import check_edits
from fmjax.layers.transformer import TransformerConfig


class Decoder(nn.Module):
    """Base of the decoder families. A family has the fields vocab_size and max_length and defines

    - `transformer`: property, the TransformerConfig of its stack;
    - `embed(tokens, segment_ids, positions, train)`: [B, T, D];
    - `stack`: the Transformer, and `head()`: the output weights, a dict for `output_logits`.
    """

    RESUME_FREE = ("remat", "attention", "unroll")  # the same function, computed in another way

    @property
    def transformer(self) -> TransformerConfig:
        raise NotImplementedError

    def __call__(self, tokens, segment_ids=None, positions=None, train=False, cache=None):
        """Next-token logits.

        Args:
          tokens: int32 [B, T].
          segment_ids: int32 [B, T]; tokens attend within their own segment; 0 is padding. None: one document a row.
          positions: int32 [B, T]; None: restarting at 0 with every segment. Required with a cache.
          train: whether dropout is on.
          cache: None, or a pytree from `init_cache`: tokens are then appended to it at their positions (padding is
            neither written nor attended) and attend what it holds.

        Returns: float32 [B, T, V]; with a cache, the pair of that and the updated cache.
        """
        out = self.features(tokens, segment_ids, positions, train, cache)
        logits = output_logits(*out[:2])
        logits = nn.with_logical_constraint(logits, ("batch", "length", "act_vocab"))
        return logits if cache is None else (logits, out[2])

    def features(self, tokens, segment_ids=None, positions=None, train=False, cache=None):
        """(hidden [B, T, D], head), and the cache where one is given: `output_logits(hidden, head)` are the logits."""
        if tokens.ndim != 2:
            raise ConfigError(f"tokens must be [batch, length], got shape {tokens.shape}.")
        if self.vocab_size is None:
            name = type(self).__name__
            raise ConfigError(f"{name}.vocab_size is not set; set it or take it from the data's tokenizer.")
        check_edits(self, tokens, segment_ids, positions, train, cache)
        x = self.embed(tokens, segment_ids, positions, train)
        x = nn.with_logical_constraint(x, ("batch", "length", "act_embed"))
        x, cache = self.stack(x, segment_ids=segment_ids, positions=positions, cache=cache, train=train)
        return (x, self.head()) if cache is None else (x, self.head(), cache)

    @nn.nowrap
    def init_cache(self, batch_size: int, max_length: int) -> dict:
        """An empty cache for sequences of up to max_length positions; its axes begin with layer and batch."""
        c = self.transformer
        return init_cache(
            c.num_layers, batch_size, max_length, c.num_kv_heads, c.head_dim, c.window, jnp.dtype(c.dtype)
        )

    @nn.nowrap
    def flops_per_example(self, shapes: dict) -> float:
        """FLOPs of forward and backward over one example, by the convention of `fmjax.layers.flops`.

        Args:
          shapes: of the example's arrays, without the batch axis; here "tokens": (T,).
        """
        (length,) = shapes["tokens"]
        return transformer_flops(self.transformer, vocab_size=self.vocab_size, sequence_length=length)
