"""Normalisation layers, computed in float32 whatever the compute dtype."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from fmjax.errors import ConfigError
from fmjax.layers.checks import check_choice
from fmjax.layers.derivatives import with_backward

NORMS = ("layernorm", "rmsnorm", "rmsnorm_offset")


# Both keep only their inputs for the backward pass: what they compute inside is cheap and as large as they are.


@functools.partial(jax.checkpoint, static_argnums=3)
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array | None, epsilon: float) -> jax.Array:
    """LayerNorm (Ba et al. 2016) over the last axis; returns x's dtype."""
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y * lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + epsilon) * scale
    return (y if bias is None else y + bias).astype(x.dtype)


@functools.partial(jax.checkpoint, static_argnums=2)
def rms_norm(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
    """RMSNorm (Zhang & Sennrich 2019) over the last axis; returns x's dtype."""
    y = x.astype(jnp.float32)
    return (y * lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + epsilon) * scale).astype(x.dtype)


def unit(vectors: jax.Array) -> jax.Array:
    """Vectors [..., D] of any dtype, float32 of length 1; a vector of zeros stays one."""
    x = vectors.astype(jnp.float32)
    return x * lax.rsqrt(jnp.maximum((x * x).sum(-1, keepdims=True), 1e-24))


class Norm(nn.Module):
    """The normalisation `kind` over the last axis: parameters `scale` [D] and, for LayerNorm, `bias` [D].

    "layernorm", "rmsnorm", or "rmsnorm_offset", which multiplies by 1 + scale, so that scale starts at 0 (Gemma).
    """

    kind: str
    epsilon: float = 1e-5
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        check_choice("norm", self.kind, NORMS)
        shape = (x.shape[-1],)
        offset = self.kind == "rmsnorm_offset"
        init = nn.with_logical_partitioning(nn.initializers.zeros if offset else nn.initializers.ones, ("norm",))
        scale = self.param("scale", init, shape, jnp.float32)
        if self.kind != "layernorm":
            return rms_norm(x, 1.0 + scale.astype(jnp.float32) if offset else scale, self.epsilon)
        bias = None
        if self.use_bias:
            init = nn.with_logical_partitioning(nn.initializers.zeros, ("norm",))
            bias = self.param("bias", init, shape, jnp.float32)
        return layer_norm(x, scale, bias, self.epsilon)


def group_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, groups: int, epsilon: float) -> jax.Array:
    """GroupNorm (Wu & He 2018, https://arxiv.org/abs/1803.08494) of [B, ..., C] over all places and the channels of a
    group, which lie side by side; scale and bias [C]. Returns x's dtype."""
    y = x.astype(jnp.float32).reshape(len(x), -1, x.shape[-1])
    return _group_norm(groups, epsilon)(y, scale, bias)[0].reshape(x.shape).astype(x.dtype)


@functools.cache
def _group_norm(groups: int, epsilon: float):
    """Of float32 [B, places, C]. Its backward pass is written out: XLA's CPU backend goes through the places once for
    every sum that is left to autodiff, and is several times slower at sums over parts of the last axis."""

    def means(x):
        """[B, 1, C]: of [B, 1, C] the mean over the channels of a group, for each of them."""
        of_group = x.reshape(len(x), groups, -1).mean(2)
        return jnp.repeat(of_group, x.shape[-1] // groups, axis=1)[:, None]

    def centred(x):
        """(x without the mean of its group, 1 / its deviation)."""
        y = x - means(x.mean(1, keepdims=True))
        return y, lax.rsqrt(means((y * y).mean(1, keepdims=True)) + epsilon)

    def forward(x, scale, bias):
        y, inverse = centred(x)
        return (y * (inverse * scale) + bias,)

    def backward(args, outs, cotangents):
        (x, scale, _), (dy,) = args, cotangents
        y, inverse = centred(x)
        to_bias = dy.mean(1, keepdims=True)
        to_scale = (dy * y).mean(1, keepdims=True) * inverse
        dx = inverse * (dy * scale - means(to_bias * scale) - y * (inverse * means(to_scale * scale)))
        return dx, to_scale.sum((0, 1)) * x.shape[1], to_bias.sum((0, 1)) * x.shape[1]

    return with_backward(forward, backward)


class GroupNorm(nn.Module):
    """GroupNorm of [B, ..., C]: parameters `scale` and `bias` [C]. ConfigError where `groups` does not divide C."""

    groups: int = 32
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        features = x.shape[-1]
        if features % self.groups:
            raise ConfigError(f"norm_groups = {self.groups} do not divide {features} channels; take a divisor of them")
        parameter = lambda name, init: self.param(
            name, nn.with_logical_partitioning(init, ("norm",)), (features,), jnp.float32
        )
        scale, bias = parameter("scale", nn.initializers.ones), parameter("bias", nn.initializers.zeros)
        return group_norm(x, scale, bias, self.groups, self.epsilon)
