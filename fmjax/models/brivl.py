"""BriVL (Huo et al. 2021; Fei et al. 2022): two towers, each with a self-attention block over what it found."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.errors import ConfigError
from fmjax.layers.checks import check_positive
from fmjax.layers.dense import Init, Linear
from fmjax.layers.flops import transformer_flops
from fmjax.layers.patch_pooling import multiscale_patches
from fmjax.layers.transformer import Transformer
from fmjax.layers.transformer_config import TransformerConfig
from fmjax.models.dual_encoder import DualEncoder, unit
from fmjax.models.stack import LAYER_NORM, resolved_head_dim

XAVIER = Init("glorot_uniform", 1.0)


class BriVL(DualEncoder):
    """A BriVL: patches of the image tower's feature map, and the text tower's tokens, each go through `FusionHead`.

    The published one has an EfficientNet and a Chinese RoBERTa as its towers. The objective "brivl" trains it. Its
    scale is a constant, 1 / temperature; there is nothing else beside the towers and the heads.

    Attributes:
      vision: the image tower, with `feature_map(images, train=)` [B, H', W', D], such as {"name": "conv_encoder",
        "projection_size": 0, ...}.
      text: the text tower, with `hidden(tokens, segment_ids, train=)` [B, T, D], such as {"name": "roberta",
        "masked_lm_head": False, ...}.
      projection_size: of the space of both.
      temperature: cosines are divided by it.
      grids: of the patches that the feature map is pooled to, `fmjax.layers.patch_pooling`.
      num_layers, num_heads, intermediate_size: of each head's self-attention block.
      dropout: rate in the blocks, on the output of each half of a layer and on attention probabilities.
    """

    TOWERS = {
        "vision": ("feature_map", "[B, H', W', D]", "conv_encoder"),
        "text": ("hidden", "[B, T, D]", "roberta"),
    }

    projection_size: int = 2048
    temperature: float = 0.07
    grids: tuple[int, ...] = (1, 6)
    num_layers: int = 4
    num_heads: int = 4
    intermediate_size: int = 2048
    dropout: float = 0.1
    initial_bias = None

    def __post_init__(self):
        super().__post_init__()
        check_positive(projection_size=self.projection_size, **{f"grids[{i}]": g for i, g in enumerate(self.grids)})
        if not self.temperature > 0:
            raise ConfigError(f"model.temperature = {self.temperature} must be above 0")
        if not self.grids:
            raise ConfigError("model.grids is empty; (1,) takes the mean of the whole image alone")
        for tower in (self.vision, self.text):
            self.block(tower)  # checks what it is made of

    @nn.nowrap
    def block(self, tower: nn.Module) -> TransformerConfig:
        """The self-attention block over a tower's output: post-norm, as wide as that."""
        width = tower.hidden_size
        return TransformerConfig(
            self.num_layers, width, self.intermediate_size, self.num_heads, self.num_heads,
            resolved_head_dim(width, self.num_heads, None), placement="post", activation="relu", causal=False,
            qkv_bias=True, qk_init=XAVIER, value_init=XAVIER, residual_init=XAVIER, dropout=self.dropout,
            attention_dropout=self.dropout, dtype=self.dtype, **LAYER_NORM,
        )  # fmt: skip

    def setup(self):
        width = self.vision.hidden_size
        self.patch_projection = Linear(width, ("embed", None), True, XAVIER, self.dtype)
        self.image_head = FusionHead(self.block(self.vision), self.projection_size)
        self.text_head = FusionHead(self.block(self.text), self.projection_size)
        self.log_scale = -math.log(self.temperature)

    def encode_images(self, images, train: bool = False) -> jax.Array:
        """Vectors of length 1, float32 [B, E], of images float32 [B, H, W, C]."""
        patches = multiscale_patches(self.vision.feature_map(images, train=train), self.grids)
        return unit(self.image_head(self.patch_projection(patches), train=train))

    def encode_texts(self, tokens, segment_ids=None, train: bool = False) -> jax.Array:
        """Vectors of length 1, float32 [B, E], of texts int32 [B, T], whose padding has the segment id 0."""
        states = self.text.hidden(tokens, segment_ids, train=train)
        return unit(self.text_head(states, segment_ids, train=train))

    @nn.nowrap
    def flops_per_example(self, shapes: dict) -> float:
        """FLOPs of forward and backward over one pair, or over that one of its sides whose array is there, by the
        convention of `fmjax.layers.flops`; those of the keys, which have no gradient, and of the products with the
        queues are left out."""
        total = super().flops_per_example(shapes)  # of the towers, and of as many products as the heads end in
        patches, (length,) = sum(grid**2 for grid in self.grids), shapes.get("tokens", (0,))
        sides = (("images", self.vision, patches), ("tokens", self.text, length))
        for tower, count in ((tower, count) for name, tower, count in sides if name in shapes):
            total += transformer_flops(self.block(tower), vocab_size=0, sequence_length=count)
            total += 6.0 * self.projection_size**2
        return total + (6.0 * patches * self.vision.hidden_size**2 if "images" in shapes else 0.0)


class FusionHead(nn.Module):
    """What a tower found as one vector: L2 normalisation, a self-attention block, the mean, two products with a ReLU
    between them.

    Attributes:
      config: of the block.
      projection_size: of the vector, and inside the MLP.
    """

    config: TransformerConfig
    projection_size: int

    @nn.compact
    def __call__(self, x: jax.Array, segment_ids=None, train: bool = False) -> jax.Array:
        """float32 [B, E] of [B, T, D]; what has the segment id 0 (int32 [B, T]) is left out."""
        x, _ = Transformer(self.config, name="block")(unit(x), segment_ids=segment_ids, train=train)
        weights = jnp.ones(x.shape[:2]) if segment_ids is None else (segment_ids > 0).astype(jnp.float32)
        total = jnp.einsum("btd,bt->bd", x.astype(jnp.float32), weights)
        mean = total / jnp.maximum(weights.sum(1, keepdims=True), 1.0)
        product = dict(use_bias=True, kernel_init=XAVIER, dtype=self.config.dtype)
        hidden = jax.nn.relu(Linear(self.projection_size, ("embed", "mlp"), **product, name="inner")(mean))
        return Linear(self.projection_size, ("mlp", None), **product, name="outer")(hidden).astype(jnp.float32)
