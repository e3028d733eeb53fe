"""Some layers of a deeper model as all of a shallower one: what a student begins with (`train.init_layers`)."""

import dataclasses
import re
from collections.abc import Sequence

import flax.linen as nn
import jax
import numpy as np

from fmjax.errors import ConfigError
from fmjax.layers.layer_map import layer_map
from fmjax.layers.transformer_config import TransformerConfig

WHERE = "train.init_layers"
DEPTHS = ("num_layers", "num_decoder_layers")


def as_deep(module: nn.Module, other: nn.Module) -> nn.Module:
    """`module` with the depths of `other`, and so of the modules among its fields."""
    changed = {}
    for name in (field.name for field in dataclasses.fields(module) if field.name not in ("parent", "name")):
        mine, theirs = getattr(module, name), getattr(other, name, None)
        if isinstance(mine, nn.Module) and isinstance(theirs, nn.Module):
            changed[name] = as_deep(mine, theirs)
        elif name in DEPTHS and hasattr(other, name):
            changed[name] = theirs
    return module.clone(**changed) if changed else module


def fewer_layers(params, module: nn.Module, other: nn.Module, layers: Sequence[int] | str):
    """Parameters of `other` with those of its layers, stack by stack, that `module` has.

    Raises ConfigError for layers that are none (`layer_map`), for one of the module's that gets none, and where a layer
    of another kind would come to be in its place.
    """
    found = {}
    for name, part in params.items():
        if name == "blocks":
            kept = np.array(_chosen(module, other, layers, jax.tree.leaves(part)[0].shape[0]))
            found[name] = jax.tree.map(lambda leaf: leaf[kept], part)
        elif re.fullmatch(r"blocks_\d+", name) is None:
            inside = [getattr(one, name, None) for one in (module, other)]
            pair = inside if all(isinstance(one, nn.Module) for one in inside) else (module, other)
            found[name] = fewer_layers(part, *pair, layers) if isinstance(part, dict) else part
    if written := sum(name.startswith("blocks_") for name in params):
        kept = _chosen(module, other, layers, written)
        found |= {f"blocks_{i}": params[f"blocks_{layer}"] for i, layer in enumerate(kept)}
    return found


def _chosen(module: nn.Module, other: nn.Module, layers: Sequence[int] | str, depth: int) -> tuple[int, ...]:
    """The layers of a stack of `other` that one of `module` begins with."""
    stacks = [getattr(one, "transformer", None) for one in (module, other)]
    if not all(isinstance(stack, TransformerConfig) for stack in stacks):
        raise ConfigError(
            f"{WHERE}: {type(module).__name__} does not say what its stack is made of (the property `transformer`), so "
            "that nothing tells which layers go where; leave it out"
        )
    ours, theirs = stacks
    found = layer_map(layers, ours.num_layers, depth, WHERE)
    for i, layer in enumerate(found):
        if layer < 0:
            raise ConfigError(f"{WHERE} = {layers!r} gives layer {i} none to begin with; name one for each")
        if ours.kind(i) != theirs.kind(layer):
            raise ConfigError(
                f"{WHERE} = {layers!r} puts layer {layer} in the place of layer {i}, and they are of other kinds "
                f"({theirs.kind(layer)} and {ours.kind(i)}); name layers whose kinds come in the same order"
            )
    return found
