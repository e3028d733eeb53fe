"""From a resolved config to its data and its module: what training, planning, loading and evaluation all need."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from ml_collections import FrozenConfigDict

from fmjax.adapt import WEIGHTS
from fmjax.config import build
from fmjax.data import DATASETS
from fmjax.errors import ConfigError
from fmjax.layers.weights import merged
from fmjax.models import MODELS
from fmjax.models.state import state_collections
from fmjax.parallel.sharding import logical_axes


def open_data(config, cache_dir: pathlib.Path, workdir: pathlib.Path | None = None, progress: bool = False):
    """The run's data, opened: tokenised, packed and ready for random access."""
    return build(config["data"], DATASETS).open(
        seed=config["seed"], cache_dir=cache_dir, workdir=workdir, progress=progress
    )


def check_foreseen(config) -> None:
    """Raises ConfigError where the model does not fit what the data know of themselves before anything is read
    (`DataPlugin.foreseen`)."""
    data = build(config["data"], DATASETS)
    if hasattr(data, "foreseen"):
        data.check_foreseen(build_module(config, data.foreseen))


def build_module(config, model_fields: dict[str, Any]) -> nn.Module:
    """The module of `config`; fields that it, or a module among its fields, leaves at None are filled from what the
    data know (`vocab_size`, say)."""
    return _filled(build(config["model"], MODELS), model_fields)


def _filled(module: nn.Module, known: Mapping[str, Any]) -> nn.Module:
    changed = {}
    for name in (field.name for field in dataclasses.fields(module) if field.name not in ("parent", "name")):
        value = getattr(module, name)
        if isinstance(value, nn.Module):
            changed[name] = _filled(value, known)
        elif value is None and name in known:
            changed[name] = known[name]
    return module.clone(**changed) if changed else module


def completed(config: FrozenConfigDict, module: nn.Module) -> FrozenConfigDict:
    """`config` with the model's fields that the data filled in."""
    plain = config.to_dict()
    return FrozenConfigDict(plain | {"model": _completed(plain["model"], module)})


def _completed(section: Mapping[str, Any], module: nn.Module) -> dict[str, Any]:
    found = dict(section)
    for name, value in section.items():
        inside = getattr(module, name, None)
        if value is None:
            found[name] = inside
        elif isinstance(inside, nn.Module):
            found[name] = _completed(value, inside)
    return found


def check_codecs(codecs, module: nn.Module, objective) -> None:
    """Raises ConfigError where a codec's array, as the objective (or nobody: None) calls the module with it, has
    another shape than the module says it takes (`example()`); but for its first `FREE_AXES`, {name: how many}, in a
    row, where the module has such."""
    known = {modality: codec for modality, codec in codecs.items() if hasattr(codec, "array")}
    if not known or not hasattr(module, "example"):
        return
    batch = {codec.array: np.zeros((1, *codec.shape), np.float32) for codec in known.values()}
    try:
        given = batch if objective is None else objective.inputs(batch)
    except (KeyError, ConfigError):  # it also calls the module with arrays that no codec makes
        given = batch
    for name, wanted in module.example().items():
        found = given.get(name)
        modality = next((m for m, codec in known.items() if batch[codec.array] is found), None)
        free = 1 + getattr(module, "FREE_AXES", {}).get(name, 0)
        if modality is None or (found.ndim == wanted.ndim and found.shape[free:] == wanted.shape[free:]):
            continue
        told = [f.name for f in dataclasses.fields(module) if f.default is None and f.name not in ("parent", "name")]
        fields = ", ".join(f"model.{one} = {getattr(module, one)}" for one in told)
        raise ConfigError(
            f"the codec {modality!r}, {known[modality]}, makes arrays of shape {found.shape[1:]}, and "
            f"{type(module).__name__} takes {name!r} of shape {wanted.shape[1:]} ({fields}); change one of them to fit"
        )


def build_weights(config):
    """What the config makes of the parameters, `fmjax.adapt.base.Weights`, or None where it says nothing of them."""
    return build(config["weights"], WEIGHTS) if config.get("weights") else None


def served_params(weights, params):
    """What a loaded model computes with, of parameters as `weights` (`build_weights`, or None) has made them: whole
    kernels, but for weights that say otherwise."""
    return getattr(weights, "served", merged)(params)


def init_params(module: nn.Module, key: jax.Array, inputs: dict, weights=None):
    """Parameters of `module`, with their boxes of logical axis names, as `weights` (`build_weights`) makes them.

    Raises ConfigError when `init` makes another collection than parameters and the module's state
    (`fmjax.models.state`), and where a field of the module or of `weights` has no hash, as lists and arrays have none.
    """
    for part in (module, weights):
        _check_hashable(part)
    return _init_params(module, key, inputs, weights)


def _check_hashable(part) -> None:
    for field in dataclasses.fields(part) if dataclasses.is_dataclass(part) else ():
        value = getattr(part, field.name, None)
        try:
            hash(value)
        except TypeError:
            raise ConfigError(
                f"{type(part).__name__}.{field.name} is a {type(value).__name__}, which has no hash, and programs are "
                "kept by the hash of what they are of; make it a tuple, a string or a frozen dataclass"
            ) from None


# Traced once for the shapes, for the arrays, and for each model of its kind that is loaded.
@functools.partial(jax.jit, static_argnames=("module", "weights"))
def _init_params(module: nn.Module, key: jax.Array, inputs: dict, weights):
    variables = module.init({"params": key, "dropout": key}, **inputs)
    kept = {k: v for k, v in variables.items() if k not in ("reads", "cache", *state_collections(module))}
    if set(kept) != {"params"}:
        raise ConfigError(
            f"{type(module).__name__}.init made the collections {sorted(kept)}; only 'params' can be trained. Name "
            "what no gradient trains in the class attribute STATE (fmjax/models/state.py), or have the objective carry "
            "it (`initial` in fmjax/objectives/base.py)"
        )
    return kept["params"] if weights is None else weights.attach(kept["params"], jax.random.fold_in(key, 1))


def param_spec(module: nn.Module, inputs: dict, weights=None):
    """(shapes, logical axis names) of a module's parameters, known without computing anything.

    Args:
      inputs: keyword arguments of `module.init`, arrays or ShapeDtypeStructs.
    """
    # The key is made inside: nothing is computed, so the mesh in context may be of devices that are not there.
    boxed = jax.eval_shape(lambda x: init_params(module, jax.random.key(0), x, weights), inputs)
    return nn.unbox(boxed), logical_axes(boxed)
