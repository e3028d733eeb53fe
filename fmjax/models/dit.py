"""Diffusion Transformer (Peebles & Xie 2023): patches of a noisy image, and blocks modulated by time and label."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.errors import ConfigError
from fmjax.layers.checks import check_positive
from fmjax.layers.dense import Init, Linear
from fmjax.layers.flops import transformer_flops
from fmjax.layers.image_positions import grid_sinusoids
from fmjax.layers.modulation import LabelEmbedding, Modulation, TimeEmbedding, modulated_norm
from fmjax.layers.patchify import check_patches, patchify, unpatchify
from fmjax.layers.tap import tap
from fmjax.layers.transformer import Transformer
from fmjax.layers.transformer_config import TransformerConfig
from fmjax.models.images import ImageModule
from fmjax.models.stack import Stacked, stack_config
from fmjax.parallel.logical import constrain


class DiT(Stacked, ImageModule):
    """What denoises an image; the defaults are DiT-S without its image size and classes.

    Attributes:
      num_layers, hidden_size, num_heads: as in TransformerConfig.
      intermediate_size: width inside the MLP; None is 4 * hidden_size.
      num_classes: of the labels; None until the data are known, 0 for none.
      out_channels: of what it returns; None is as many as the images have. The published models return twice as many:
        the noise and, of each number, where its variance lies between two bounds.
      patch_size: side of a patch in pixels; must divide image_size.
      dropout: rate on the output of each half of a block.
    """

    num_layers: int = 12
    hidden_size: int = 384
    intermediate_size: int | None = None
    num_heads: int = 6
    num_classes: int | None = None
    out_channels: int | None = None
    patch_size: int = 2
    dropout: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        check_positive(patch_size=self.patch_size)
        if self.image_size is not None:
            check_patches(self.image_size, self.image_size, self.patch_size)
        if self.hidden_size % 4:
            raise ConfigError(f"model.hidden_size = {self.hidden_size} is no multiple of 4, for positions on two axes")

    @property
    def transformer(self) -> TransformerConfig:
        init = Init("glorot_uniform", 1.0)
        return stack_config(
            self, placement="adaln", norm="layernorm", norm_epsilon=1e-6, activation="gelu_tanh", causal=False,
            qkv_bias=True, out_bias=True, mlp_bias=True, attention_dropout=0.0,
            qk_init=init, value_init=init, residual_init=init,
        )  # fmt: skip

    @nn.compact
    def __call__(self, inputs, times, labels=None, train: bool = False) -> jax.Array:
        """float32 [B, H, W, out_channels] from images float32 [B, H, W, C], times float32 [B] in [0, 1] and labels
        int32 [B] (`NO_LABEL` for none). Zero at the start."""
        height, width, channels = inputs.shape[1:]
        init = Init("glorot_uniform", 1.0)
        embed = Linear(self.hidden_size, (None, "embed"), True, init, self.dtype, name="patch_embedding")
        x = embed(patchify(inputs, self.patch_size))
        x = x + grid_sinusoids(height // self.patch_size, width // self.patch_size, self.hidden_size).astype(x.dtype)
        x = constrain(tap(self, "embedded", x), ("batch", None, "act_embed"))
        condition = TimeEmbedding(self.hidden_size, dtype=self.dtype, name="time")(times)
        if self.num_classes:
            if labels is None:
                raise ConfigError(
                    f"model.num_classes = {self.num_classes}, but there are no labels; set it to 0, or give data that "
                    "have `labels`"
                )
            condition = condition + LabelEmbedding(self.num_classes, self.hidden_size, name="label")(labels)
        x, _ = Transformer(self.transformer, name="stack")(x, condition=condition, train=train)
        shift, scale = Modulation(2, self.dtype, name="final_modulation")(condition)
        x = modulated_norm(x, shift, scale, 1e-6)
        outputs = self.patch_size**2 * (self.out_channels or channels)
        head = Linear(outputs, ("embed", None), True, Init(scale=0.0), "float32", name="head")
        return unpatchify(head(x.astype(jnp.float32)), self.patch_size, height, width)

    @nn.nowrap
    def example(self) -> dict[str, jax.ShapeDtypeStruct]:
        """What `__call__` takes, by name, as small as it can be: enough to know the parameters."""
        found = {"inputs": super().example()["images"], "times": jax.ShapeDtypeStruct((1,), jnp.float32)}
        return found | ({"labels": jax.ShapeDtypeStruct((1,), jnp.int32)} if self.num_classes else {})

    @nn.nowrap
    def flops_per_example(self, shapes: dict) -> float:
        """FLOPs of forward and backward over one image, by the convention of `fmjax.layers.flops`."""
        tokens = (self.image_size // self.patch_size) ** 2
        pixels = self.patch_size**2 * (self.num_channels + (self.out_channels or self.num_channels))
        stack = transformer_flops(self.transformer, vocab_size=0, sequence_length=tokens)
        condition = (256 + self.hidden_size + (6 * self.num_layers + 2) * self.hidden_size) * self.hidden_size
        return 6.0 * (tokens * pixels * self.hidden_size + condition) + stack
