"""What U-Nets and autoencoders of images [B, H, W, C] are made of: residual blocks, attention over places, resizing."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.layers.block import Attention
from fmjax.layers.conv import Conv
from fmjax.layers.dense import Init, Linear
from fmjax.layers.norm import GroupNorm
from fmjax.layers.pooling import Padding, average_pool
from fmjax.layers.tap import tap
from fmjax.layers.transformer import Transformer
from fmjax.layers.transformer_config import TransformerConfig

TIME_SHIFTS = ("add", "scale_shift")
RESIZES = ("none", "halve", "double")


def doubled(x: jax.Array) -> jax.Array:
    """[B, 2 H, 2 W, C]: each pixel four times."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


class TimeBlock(nn.Module):
    """shortcut(x) + Conv3x3(dropout(silu(norm(Conv3x3(silu(norm(x))) and the condition)))) (Ho et al. 2020,
    https://arxiv.org/abs/2006.11239, appendix B). The second convolution is 0 at the start.

    Attributes:
      features: channels of the output; where the input has others, the shortcut is a convolution 1x1.
      groups, epsilon: as in `GroupNorm`.
      time_shift: how a condition enters: "add", to the channels before the second norm; or "scale_shift", which
        multiplies what the second norm gives by 1 + scale and adds a shift (Dhariwal & Nichol 2021, section 3.1).
      resize: "halve" (means of 2x2 pixels) or "double" (each pixel four times) the image before the first convolution,
        and likewise on the shortcut (the same, section 3); "none".
      dropout: rate.
      dtype: dtype of the products.
    """

    features: int
    groups: int = 32
    epsilon: float = 1e-5
    time_shift: str = "add"
    resize: str = "none"
    dropout: float = 0.0
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array | None = None, train: bool = False) -> jax.Array:
        """[B, H, W, C] and a condition [B, D] of the whole image, or None, to [B, H', W', features]."""
        resize = {"none": lambda x: x, "halve": lambda x: average_pool(x, 2), "double": doubled}[self.resize]
        norm = dict(groups=self.groups, epsilon=self.epsilon)
        y = resize(nn.silu(GroupNorm(**norm, name="norm_1")(x)))
        y = Conv(self.features, 3, dtype=self.dtype, name="conv_1")(y)
        scale = shift = None
        if condition is not None:
            parts = 2 if self.time_shift == "scale_shift" else 1
            init = Init("glorot_uniform", 1.0)
            shift = Linear(parts * self.features, ("embed", "mlp"), True, init, self.dtype, name="time")
            shift = shift(nn.silu(condition))[:, None, None]
            if parts == 1:
                y, shift = y + shift, None
            else:
                scale, shift = jnp.split(shift, 2, axis=-1)
        y = GroupNorm(**norm, name="norm_2")(y)
        y = nn.silu(y if scale is None else y * (1 + scale) + shift)
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        y = Conv(self.features, 3, dtype=self.dtype, zero=True, names=("mlp", "embed"), name="conv_2")(y)
        x = resize(x)
        if x.shape[-1] != self.features:
            x = Conv(self.features, 1, dtype=self.dtype, name="shortcut")(x)
        return tap(self, "residual", x + y)


class Halve(nn.Module):
    """A convolution 3x3 of stride 2. `padding` as in `Conv`: "SAME" pads the end of an even side alone."""

    padding: Padding = 1
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return Conv(x.shape[-1], 3, 2, padding=self.padding, dtype=self.dtype, name="conv")(x)


class Double(nn.Module):
    """Each pixel four times, and a convolution 3x3."""

    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return Conv(x.shape[-1], 3, dtype=self.dtype, name="conv")(doubled(x))


def place_config(
    channels: int, num_heads: int, cross: bool = False, num_layers: int = 1, **options
) -> TransformerConfig:
    """The stack of a `PlaceAttention`, or, with `cross`, of a `PlaceTransformer`."""
    init = Init("glorot_uniform", 1.0)
    return TransformerConfig(
        num_layers=num_layers, hidden_size=channels, intermediate_size=4 * channels, num_heads=num_heads,
        num_kv_heads=num_heads, head_dim=channels // num_heads, norm="layernorm", final_norm=False, activation="geglu",
        qkv_bias=not cross, out_bias=True, mlp_bias=True, causal=False, cross_attention=cross, qk_init=init,
        value_init=init, residual_init=init if cross else Init(scale=0.0), **options,
    )  # fmt: skip


class PlaceAttention(nn.Module):
    """x and what attention over its places, normalised by groups, adds; 0 at the start (Ho et al. 2020).

    Attributes:
      num_heads: must divide the channels.
      groups, epsilon: as in `GroupNorm`; without groups (0) there is no norm.
      dtype: dtype of the products.
    """

    num_heads: int = 1
    groups: int = 32
    epsilon: float = 1e-5
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        y = GroupNorm(self.groups, self.epsilon, name="norm")(x) if self.groups else x
        config = place_config(channels, self.num_heads, dtype=self.dtype)
        y, _ = Attention(config, name="attention")(y.reshape(batch, height * width, channels).astype(self.dtype))
        return tap(self, "residual", x + y.reshape(x.shape))


class PlaceTransformer(nn.Module):
    """x and what a Transformer over its places adds, whose blocks attend to a text: latent diffusion's (Rombach et al.
    2022, https://arxiv.org/abs/2112.10752, section 3.3). The last product is 0 at the start.

    Attributes:
      num_heads: must divide the channels.
      num_layers: blocks, each of self-attention, cross-attention and a GEGLU MLP.
      groups: of the norm in front, whose epsilon is 1e-6.
      attention: backend, as in `fmjax.layers.attention`.
      dtype: dtype of the products.
    """

    num_heads: int
    num_layers: int = 1
    groups: int = 32
    attention: str = "auto"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, memory: jax.Array, memory_mask: jax.Array | None = None) -> jax.Array:
        """[B, H, W, C] and a text [B, S, M], of which places attend to tokens with a 1 in int32 [B, S] (None: all)."""
        batch, height, width, channels = x.shape
        y = GroupNorm(self.groups, 1e-6, name="norm")(x).reshape(batch, height * width, channels)
        init = Init("glorot_uniform", 1.0)
        y = Linear(channels, ("embed", "mlp"), True, init, self.dtype, name="inner")(y)
        options = dict(attention=self.attention, dtype=self.dtype)
        config = place_config(channels, self.num_heads, True, self.num_layers, **options)
        ids = None if memory_mask is None else jnp.ones(y.shape[:2], jnp.int32)
        stack = Transformer(config, name="stack")
        y, _ = stack(y, segment_ids=ids, memory=(memory.astype(self.dtype), memory_mask))
        y = Linear(channels, ("mlp", "embed"), True, Init(scale=0.0), self.dtype, name="outer")(y)
        return tap(self, "residual", x + y.reshape(x.shape))
