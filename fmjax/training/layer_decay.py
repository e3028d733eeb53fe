"""Layer-wise decay of the learning rate: the nearer a layer is to the input, the less it changes (Clark et al. 2020,
section 3.1; as BEiT, Bao et al. 2021, and MAE fine-tune)."""

import re
from collections.abc import Mapping, Sequence

import jax
import numpy as np
import optax

from fmjax.errors import ConfigError
from fmjax.parallel.sharding import path_name


def scale_by_layer(decay: float, inputs: Sequence[str]) -> optax.GradientTransformation:
    """Updates times what `layer_scales` gives, each layer of a stacked parameter by its own."""

    def update(updates, state, params=None):
        flat, structure = jax.tree_util.tree_flatten_with_path(updates)
        scales = layer_scales({path_name(path): leaf.shape for path, leaf in flat}, decay, inputs)
        scaled = [leaf * np.asarray(scales[path_name(path)], leaf.dtype) for path, leaf in flat]
        return jax.tree.unflatten(structure, scaled), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def layer_scales(shapes: Mapping[str, tuple[int, ...]], decay: float, inputs: Sequence[str]) -> dict[str, np.ndarray]:
    """What the updates of each parameter are multiplied by: decay ** (L + 1 - id) in a stack of L layers.

    The id of layer i, from 0, is i + 1; that of what comes before a stack, whose names a pattern of `inputs` is found
    in, is 0, and that of all else, such as a head, L + 1.

    Args:
      shapes: of the parameters that train, by name. Layers are stacked along the first axis of what lies below
        `blocks`, or lie side by side in `blocks_0`, `blocks_1`, ...

    Returns: numbers that multiply an update, [layers, 1, ...] for stacked parameters.
    Raises ConfigError where no stack trains, or a pattern is found in no name.
    """
    depths: dict[str, int] = {}
    for name, shape in shapes.items():
        if (place := _place(name)) is not None:
            stack, layer = place
            depths[stack] = max(depths.get(stack, 0), shape[0] if layer is None else layer + 1)
    if not depths:
        raise ConfigError(
            f"optimizer.layer_decay = {decay}, but no stack of layers trains, of which it tells one from another; set "
            "it to 1"
        )
    for pattern in inputs:
        if not any(re.search(pattern, name) for name in shapes):
            listed = ", ".join(name for name in shapes if _place(name) is None)
            raise ConfigError(
                f"optimizer.layer_inputs: {pattern!r} is found in no parameter that trains; outside of stacks there "
                f"are: {listed or 'none'}"
            )
    return {name: _scale(name, shape, depths, decay, inputs) for name, shape in shapes.items()}


def _scale(name: str, shape, depths: Mapping[str, int], decay: float, inputs: Sequence[str]) -> np.ndarray:
    place = _place(name)
    if place is None:
        if not any(re.search(pattern, name) for pattern in inputs):
            return np.float64(1)
        nearest = max(depths, key=lambda stack: _shared(stack, name))
        return np.float64(decay ** (depths[nearest] + 1))
    stack, layer = place
    if layer is not None:
        return np.float64(decay ** (depths[stack] - layer))
    scales = decay ** (shape[0] - np.arange(shape[0], dtype=np.float64))
    return scales.reshape(-1, *[1] * (len(shape) - 1))


def _place(name: str) -> tuple[str, int | None] | None:
    """(path of the stack, number of the layer or None where its layers are stacked) of a parameter in a stack."""
    match = re.match(r"((?:.*/)?)blocks(?:_(\d+))?/", name)
    return None if match is None else (match[1], None if match[2] is None else int(match[2]))


def _shared(stack: str, name: str) -> int:
    """How many parts of their paths, from the front, two have in common."""
    pairs = list(zip(stack.split("/"), name.split("/")))
    return next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
