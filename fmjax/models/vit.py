"""Vision Transformer (Dosovitskiy et al. 2021): patches, a class token, positions, a bidirectional stack.

It is the image tower of CLIP and SigLIP too (`fmjax.models.dual_encoder`), and the encoder of MAE (`fmjax.models.mae`).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.errors import ConfigError
from fmjax.layers.attention_pooling import AttentionPooling, pooling_flops
from fmjax.layers.checks import check_choice, check_positive
from fmjax.layers.dense import Init, Linear
from fmjax.layers.embed import Embedding
from fmjax.layers.flops import transformer_flops
from fmjax.layers.image_positions import grid_sinusoids, resized_positions
from fmjax.layers.norm import Norm
from fmjax.layers.patchify import check_patches, patchify
from fmjax.layers.tap import tap
from fmjax.layers.transformer import Transformer
from fmjax.layers.transformer_config import TransformerConfig
from fmjax.models.images import ImageModule
from fmjax.models.stack import LAYER_NORM, Stacked, stack_config
from fmjax.parallel.logical import constrain

POOLINGS = ("class", "mean", "attention")
POSITIONS = ("learned", "sincos")


class ViT(Stacked, ImageModule):
    """An image classifier; the defaults are ViT-B/16 without its image size and classes.

    Attributes:
      num_layers, hidden_size, intermediate_size, num_heads: as in TransformerConfig.
      head_dim: width of a head; None is hidden_size / num_heads.
      num_classes: logits of an image; None until the data are known, 0 for a model without a head, which gives vectors.
      patch_size: side of a patch in pixels; must divide image_size.
      activation: "gelu", or another of `fmjax.layers.mlp.ACTIVATIONS` with one input.
      qkv_bias: biases on the products of query, key and value.
      patch_bias: a bias on the embedding of patches (CLIP: none).
      use_class_token: whether a learned token stands before the patches.
      positions: "learned", or "sincos": fixed sines and cosines of a patch's column and row, none for the class token
        (MAE).
      embedding_norm: whether a LayerNorm comes before the stack, too (CLIP).
      pooling: how the last layer's outputs become an image's vector: "class", the class token's; "mean", over the
        patches; "attention", by `fmjax.layers.attention_pooling` (SigLIP).
      use_pooler: whether an image's vector is the tanh of a product of that, or that itself.
      use_mask_token: whether there is a learned token for patches that are hidden from it (`hidden`).
      norm_eps: epsilon of LayerNorm.
      init_std: standard deviation of the kernels' initialisation.
      dropout: rate after the embedding and on the output of each half of a block.
      attention_dropout: rate on attention probabilities; None is `dropout`.
    """

    CARRIES = ("image_size", "num_classes", "pooling", "use_pooler", "positions")  # may differ in `carried_over`

    num_layers: int = 12
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_heads: int = 12
    head_dim: int | None = None
    num_classes: int | None = None
    patch_size: int = 16
    activation: str = "gelu"
    qkv_bias: bool = True
    patch_bias: bool = True
    use_class_token: bool = True
    positions: str = "learned"
    embedding_norm: bool = False
    pooling: str = "class"
    use_pooler: bool = False
    use_mask_token: bool = False
    norm_eps: float = 1e-6
    init_std: float = 0.02
    dropout: float = 0.0
    attention_dropout: float | None = None

    def __post_init__(self):
        super().__post_init__()
        check_positive(patch_size=self.patch_size)
        if self.image_size is not None:
            check_patches(self.image_size, self.image_size, self.patch_size)
        check_choice("model.pooling", self.pooling, POOLINGS)
        check_choice("model.positions", self.positions, POSITIONS)
        if self.positions == "sincos" and self.hidden_size % 4:
            raise ConfigError(
                f"model.positions = 'sincos' needs model.hidden_size = {self.hidden_size} to be a multiple of 4: sines "
                "and cosines of columns and rows"
            )
        if self.pooling == "class" and not self.use_class_token:
            raise ConfigError("model.pooling = 'class' needs model.use_class_token=True; or take 'mean' or 'attention'")

    @property
    def transformer(self) -> TransformerConfig:
        return stack_config(self, causal=False, **LAYER_NORM)

    def setup(self):
        if self.pooling == "attention":
            self.attention_pooling = AttentionPooling(self.transformer)
        if self.use_pooler:
            init = Init(scale=self.init_std)
            self.pooler = Linear(self.hidden_size, ("embed", None), True, init, self.dtype)
        if self.num_classes != 0:
            self.head = Linear(self.num_classes, ("embed", None), True, Init(scale=0.0), "float32")

    def __call__(self, images, train: bool = False) -> jax.Array:
        """float32 [B, H, W, C] images to float32 [B, num_classes] logits; without classes to `pooled`."""
        vector = self.pooled(images, train)
        return vector if self.num_classes == 0 else self.head(vector)

    def pooled(self, images, train: bool = False) -> jax.Array:
        """An image's vector, float32 [B, D]."""
        return self.pool(self.hidden(images, train), train)

    def pool(self, x, train: bool = False) -> jax.Array:
        """An image's vector, float32 [B, D], from the last layer's output."""
        if self.pooling == "attention":
            vector = self.attention_pooling(x, train)
        else:
            vector = x[:, 0] if self.pooling == "class" else x[:, int(self.use_class_token) :].mean(axis=1)
        return (jnp.tanh(self.pooler(vector)) if self.use_pooler else vector).astype(jnp.float32)

    @nn.compact
    def hidden(self, images, train: bool = False, kept=None, masked=None, interpolate: bool = False) -> jax.Array:
        """The last layer's output, float [B, patches, D]; a class token, where there is one, comes first.

        Args:
          kept: int32 [B, K]: numbers of the patches that alone are looked at, in this order; None for all.
          masked: bool [B, patches]: which of the patches the mask token stands for; None for none.
          interpolate: whether images may have another size than image_size, for which learned positions are resized.
        """
        patches = patchify(images, self.patch_size)
        positions = self._positions(*(side // self.patch_size for side in images.shape[1:3]), interpolate)
        class_position, positions = jnp.split(positions, [int(self.use_class_token)], axis=1)
        if kept is not None:
            patches = jnp.take_along_axis(patches, kept[..., None], axis=1)
            positions = jnp.take(positions[0], kept, axis=0)
        init = Init(scale=self.init_std)
        x = Linear(
            self.hidden_size, (None, "embed"), self.patch_bias, init, self.dtype, name="patch_embedding"
        )(patches)  # fmt: skip
        if self.use_mask_token:
            names = nn.with_logical_partitioning(nn.initializers.normal(self.init_std), ("norm",))
            mask_token = self.param("mask_token", names, (self.hidden_size,))
            x = x if masked is None else jnp.where(masked[..., None], mask_token.astype(x.dtype), x)
        elif masked is not None:
            raise ConfigError(
                "patches can be masked where model.use_mask_token = True (of an image tower: model.vision.)"
            )
        x = x + positions.astype(x.dtype)
        if self.use_class_token:
            # Where its position is no parameter, it begins apart from 0, which the first norm would blow up.
            initial = nn.initializers.zeros if self.positions == "learned" else nn.initializers.normal(self.init_std)
            initial = nn.with_logical_partitioning(initial, ("norm",))
            class_token = self.param("class_token", initial, (self.hidden_size,))
            first = (class_token + class_position).astype(x.dtype)
            x = jnp.concatenate([jnp.broadcast_to(first, (x.shape[0], 1, self.hidden_size)), x], axis=1)
        if self.embedding_norm:
            x = Norm("layernorm", self.norm_eps, name="embedding_norm")(x)
        x = tap(self, "embedded", nn.Dropout(self.dropout, deterministic=not train)(x))
        x = constrain(x, ("batch", None, "act_embed"))
        x, _ = Transformer(self.transformer, name="stack")(x, train=train)
        return x

    @nn.nowrap
    def _positions(self, rows: int, columns: int, interpolate: bool) -> jax.Array:
        """[1, rows * columns, D], the class token's, where there is one, before them."""
        if self.positions == "learned":
            names, own = ("position", "embed"), dict(dtype=self.dtype, name="position_embedding")
            side = self.image_size // self.patch_size if interpolate else None
            number = (side**2 if interpolate else rows * columns) + self.use_class_token
            table = Embedding(number, self.hidden_size, names, **own)(jnp.arange(number)[None])
            if side is None or (rows, columns) == (side, side):
                return table
            first, patches = jnp.split(table, [int(self.use_class_token)], axis=1)
            return jnp.concatenate([first, resized_positions(patches[0], rows, columns)[None]], axis=1)
        table = grid_sinusoids(rows, columns, self.hidden_size)
        return jnp.pad(table, [(int(self.use_class_token), 0), (0, 0)])[None]

    @nn.nowrap
    def part_of(self, other: nn.Module) -> str | None:
        """The field of another module that is such a model: an MAE's encoder, the image tower of a pair."""
        return next((name for name in ("encoder", "vision") if isinstance(getattr(other, name, None), ViT)), None)

    @nn.nowrap
    def carried_over(self, other: "ViT", params: dict) -> dict:
        """What of the parameters of `other` this model begins with; what is missing there is made anew.

        Positions of another number of patches are interpolated, fixed ones become learned ones, and a head of another
        number of classes, or another pooling, is left out. Raises ConfigError for learned positions where these are
        fixed.
        """
        found = {name: part for name, part in params.items() if name != "position_embedding"}
        kept = {
            "head": self.num_classes == other.num_classes,
            "pooler": self.use_pooler,
            "attention_pooling": self.pooling == "attention",
        }
        found = {name: part for name, part in found.items() if kept.get(name, True)}
        if self.positions == "learned":
            return found | {"position_embedding": {"embedding": self._carried_positions(other, params)}}
        if other.positions == "learned":
            raise ConfigError(
                "model.positions = 'sincos', and the parameters to begin with have learned positions; set it to "
                "'learned'"
            )
        return found

    @nn.nowrap
    def _carried_positions(self, other: "ViT", params: dict) -> jax.Array:
        old, new = (module.image_size // self.patch_size for module in (other, self))
        if other.positions == "learned":
            table = params["position_embedding"]["embedding"]
        else:
            table = jnp.pad(grid_sinusoids(old, old, self.hidden_size), [(int(self.use_class_token), 0), (0, 0)])
        if old == new:
            return table
        first, patches = jnp.split(jnp.asarray(table), [int(self.use_class_token)])
        return jnp.concatenate([first, resized_positions(patches, new, new).astype(first.dtype)])

    @nn.nowrap
    def flops_per_example(self, shapes: dict) -> float:
        """FLOPs of forward and backward over one image, by the convention of `fmjax.layers.flops`."""
        return self.flops_of((self.image_size // self.patch_size) ** 2)

    @nn.nowrap
    def flops_of(self, patches: int) -> float:
        """As `flops_per_example`, of so many patches."""
        tokens = patches + self.use_class_token
        embedding = 6.0 * patches * self.patch_size**2 * self.num_channels * self.hidden_size
        stack = transformer_flops(self.transformer, vocab_size=0, sequence_length=tokens)
        pooler = self.hidden_size if self.use_pooler else 0
        head = pooling_flops(self.transformer, tokens) if self.pooling == "attention" else 0.0
        return embedding + stack + head + 6.0 * self.hidden_size * (self.num_classes + pooler)
