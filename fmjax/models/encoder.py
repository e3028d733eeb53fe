"""What every encoder with a masked-language-model head shares: the protocol that its objective and users rely on."""

import flax.linen as nn
import jax

from fmjax.layers.embed import output_logits
from fmjax.layers.flops import transformer_flops
from fmjax.layers.position import default_positions
from fmjax.layers.tap import check_edits
from fmjax.models.stack import TextStack, check_tokens
from fmjax.parallel.logical import constrain


class Encoder(TextStack):
    """Base of the encoder families. A family has the fields vocab_size and max_length and defines

    - `transformer`: property, the TransformerConfig of its stack, not causal;
    - `embed(tokens, positions, token_types, train)`: [B, T, D];
    - `stack`: the Transformer;
    - `predict(hidden)`: (hidden [..., D], head) for `output_logits`, from the stack's output.
    """

    CAUSAL = False  # reads whole texts: no log-likelihoods of texts, and nothing to continue them with
    def __call__(self, tokens, segment_ids=None, positions=None, token_types=None, train=False):
        """Logits of the token at each place.

        Args:
          tokens: int32 [B, T].
          segment_ids: int32 [B, T]; tokens attend within their own segment; 0 is padding. None: one segment a row.
          positions: int32 [B, T]; None: restarting at 0 with every segment.
          token_types: int32 [B, T], 0 or 1 for the first and second sentence of a pair; None is 0.
          train: whether dropout is on.

        Returns: float32 [B, T, V].
        """
        logits = output_logits(*self.features(tokens, segment_ids, positions, token_types, train))
        return constrain(logits, ("batch", "length", "act_vocab"))

    def features(self, tokens, segment_ids=None, positions=None, token_types=None, train=False):
        """(hidden [B, T, D], head): `output_logits(hidden, head)` are the logits."""
        return self.predict(self.hidden(tokens, segment_ids, positions, token_types, train))

    def hidden(self, tokens, segment_ids=None, positions=None, token_types=None, train=False) -> jax.Array:
        """The last layer's output, float [B, T, D]: what embeddings of texts are made of."""
        check_tokens(self, tokens)
        check_edits(self, tokens, segment_ids, positions, token_types, train)
        if positions is None:
            positions = default_positions(tokens, segment_ids)
        x = self.embed(tokens, positions, token_types, train)
        x = constrain(x, ("batch", "length", "act_embed"))
        x, _ = self.stack(x, segment_ids=segment_ids, positions=positions, train=train)
        return x

    @nn.nowrap
    def flops_per_example(self, shapes: dict) -> float:
        """FLOPs of forward and backward over one example, by the convention of `fmjax.layers.flops`.

        Args:
          shapes: of the example's arrays, without the batch axis; here "tokens": (T,), and, where logits are computed
            at some places only, "masked_positions": (P,).
        """
        (length,) = shapes["tokens"]
        (predicted,) = shapes.get("masked_positions", (length,))
        stack = transformer_flops(self.transformer, vocab_size=0, sequence_length=length)
        return stack + 6.0 * predicted * self.hidden_size * self.vocab_size
