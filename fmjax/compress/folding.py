"""Scales of the channels between two operations of a block: multiplied into the kernels that read them and divided out
of what makes them, so that the block computes what it did."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fmjax.compress.calibrate import part_at, with_part
from fmjax.layers.mlp import GATED
from fmjax.layers.transformer_config import TransformerConfig


@dataclasses.dataclass(frozen=True)
class Channels:
    """Channels that can be scaled.

    Attributes:
      readers: paths inside the block of the dense layers that all read them, and that alone do.
      maker: path of what makes them: a norm, or a dense layer that no activation function follows.
      is_norm: whether it is a norm.
      repeats: heads of queries that read each head of the maker's (grouped-query attention); 1 elsewhere.
      head_dim: width of a head where there are such.
    """

    readers: tuple[str, ...]
    maker: str
    is_norm: bool = True
    repeats: int = 1
    head_dim: int = 0

    def shared(self, x: jax.Array, join=jnp.mean) -> jax.Array:
        """Of numbers a channel as it is read, float [in], numbers a channel as it is made."""
        if self.repeats == 1:
            return x
        return join(x.reshape(-1, self.repeats, self.head_dim), axis=1).reshape(-1)

    def spread(self, scales: jax.Array) -> jax.Array:
        """The reverse: each number where it is read."""
        if self.repeats == 1:
            return scales
        return jnp.repeat(scales.reshape(-1, self.head_dim), self.repeats, axis=0).reshape(-1)


def channels_of(config: TransformerConfig, block: Mapping[str, Any], of_norms: bool = False) -> list[Channels]:
    """The channels of a block of a stack that can be scaled.

    Where a norm's output goes elsewhere too (placements "post" and "normed"), or no scale of its own follows it
    ("adaln"), its channels cannot; nor those after an activation function, and values beside those of a learned prefix.

    Args:
      block: its parameters.
      of_norms: only those that norms make.
    """
    attention, mlp = ("query", "key", "value"), ("gate", "up") if config.activation in GATED else ("up",)
    found = []
    below = lambda part, names: tuple(f"{part}/{name}" for name in names)
    if config.placement in ("pre", "sandwich", "sub"):
        found.append(Channels(below("attention", attention), "attention_norm"))
        if config.cross_attention:
            found.append(Channels(("cross_attention/query",), "cross_norm"))
        found.append(Channels(below("mlp", mlp), "mlp_norm"))
    if config.placement == "normed":
        found.append(Channels(below("mlp", mlp), "mlp_norm"))
    if config.placement == "sub":
        found += [Channels((f"{part}/out",), f"{part}/inner_norm") for part in _attentions(config)]
        found.append(Channels(("mlp/down",), "mlp/inner_norm"))
    elif not of_norms:
        heads = dict(is_norm=False, repeats=config.num_heads // config.num_kv_heads, head_dim=config.head_dim)
        able = [part for part in _attentions(config) if "prefix" not in block[part]]
        found += [Channels((f"{part}/out",), f"{part}/value", **heads) for part in able]
        if config.activation in GATED:
            found.append(Channels(("mlp/down",), "mlp/up", is_norm=False))
    return found


def _attentions(config: TransformerConfig) -> tuple[str, ...]:
    return ("attention", "cross_attention") if config.cross_attention else ("attention",)


def scaled(block: Mapping[str, Any], config: TransformerConfig, channels: Channels, scales: jax.Array) -> Any:
    """The parameters of a block of the same function, whose kernels that read `channels` are `scales` times as large.

    Args:
      scales: float32 [in], positive, a channel as it is made (`Channels.shared`).
    """
    found = block
    for path in channels.readers:
        layer = part_at(found, path)
        kernel = layer["kernel"]
        larger = (kernel * channels.spread(scales)[:, None]).astype(kernel.dtype)
        found = with_part(found, path, {**layer, "kernel": larger})
    maker = part_at(found, channels.maker)
    if channels.is_norm and config.norm == "rmsnorm_offset":
        maker = {**maker, "scale": ((1.0 + maker["scale"]) / scales - 1.0).astype(maker["scale"].dtype)}
    else:  # scale [D] or kernel [in, D], and bias [D]
        maker = {name: (part / scales).astype(part.dtype) for name, part in maker.items()}
    return with_part(found, channels.maker, maker)
