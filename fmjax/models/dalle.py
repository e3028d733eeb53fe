"""DALL-E's prior (Ramesh et al. 2021, https://arxiv.org/abs/2102.12092, section 2.2 and appendix B): one causal
Transformer over the tokens of a caption and the codes of an image."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.errors import ConfigError
from fmjax.layers.attention.image_masks import KINDS, ImageMask
from fmjax.layers.attention.reference import MASKED
from fmjax.layers.checks import check_choice, check_positive
from fmjax.layers.embed import Embedding, output_logits
from fmjax.layers.flops import transformer_flops
from fmjax.layers.kv_cache import begin, init_cache
from fmjax.layers.tap import tap
from fmjax.layers.transformer import Transformer, unstack_layers
from fmjax.layers.transformer_config import LayerKind, TransformerConfig
from fmjax.models.stack import LAYER_NORM, Stacked, stack_config
from fmjax.parallel.logical import constrain

FULL = "full"
"""The mask of a layer that has no other than the causal one."""


class Dalle(Stacked):
    """A row is one that begins, `max_length` tokens of text and `num_places` codes, each predicted from those before.

    Places of the text that a caption leaves over have a learned vector each. Text and image have positions of their
    own, the image's the sum of its row's and its column's. Of the joint vocabulary, text first, a place's logits are of
    its own modality alone. The defaults are the paper's shape.

    Attributes:
      num_layers, hidden_size, num_heads: as in TransformerConfig.
      intermediate_size: width inside the MLP; None is 4 * hidden_size.
      num_codes: of the first stage's codebook.
      num_places: codes of an image, a square number.
      vocab_size: of the captions; None until the data's tokenizer is known.
      max_length: tokens of a caption; None until the data are known.
      masks: of the layers in turn, kinds of `fmjax.layers.attention.image_masks.ImageMask` or "full".
      last_mask: of the last layer.
      mask_kernel: of the kind "convolution".
      activation: one of `fmjax.layers.mlp.ACTIVATIONS`.
      dropout: rate after the embedding and on the output of each half of a block.
      norm_eps: epsilon of LayerNorm.
      init_std: standard deviation of kernels and embeddings.
    """

    num_layers: int = 64
    hidden_size: int = 3968
    intermediate_size: int | None = None
    num_heads: int = 62
    num_codes: int = 8192
    num_places: int = 1024
    vocab_size: int | None = None
    max_length: int | None = None
    masks: tuple[str, ...] = ("row", "column", "row", "row")
    last_mask: str = "convolution"
    mask_kernel: int = 11
    activation: str = "gelu"
    dropout: float = 0.1
    norm_eps: float = 1e-5
    init_std: float = 0.02

    def __post_init__(self):
        check_positive(num_codes=self.num_codes, num_places=self.num_places, num_layers=self.num_layers)
        if math.isqrt(self.num_places) ** 2 != self.num_places:
            raise ConfigError(f"model.num_places = {self.num_places} is not the number of places of a square")
        for name in (*self.masks, self.last_mask):
            check_choice("model.masks", name, (*KINDS, FULL))
        super().__post_init__()

    @property
    def transformer(self) -> TransformerConfig:
        return stack_config(
            self, placement="pre", qkv_bias=True, causal=True, pattern=self._kinds, attention_dropout=0.0, **LAYER_NORM
        )

    @property
    def _kinds(self) -> tuple[LayerKind, ...]:
        if self.max_length is None or not self.masks:
            return (LayerKind(),)
        names = [self.masks[layer % len(self.masks)] for layer in range(self.num_layers - 1)] + [self.last_mask]
        place = dict(begin=self.max_length + 1, side=self.side)
        # Only the convolution looks at the kernel, and kinds that are alike are to be equal.
        kernel = lambda name: {"kernel": self.mask_kernel} if name == "convolution" else {}
        return tuple(
            LayerKind(mask=None if name == FULL else ImageMask(name, **place, **kernel(name))) for name in names
        )

    @property
    def side(self) -> int:
        """Of the grid of places."""
        return math.isqrt(self.num_places)

    def setup(self):
        if self.vocab_size is None or self.max_length is None:
            raise ConfigError("Dalle.vocab_size and max_length are not set; set them or take data with captions.")
        table = lambda number, name: Embedding(number, self.hidden_size, (name, "embed"), self.init_std, self.dtype)
        self.token_embedding, self.code_embedding = table(self.vocab_size, "vocab"), table(self.num_codes, "vocab")
        self.text_position, self.text_padding = (table(self.max_length, "position") for _ in range(2))
        self.row_position, self.column_position = (table(self.side, "position") for _ in range(2))
        init = nn.initializers.normal(self.init_std)
        own = nn.with_logical_partitioning(init, ("norm",))
        self.start = self.param("start", own, (self.hidden_size,), jnp.float32)
        head = nn.with_logical_partitioning(init, ("embed", "vocab"))
        self.text_head = self.param("text_head", head, (self.hidden_size, self.vocab_size), jnp.float32)
        self.code_head = self.param("code_head", head, (self.hidden_size, self.num_codes), jnp.float32)
        self.embedding_dropout = nn.Dropout(self.dropout)
        self.stack = Transformer(self.transformer)

    def __call__(self, tokens, segment_ids, codes, train: bool = False):
        """Logits of the joint vocabulary.

        Args:
          tokens, segment_ids: int32 [B, max_length], captions and 1 where there is one, 0 for padding.
          codes: int32 [B, num_places]; the last is not read.
          train: whether dropout is on.

        Returns: float32 [B, max_length + num_places, vocab_size + num_codes], those of the other modality
        `fmjax.layers.attention.reference.MASKED`.
        """
        text, image = (output_logits(*one) for one in self.features(tokens, segment_ids, codes, train))
        apart = lambda one, before, after: jnp.pad(one, ((0, 0), (0, 0), (before, after)), constant_values=MASKED)
        return jnp.concatenate([apart(text, 0, self.num_codes), apart(image, self.vocab_size, 0)], axis=1)

    def features(self, tokens, segment_ids, codes, train: bool = False):
        """(hidden [B, max_length, D], head) of the text and (hidden [B, num_places, D], head) of the image:
        `output_logits(hidden, head)` are the logits. Arguments as `__call__`."""
        x = jnp.concatenate([self._text(tokens, segment_ids), self._image(codes[:, :-1], 0)], axis=1)
        x = tap(self, "embedded", self.embedding_dropout(x, deterministic=not train))
        x, _ = self.stack(constrain(x, ("batch", "length", "act_embed")), train=train)
        text, image = x[:, : self.max_length], x[:, self.max_length :]
        return (text, {"kernel": self.text_head}), (image, {"kernel": self.code_head})

    def first_code(self, tokens, segment_ids, cache):
        """(logits of the first code float32 [B, num_codes], the cache from `init_cache` with the text in it)."""
        return self._step(self._text(tokens, segment_ids), cache)

    def next_code(self, codes, place, cache):
        """(logits of the code after that at `place`, int32 [], the cache with it in it): `codes` are int32 [B]."""
        return self._step(self._image(codes[:, None], place), cache)

    def _step(self, x, cache):
        step = begin(cache, x[..., 0], None, None, None)
        x, layers = self.stack(x, positions=step.input_positions, cache=(step, cache["layers"]))
        logits = output_logits(x[:, -1], {"kernel": self.code_head})
        return logits, {"lengths": step.after, "layers": layers}

    def _text(self, tokens, segment_ids):
        """[B, 1 + max_length, D]: the text after what begins a row."""
        if tokens.shape[1] != self.max_length:
            raise ConfigError(
                f"captions of {tokens.shape[1]} tokens: model.max_length = {self.max_length}, as long as each row is"
            )
        places = jnp.arange(self.max_length)[None]
        is_text = (segment_ids > 0)[..., None]
        x = jnp.where(is_text, self.token_embedding(tokens), self.text_padding(places)) + self.text_position(places)
        start = jnp.broadcast_to(self.start.astype(x.dtype), (len(x), 1, self.hidden_size))
        return jnp.concatenate([start, x], axis=1)

    def _image(self, codes, first):
        """[B, N, D] of codes int32 [B, N] at the places from `first` on."""
        row, column = jnp.divmod(first + jnp.arange(codes.shape[1])[None], self.side)
        return self.code_embedding(codes) + self.row_position(row) + self.column_position(column)

    @nn.nowrap
    def init_cache(self, batch_size: int) -> dict:
        """An empty cache for rows of a caption and an image (`fmjax.layers.kv_cache`)."""
        c = self.transformer
        return init_cache(
            batch_size, self.max_length + self.num_places, c.num_kv_heads, c.head_dim, c.windows, jnp.dtype(c.dtype)
        )

    @nn.nowrap
    def unrolled(self, params):
        """(module, parameters) of the same function without a scan over layers, as decoding with a cache needs it."""
        return self.clone(scan_layers=False), unstack_layers(params)

    @nn.nowrap
    def example(self) -> dict[str, jax.ShapeDtypeStruct]:
        """What `__call__` takes, by name: enough to know the parameters."""
        ints = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)
        return {name: ints(1, self.max_length) for name in ("tokens", "segment_ids")} | {"codes": ints(1, 1)}

    @nn.nowrap
    def flops_per_example(self, shapes: dict) -> float:
        """FLOPs of forward and backward over one row, by the convention of `fmjax.layers.flops`; those of the first
        stage are not among them."""
        length = self.max_length + self.num_places
        stack = transformer_flops(self.transformer, vocab_size=0, sequence_length=length)
        heads = self.max_length * self.vocab_size + self.num_places * self.num_codes
        return stack + 6.0 * self.hidden_size * heads
