"""Conditions of a whole row, such as a time and a label, and how a block takes them up."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.layers.dense import Init, Linear
from fmjax.layers.norm import layer_norm
from fmjax.layers.position import sinusoids

NO_LABEL = -1
"""In the place of a label: none."""


class Modulation(nn.Module):
    """`parts` vectors [B, 1, D] from a condition [B, D]: a linear function of its SiLU that is zero at the start
    (adaLN-zero, Peebles & Xie 2023, https://arxiv.org/abs/2212.09748, section 3.2)."""

    parts: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, condition: jax.Array) -> list[jax.Array]:
        features = condition.shape[-1]
        linear = Linear(self.parts * features, ("embed", "mlp"), True, Init(scale=0.0), self.dtype, name="linear")
        return jnp.split(linear(nn.silu(condition))[:, None], self.parts, axis=-1)


def modulated_norm(x: jax.Array, shift: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
    """LayerNorm without parameters of its own, times 1 + scale, plus shift."""
    return layer_norm(x, jnp.float32(1.0), None, epsilon) * (1 + scale) + shift


class TimeEmbedding(nn.Module):
    """[B, features] from times [B]: `frequencies` cosines and sines, half of each, and an MLP of two layers.

    `period` is what a time of 1 counts as: diffusion counts 1,000 steps. `shift` is that of `sinusoids`, and
    `cosines_first` says which half comes first.
    """

    features: int
    frequencies: int = 256
    period: float = 1000.0
    shift: float = 0.0
    cosines_first: bool = True
    dtype: str = "float32"

    @nn.compact
    def __call__(self, times: jax.Array) -> jax.Array:
        waves = sinusoids(self.period * times, self.frequencies, interleaved=False, shift=self.shift)
        if self.cosines_first:
            waves = jnp.concatenate(jnp.split(waves, 2, axis=-1)[::-1], axis=-1)
        inner = Linear(self.features, (None, "embed"), True, Init(scale=0.02), self.dtype, name="inner")
        outer = Linear(self.features, ("embed", None), True, Init(scale=0.02), self.dtype, name="outer")
        return outer(nn.silu(inner(waves)))


class LabelEmbedding(nn.Module):
    """float32 [B, features] from labels int32 [B]. With `null` the table has one row more than classes, the last, for
    `NO_LABEL`; without, that gives NaN."""

    num_classes: int
    features: int
    null: bool = True

    @nn.compact
    def __call__(self, labels: jax.Array) -> jax.Array:
        init = nn.with_logical_partitioning(nn.initializers.normal(0.02), (None, "embed"))
        table = self.param("embedding", init, (self.num_classes + self.null, self.features), jnp.float32)
        rows = jnp.where(labels == NO_LABEL, self.num_classes, labels)
        return jnp.take(table, rows, axis=0, mode="fill", fill_value=jnp.nan)
