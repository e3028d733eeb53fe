"""State of a module that no gradient trains: collections of Flax variables besides the parameters, such as the running
statistics of batch normalisation. They lie in the carry of the run (`fmjax.objectives.stateful`), under `STATE_KEY`.

A module names them in a class attribute, `STATE: ClassVar[tuple[str, ...]] = ("batch_stats",)`; those of modules among
its fields are its own too. A collection holds arrays; a call with `train=True` may put new ones in their place.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmjax.errors import ConfigError

STATE_KEY = "module_state"


def state_collections(module: nn.Module) -> tuple[str, ...]:
    """Names of the collections that a module keeps besides its parameters."""
    names = list(getattr(module, "STATE", ()))
    for field in dataclasses.fields(module):
        value = getattr(module, field.name, None)
        if field.name != "parent" and isinstance(value, nn.Module):
            names += state_collections(value)
    return tuple(dict.fromkeys(names))


def initial_state(module: nn.Module, key: jax.Array) -> dict[str, Any]:
    """{collection: arrays} as the module's `init` makes them, with their boxes of logical axis names; {} without any.

    Raises ConfigError for a module that does not say what it takes, or whose `init` lacks a collection it names.
    """
    names = state_collections(module)
    if not names:
        return {}
    kind = type(module).__name__
    if not hasattr(module, "example"):
        raise ConfigError(
            f"{kind} keeps {', '.join(names)}, whose shapes follow from what it takes: give it a method example() that "
            "returns its inputs by name, as jax.ShapeDtypeStructs"
        )
    inputs = {name: jnp.zeros(one.shape, one.dtype) for name, one in module.example().items()}
    variables = module.init({"params": key, "dropout": key}, **inputs)
    if missing := [name for name in names if name not in variables]:
        raise ConfigError(f"{kind}.STATE names {missing[0]!r}, which its init does not make; leave it out")
    return {name: variables[name] for name in names}


def state_shapes(module: nn.Module) -> dict[str, Any]:
    """`initial_state` as `jax.ShapeDtypeStruct`s, without boxes."""
    # The key is made inside: nothing is computed, so the mesh in context may be of devices that are not there.
    return nn.unbox(jax.eval_shape(lambda: initial_state(module, jax.random.key(0))))


def own_carry(carry: Any) -> dict[str, Any]:
    """What an objective carries besides the module's state, by name; {} where that is nothing, or has no names."""
    return {name: one for name, one in carry.items() if name != STATE_KEY} if isinstance(carry, Mapping) else {}


def kept_state(carry: Any) -> dict[str, Any]:
    """The module's state in a carry; {} where it has none."""
    return dict(carry.get(STATE_KEY, {})) if isinstance(carry, Mapping) else {}
