"""The Transformer (Vaswani et al. 2017): encoder and decoder, post-norm, sinusoidal positions, shared embeddings."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.errors import ConfigError
from fmjax.layers.dense import Init, dense
from fmjax.layers.embed import Embedding, output_logits
from fmjax.layers.flops import transformer_flops
from fmjax.layers.kv_cache import begin, init_cache
from fmjax.layers.position import default_positions, sinusoids
from fmjax.layers.tap import check_edits, tap
from fmjax.layers.transformer import Transformer, unstack_layers
from fmjax.layers.transformer_config import TransformerConfig
from fmjax.models.stack import LAYER_NORM, TextStack, check_tokens, stack_config
from fmjax.parallel.logical import constrain


class EncoderDecoder(TextStack):
    """A sequence-to-sequence Transformer; the defaults are the paper's base model without its vocabulary.

    One embedding serves source, target and, transposed, as output head; as input it is multiplied by sqrt(hidden_size)
    (section 3.4) and drawn with standard deviation 1 / sqrt(hidden_size). Kernels follow Glorot's uniform law, as in
    the authors' code. Packed pairs: a target token attends the source tokens of the same segment id.

    Attributes:
      num_layers: blocks of the encoder.
      num_decoder_layers: blocks of the decoder; None is as many as the encoder's.
      hidden_size, intermediate_size, num_heads: as in TransformerConfig; of both.
      vocab_size: None until the data's tokenizer is known.
      max_length: longest source or target that the model is meant for.
      activation: a key of `fmjax.layers.mlp.ACTIVATIONS`.
      interleaved_positions: True: sin and cos side by side, as in the paper; False: in two halves, as in Marian.
      use_head_bias: whether there is a bias on the logits (Marian).
      start_id: the token that a target starts from; None is the tokenizer's BOS.
      dropout: rate on sums of embeddings and positions and on the output of each sub-layer (section 5.4).
      attention_dropout: rate on attention probabilities; the paper has none.
      norm_eps: epsilon of LayerNorm.
    """

    CAUSAL = False  # its encoder reads whole texts

    num_layers: int = 6
    num_decoder_layers: int | None = None
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_heads: int = 8
    vocab_size: int | None = None
    max_length: int = 512
    activation: str = "relu"
    interleaved_positions: bool = True
    use_head_bias: bool = False
    start_id: int | None = None
    dropout: float = 0.1
    attention_dropout: float = 0.0
    norm_eps: float = 1e-5

    def __post_init__(self):
        if self.hidden_size % 2:
            raise ConfigError(f"hidden_size={self.hidden_size} must be even for sinusoidal positions.")
        super().__post_init__()

    @property
    def transformer(self) -> TransformerConfig:
        """The decoder's."""
        return self.stack_config(decoder=True)

    def stack_config(self, decoder: bool) -> TransformerConfig:
        """Of the decoder or of the encoder."""
        own = dict(placement="post", qkv_bias=True, causal=decoder, cross_attention=decoder)
        own |= dict.fromkeys(("qk_init", "value_init", "residual_init"), Init("glorot_uniform", 1.0))
        if decoder and self.num_decoder_layers is not None:
            own["num_layers"] = self.num_decoder_layers
        return stack_config(self, **own, **LAYER_NORM)

    def setup(self):
        if self.vocab_size is not None:
            self.token_embedding = Embedding(
                self.vocab_size, self.hidden_size, stddev=self.hidden_size**-0.5, dtype=self.dtype
            )
            if self.use_head_bias:
                zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("vocab",))
                self.head_bias = self.param("head_bias", zeros, (self.vocab_size,), jnp.float32)
        self.embedding_dropout = nn.Dropout(self.dropout)
        self.encoder = Transformer(self.stack_config(decoder=False))
        self.decoder = Transformer(self.transformer)

    def __call__(
        self, tokens, source_tokens, segment_ids=None, source_segment_ids=None, positions=None, source_positions=None,
        train=False,
    ):  # fmt: skip
        """Logits of the next target token.

        Args:
          tokens: int32 [B, T], the decoder's inputs.
          source_tokens: int32 [B, S].
          segment_ids, source_segment_ids: int32 [B, T], [B, S]; 0 is padding. Both or neither.
          positions, source_positions: int32 [B, T], [B, S]; None: restarting at 0 with every segment.
          train: whether dropout is on.

        Returns: float32 [B, T, V].
        """
        out = self.features(tokens, source_tokens, segment_ids, source_segment_ids, positions, source_positions, train)
        return constrain(output_logits(*out), ("batch", "length", "act_vocab"))

    def features(
        self, tokens, source_tokens, segment_ids=None, source_segment_ids=None, positions=None, source_positions=None,
        train=False,
    ):  # fmt: skip
        """(hidden [B, T, D], head): `output_logits(hidden, head)` are the logits."""
        check_tokens(self, tokens)
        if (segment_ids is None) != (source_segment_ids is None):
            raise ConfigError("segment_ids and source_segment_ids come together: give both or neither.")
        check_edits(self, tokens, source_tokens, segment_ids, source_segment_ids, positions, source_positions, train)
        memory = self.hidden(source_tokens, source_segment_ids, source_positions, train)
        if positions is None:
            positions = default_positions(tokens, segment_ids)
        x = self._embed(tokens, positions, "embedded", train)
        x, _ = self.decoder(x, segment_ids=segment_ids, memory=(memory, source_segment_ids), train=train)
        return x, self.head()

    def hidden(self, tokens, segment_ids=None, positions=None, train=False) -> jax.Array:
        """The encoder's output for source `tokens` [B, S]: float [B, S, D]."""
        if positions is None:
            positions = default_positions(tokens, segment_ids)
        x = self._embed(tokens, positions, "source_embedded", train)
        return self.encoder(x, segment_ids=segment_ids, train=train)[0]

    def _embed(self, tokens, positions, name, train):
        x = math.sqrt(self.hidden_size) * self.token_embedding(tokens)
        x = x + sinusoids(positions, self.hidden_size, self.interleaved_positions)
        x = tap(self, name, self.embedding_dropout(x.astype(self.dtype), deterministic=not train))
        return constrain(x, ("batch", "length", "act_embed"))

    def head(self) -> dict:
        """Output weights, tied to the token embedding."""
        bias = {"bias": self.head_bias} if self.use_head_bias else {}
        return {"embedding": self.token_embedding.embedding} | bias

    # Decoding with a cache: `prefill` encodes sources into the cache's rows, `decode` draws the targets token by token.

    @nn.nowrap
    def init_cache(self, batch_size: int, max_length: int, source_length: int | None = None) -> dict:
        """An empty cache for targets of up to max_length tokens from sources of up to source_length (None: as many)."""
        c = self.transformer
        sizes = dict(num_kv_heads=c.num_kv_heads, head_dim=c.head_dim, windows=c.windows, dtype=jnp.dtype(c.dtype))
        cache = init_cache(batch_size, max_length, **sizes)
        memory = init_cache(batch_size, source_length or max_length, **sizes)
        layers = tuple(own | {"memory": other} for own, other in zip(cache["layers"], memory["layers"]))
        return {"lengths": cache["lengths"], "source_lengths": memory["lengths"], "layers": layers}

    @nn.nowrap
    def unrolled(self, params):
        """(module, parameters) of the same function without a scan over layers, as decoding with a cache needs it."""
        return self.clone(scan_layers=False), unstack_layers(params)

    def prefill(self, tokens, segment_ids, positions, cache, slots) -> dict:
        """The cache with packed sources [N, S] encoded into the rows that `slots` [N, S] names, their targets empty."""
        memory = self.hidden(tokens, segment_ids, positions)
        step = begin({"lengths": cache["source_lengths"]}, tokens, segment_ids, positions, slots)
        c, params = self.transformer, self.variables["params"]["decoder"]
        layers = []
        for index, entry in enumerate(cache["layers"]):
            projections = params[f"blocks_{index}"]["cross_attention"]
            held = {}
            for name in ("key", "value"):
                new = dense(memory, projections[name]["kernel"], projections[name]["bias"], dtype=c.dtype)
                new = new.reshape(*memory.shape[:2], c.num_kv_heads, c.head_dim)
                held[name] = step.write(name, entry["memory"][name], new)
            layers.append(entry | {"memory": held})
        rows = jnp.where(segment_ids > 0, slots, cache["lengths"].shape[0])
        lengths = cache["lengths"].at[rows].set(0, mode="drop")
        return {"lengths": lengths, "source_lengths": step.after, "layers": tuple(layers)}

    def decode(self, tokens, segment_ids, cache):
        """(logits [B, T, V], cache) after appending target `tokens` [B, T] to the cache's rows."""
        step = begin({"lengths": cache["lengths"]}, tokens, segment_ids, None, None)
        x = self._embed(tokens, step.input_positions, "embedded", False)
        source = jnp.arange(cache["layers"][0]["memory"]["value"].shape[2])[None] < cache["source_lengths"][:, None]
        x, layers = self.decoder(
            x,
            segment_ids=jnp.ones_like(tokens),
            memory=(None, source.astype(jnp.int32)),
            cache=(step, cache["layers"]),
        )
        cache = {"lengths": step.after, "source_lengths": cache["source_lengths"], "layers": layers}
        return output_logits(x, self.head()), cache

    @nn.nowrap
    def example(self) -> dict[str, jax.ShapeDtypeStruct]:
        """What `__call__` takes, by name, as small as it can be: enough to know the parameters."""
        return dict.fromkeys(("tokens", "source_tokens"), jax.ShapeDtypeStruct((1, 1), jnp.int32))

    @nn.nowrap
    def flops_per_example(self, shapes: dict) -> float:
        """FLOPs of forward and backward over one pair, by the convention of `fmjax.layers.flops`.

        Args:
          shapes: of the example's arrays, without the batch axis: "tokens": (T,) and "source_tokens": (S,).
        """
        (target,), (source,) = shapes["tokens"], shapes["source_tokens"]
        encoder = transformer_flops(self.stack_config(decoder=False), vocab_size=0, sequence_length=source)
        return encoder + transformer_flops(
            self.transformer, vocab_size=self.vocab_size, sequence_length=target, memory_length=source
        )
