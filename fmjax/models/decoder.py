"""What every decoder-only language model shares: the protocol that objectives, generation and evaluation rely on."""

import math

import flax.linen as nn
import jax.numpy as jnp

from fmjax.errors import ConfigError
from fmjax.layers.attention.dispatch import FORKING
from fmjax.layers.embed import output_logits
from fmjax.layers.flops import transformer_flops
from fmjax.layers.kv_cache import begin, init_cache, rewound
from fmjax.layers.position import default_positions
from fmjax.layers.tap import check_edits
from fmjax.layers.transformer import final_norm, unstack_layers
from fmjax.models.prompted import has_prompt, prompt_as_prefix
from fmjax.models.stack import TextStack, check_tokens
from fmjax.parallel.logical import constrain


class Decoder(TextStack):
    """Base of the decoder families. A family has the fields vocab_size and max_length, and defines

    - `transformer`: property, the TransformerConfig of its stack;
    - `embed(tokens, positions, train)`: [B, T, D];
    - `stack`: the Transformer, and `head()`: the output weights, a dict for `output_logits`.
    """

    def __call__(self, tokens, segment_ids=None, positions=None, train=False, cache=None, slots=None):
        """Next-token logits.

        Args:
          tokens: int32 [B, T].
          segment_ids: int32 [B, T]; tokens attend within their own segment; 0 is padding. None: one document a row.
          positions: int32 [B, T]; None: restarting at 0 with every segment. With a cache but no slots they follow from
            it, and are not read.
          train: whether dropout is on.
          cache: None, or a pytree from `init_cache` (the module and parameters are then those of `unrolled`). Row i of
            the tokens, padding (segment id 0) at its end left out, continues row i of the cache and attends what it
            holds.
          slots: int32 [B, T], with a cache: instead, the tokens are packed prompts, which attend their own segment
            alone and become the content of the cache's rows that `slots` names.

        Returns: float32 [B, T, V]; with a cache, the pair of that and the updated cache.
        """
        out = self.features(tokens, segment_ids, positions, train, cache, slots)
        logits = output_logits(*out[:2])
        logits = constrain(logits, ("batch", "length", "act_vocab"))
        return logits if cache is None else (logits, out[2])

    def features(self, tokens, segment_ids=None, positions=None, train=False, cache=None, slots=None):
        """(hidden [B, T, D], head), and the cache where one is given: `output_logits(hidden, head)` are the logits.

        Arguments as `__call__`; where the module `can_fork`, segment_ids may be a `fmjax.layers.attention.Forked`.
        """
        check_tokens(self, tokens)
        if not self.is_initializing() and has_prompt(self.variables["params"]):
            return self._after_prompt(tokens, segment_ids, positions, train, cache, slots)
        check_edits(self, tokens, segment_ids, positions, train, cache, slots)
        x, positions, step = self.enter(tokens, segment_ids, positions, train, cache, slots)
        held = None if cache is None else (step, cache["layers"])
        x, layers = self.stack(x, segment_ids=segment_ids, positions=positions, cache=held, train=train)
        return (x, self.head()) if cache is None else (x, self.head(), {"lengths": step.after, "layers": layers})

    def _after_prompt(self, *arguments):
        """`features` with the learned prompt in front of every segment."""
        if self.is_mutable_collection("reads") or "edits" in self.variables:
            raise ConfigError(
                "activations of a model with a learned prompt are read and edited once it is computed: load the run"
            )
        train = arguments[3]
        rngs = {"dropout": self.make_rng("dropout")} if train and self.has_rng("dropout") else {}
        params = prompt_as_prefix(self, self.variables["params"])
        return self.clone(parent=None).apply({"params": params}, *arguments, method="features", rngs=rngs)

    def enter(self, tokens, segment_ids=None, positions=None, train=False, cache=None, slots=None):
        """What goes into the stack: (embedded tokens [B, T, D], their positions, the CacheStep or None).

        Arguments as `__call__`; of the cache the lengths are read alone.
        """
        step = None
        if cache is not None:
            step = begin(cache, tokens, segment_ids, positions, slots)
            positions = step.input_positions
        elif positions is None:
            positions = default_positions(tokens, segment_ids)
        x = self.embed(tokens, positions, train)
        return constrain(x, ("batch", "length", "act_embed")), positions, step

    def leave(self, x):
        """(hidden, head), as `features` gives them, from the last block's output [B, T, D]."""
        return final_norm(self.transformer, self.variables["params"].get("stack", {}), x), self.head()

    def hidden(self, tokens, segment_ids=None, positions=None, train=False):
        """The last layer's output, float [B, T, D]: what embeddings of texts are made of."""
        return self.features(tokens, segment_ids, positions, train)[0]

    @property
    def can_fork(self) -> bool:
        """Whether `features` takes segments that fork (`fmjax.layers.attention.Forked`, with positions, no cache)."""
        return self.transformer.causal and self.transformer.attention in FORKING

    @nn.nowrap
    def init_cache(self, batch_size: int, max_length: int, spare: int = 0) -> dict:
        """An empty cache for sequences of up to max_length positions (`fmjax.layers.kv_cache`), of which a pass over
        spare + 1 tokens a row may be taken back but for the first."""
        c = self.transformer
        return init_cache(batch_size, max_length, c.num_kv_heads, c.head_dim, c.windows, jnp.dtype(c.dtype), spare)

    @nn.nowrap
    def rewound(self, cache: dict, lengths) -> dict:
        """The cache with its rows shortened to `lengths` int32 [B]."""
        return rewound(cache, lengths)

    @nn.nowrap
    def unrolled(self, params):
        """(module, parameters) of the same function without a scan over layers, as decoding with a cache needs it."""
        return self.clone(scan_layers=False), unstack_layers(prompt_as_prefix(self, params))

    @nn.nowrap
    def flops_per_example(self, shapes: dict) -> float:
        """FLOPs of forward and backward over one example, by the convention of `fmjax.layers.flops`.

        Args:
          shapes: of the example's arrays, without the batch axis; here "tokens": (T,), or (K, T) for K texts.
        """
        *texts, length = shapes["tokens"]  # an example may be several texts
        flops = transformer_flops(self.transformer, vocab_size=self.vocab_size, sequence_length=length)
        return math.prod(texts) * flops
