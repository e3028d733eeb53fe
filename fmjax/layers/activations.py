"""What a module's taps read, by name and layer, whether its layers are scanned or not; and maps of attention, computed
again from queries and keys, which fused kernels never have."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from fmjax.errors import ConfigError
from fmjax.layers.attention.reference import MASKED, attention_mask
from fmjax.layers.transformer_config import TransformerConfig
from fmjax.registry import nearest

MAPS = ("attention_scores", "attention_probabilities")
"""What is computed from queries and keys, named as if it were read beside them."""


class Activation(NamedTuple):
    """One name of what was read.

    Attributes:
      name: its path without the layer's part, such as "stack/residual", "vision/stack/attention/q" or "embedded".
      layers: how many there are of it; None where it is of no layer of a stack.
      at: from the number of a layer (0 of what has none) to the array.
    """

    name: str
    layers: int | None
    at: Callable[[int], Any]


def activations(reads: Mapping[str, Any]) -> dict[str, Activation]:
    """What the collection `reads` holds, by name: arrays, or what they would be (`jax.ShapeDtypeStruct`)."""
    stacked, alone = {}, {}
    for path, leaf in traverse_util.flatten_dict(dict(reads)).items():
        place = next((i for i, part in enumerate(path) if re.fullmatch(r"blocks(_\d+)?", part)), None)
        if place is None:
            alone["/".join(path)] = leaf
            continue
        layer = path[place].removeprefix("blocks").removeprefix("_")
        stacked.setdefault("/".join((*path[:place], *path[place + 1 :])), {})[int(layer) if layer else None] = leaf
    found = {name: Activation(name, None, lambda _, leaf=leaf: leaf) for name, leaf in alone.items()}
    for name, layers in stacked.items():
        if None in layers:  # [layers, ...]
            whole = layers[None]
            found[name] = Activation(name, whole.shape[0], lambda i, whole=whole: _row(whole, i))
        else:
            found[name] = Activation(name, len(layers), layers.__getitem__)
    return found


def _row(whole, index: int):
    if isinstance(whole, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(whole.shape[1:], whole.dtype)
    return whole[index]


def named(found: Mapping[str, Activation], name: str, where: str) -> Activation:
    """The activation whose name ends with `name`: "residual", or "vision/stack/residual" where two do.

    Of MAPS it is the queries', from which they are computed (`attention_map`). Raises ConfigError where none is called
    so, or several.
    """
    last = name.rpartition("/")[2]
    wanted = name if last not in MAPS else f"{name.removesuffix(last)}q"
    # Cross attention has queries too: those of a stack's own are meant where nothing else is said.
    wanted = "attention/q" if wanted == "q" and last in MAPS else wanted
    fitting = [one for full, one in found.items() if f"/{full}".endswith(f"/{wanted}")]
    if len(fitting) == 1:
        return fitting[0]
    known = sorted({*found, *(full.removesuffix("q") + one for full in found if full.endswith("/q") for one in MAPS)})
    if not fitting:
        tails = [full.rpartition("/")[2] for full in known]
        raise ConfigError(f"{where} = {name!r} names no activation{nearest(name, tails)} Known: {', '.join(known)}")
    raise ConfigError(f"{where} = {name!r} is one of {', '.join(one.name for one in fitting)}; write more of its name")


def owner_of(module: nn.Module, activation: Activation) -> nn.Module:
    """The module, or the one among its fields, whose `stack` an activation lies in."""
    for part in activation.name.split("/"):
        if part == "stack":
            break
        inside = getattr(module, part, None)
        if not isinstance(inside, nn.Module):
            break
        module = inside
    return module


def attention_map(module: nn.Module, found, queries: Activation, layer: int, segment_ids, probabilities: bool):
    """(scores or probabilities of a layer's attention, which keys each query may attend).

    Scores are scale * q k^T, as the softmax takes them, 0 where a key may not be attended.

    Args:
      module: what was applied.
      found: its `activations`.
      queries: those of the map (`named`).
      segment_ids: int32 [B, T] that it was applied to, or None.

    Returns: float32 [B, H, T, S], and bool [B or 1, T, S].
    Raises ConfigError where the module does not say what its stack is (`transformer`).
    """
    config = stack_of(module, queries)
    q, k = queries.at(layer), found[queries.name.removesuffix("q") + "k"].at(layer)
    kind, scale = config.kind(layer), config.query_scale
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    ids = None if segment_ids is None else (segment_ids, segment_ids)
    options = dict(segment_ids=ids, positions=None, causal=config.causal, window=kind.window, mask=kind.mask)
    allowed = attention_mask(q.shape[1], k.shape[1], **options)
    if allowed is None:
        allowed = jnp.ones((1, q.shape[1], k.shape[1]), bool)
    k = jnp.repeat(k, q.shape[2] // k.shape[2], axis=2)
    scores = jnp.einsum("bthd,bshd->bhts", q, k, preferred_element_type=jnp.float32) * scale
    if probabilities:
        return jax.nn.softmax(jnp.where(allowed[:, None], scores, MASKED), axis=-1), allowed
    return jnp.where(allowed[:, None], scores, 0.0), allowed


def stack_of(module: nn.Module, activation: Activation) -> TransformerConfig:
    """What the stack of an activation is made of. Raises ConfigError where its module does not say it."""
    owner = owner_of(module, activation)
    config = getattr(owner, "transformer", None)
    if not isinstance(config, TransformerConfig):
        raise ConfigError(
            f"{type(owner).__name__} does not say what its stack is made of (the property `transformer`), without "
            f"which nothing is computed of {activation.name!r}"
        )
    return config


def read_shapes(module: nn.Module) -> dict[str, Activation]:
    """The activations of a module's smallest input (`example()`), as `jax.ShapeDtypeStruct`s; nothing is computed."""

    def read():
        inputs = {name: jnp.zeros(one.shape, one.dtype) for name, one in module.example().items()}
        key = jax.random.key(0)
        variables = nn.unbox(module.init({"params": key, "dropout": key}, **inputs))
        return module.apply(variables, **inputs, mutable=["reads"])[1]

    return activations(jax.eval_shape(read).get("reads", {}))
