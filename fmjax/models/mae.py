"""Masked autoencoder (He et al. 2022): an encoder of the visible patches, and a small decoder that draws the others."""

from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.errors import ConfigError
from fmjax.layers.checks import check_positive
from fmjax.layers.dense import Init, Linear
from fmjax.layers.flops import transformer_flops
from fmjax.layers.image_positions import grid_sinusoids
from fmjax.layers.transformer import Transformer
from fmjax.layers.transformer_config import TransformerConfig
from fmjax.models import MODELS
from fmjax.models.stack import LAYER_NORM, resolved_head_dim
from fmjax.models.vit import ViT


class MAE(nn.Module):
    """An encoder that reads a share of an image's patches, and what tells the others' pixels from its output.

    A decoder of its own width gets the encoder's tokens in their places and a learned one, the mask token, in all
    others, each with its fixed position. Its blocks are the encoder's but for their size.

    Attributes:
      encoder: a "vit" with a class token and {"num_classes": 0}; published ones have {"positions": "sincos"}.
      mask_ratio: share of the patches that the encoder does not see.
      num_layers, hidden_size, intermediate_size, num_heads: of the decoder, as in TransformerConfig.
    """

    encoder: Annotated[dict, MODELS]
    mask_ratio: float = 0.75
    num_layers: int = 8
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_heads: int = 16

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.encoder, ViT) or self.encoder.num_classes != 0 or not self.encoder.use_class_token:
            raise ConfigError(
                f"model.encoder = {type(self.encoder).__name__}: an MAE's is a 'vit' with use_class_token=True and "
                "num_classes=0"
            )
        if not 0 < self.mask_ratio < 1:
            raise ConfigError(f"model.mask_ratio = {self.mask_ratio} must be between 0 and 1")
        check_positive(num_layers=self.num_layers)
        if self.hidden_size % 4:
            raise ConfigError(f"model.hidden_size = {self.hidden_size} must be a multiple of 4, for fixed positions")
        if self.image_size is not None and self.num_kept < 1:
            raise ConfigError(
                f"model.mask_ratio = {self.mask_ratio} leaves none of {self.num_patches} patches to the encoder; lower "
                "it, or make model.encoder.patch_size smaller"
            )
        self.transformer  # checks what it is made of

    @property
    def transformer(self) -> TransformerConfig:
        """Of the decoder."""
        e = self.encoder.transformer
        init = e.residual_init
        return TransformerConfig(
            num_layers=self.num_layers, hidden_size=self.hidden_size, intermediate_size=self.intermediate_size,
            num_heads=self.num_heads, num_kv_heads=self.num_heads,
            head_dim=resolved_head_dim(self.hidden_size, self.num_heads, None), causal=False,
            norm_epsilon=e.norm_epsilon, activation=e.activation, qkv_bias=e.qkv_bias, dropout=e.dropout,
            attention_dropout=e.attention_dropout, qk_init=init, value_init=init, residual_init=init,
            attention=e.attention, dtype=e.dtype, remat=e.remat, unroll=min(e.unroll, self.num_layers),
            scan_layers=e.scan_layers, **LAYER_NORM,
        )  # fmt: skip

    @property
    def image_size(self) -> int | None:
        return self.encoder.image_size

    @property
    def patch_size(self) -> int:
        return self.encoder.patch_size

    @property
    def num_channels(self) -> int | None:
        return self.encoder.num_channels

    @property
    def num_patches(self) -> int:
        return (self.encoder.image_size // self.encoder.patch_size) ** 2

    @property
    def num_kept(self) -> int:
        """Patches that the encoder sees."""
        return int(self.num_patches * (1 - self.mask_ratio))

    def setup(self):
        dtype, init = self.encoder.dtype, Init(scale=self.encoder.init_std)
        make = nn.with_logical_partitioning(nn.initializers.normal(self.encoder.init_std), ("norm",))
        self.mask_token = self.param("mask_token", make, (self.hidden_size,))
        self.embedding = Linear(self.hidden_size, ("embed", None), True, init, dtype)
        self.stack = Transformer(self.transformer)
        pixels = self.encoder.patch_size**2 * self.num_channels
        self.head = Linear(pixels, ("embed", None), True, init, "float32")

    def __call__(self, images, noise, train: bool = False) -> dict[str, jax.Array]:
        """What the decoder draws of images float32 [B, H, W, C] of which the encoder sees a part.

        noise: float32 [B, N or more], a number a patch, of which the patches with the smallest are seen.

        Returns: "patches" float32 [B, N, p * p * C] as `fmjax.layers.patchify` lays them out, and "mask" float32
        [B, N], 1 where the encoder has not seen a patch.
        """
        kept = jnp.argsort(noise[:, : self.num_patches], axis=1)[:, : self.num_kept]
        x = self.embedding(self.encoder.hidden(images, train, kept))
        first, seen = x[:, :1], x[:, 1:]
        places = jnp.broadcast_to(self.mask_token.astype(x.dtype), (len(images), self.num_patches, self.hidden_size))
        side = self.encoder.image_size // self.encoder.patch_size
        # Of each row by itself, so that rows may be split over devices.
        put = jax.vmap(lambda row, at, values: row.at[at].set(values))
        places = put(places, kept, seen) + grid_sinusoids(side, side, self.hidden_size).astype(x.dtype)
        x, _ = self.stack(jnp.concatenate([first, places], axis=1), train=train)
        mask = put(jnp.ones((len(images), self.num_patches)), kept, jnp.zeros(kept.shape))
        return {"patches": self.head(x[:, 1:].astype(jnp.float32)), "mask": mask}

    def hidden(self, images, train: bool = False) -> jax.Array:
        """The encoder's output of whole images, float [B, 1 + N, D]."""
        return self.encoder.hidden(images, train)

    def pooled(self, images, train: bool = False) -> jax.Array:
        """The encoder's vector of whole images, float32 [B, D]."""
        return self.encoder.pooled(images, train)

    @nn.nowrap
    def example(self) -> dict[str, jax.ShapeDtypeStruct]:
        """What `__call__` takes, by name."""
        return self.encoder.example() | {"noise": jax.ShapeDtypeStruct((1, self.num_patches), jnp.float32)}

    @nn.nowrap
    def flops_per_example(self, shapes: dict) -> float:
        """FLOPs of forward and backward over one image, by the convention of `fmjax.layers.flops`."""
        e = self.encoder
        between = (self.num_kept + 1) * e.hidden_size * self.hidden_size
        drawn = self.num_patches * self.hidden_size * e.patch_size**2 * self.num_channels
        stack = transformer_flops(self.transformer, vocab_size=0, sequence_length=self.num_patches + 1)
        return e.flops_of(self.num_kept) + 6.0 * (between + drawn) + stack
