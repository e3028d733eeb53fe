"""Which parameters train: `train.trainable`, regular expressions on their names."""

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fmjax.errors import ConfigError
from fmjax.layers.quantized import QTensor
from fmjax.parallel.sharding import path_name


class Trainable:
    """Cuts a tree of parameters, or of anything told a parameter, into what trains and what does not.

    A leaf that is not of a floating dtype, or is part of a quantized weight, never trains.

    Args:
      patterns: a parameter trains if one of them is found in its name, such as "decoder/stack/blocks/mlp/up/kernel";
        none: all train.
      shapes: the tree of parameters, arrays or `jax.ShapeDtypeStruct`s.
      frozen_layers: so many layers of each stack, from the input's side, do not train: of what is stacked below
        `blocks` the first rows, and all of `blocks_0`, `blocks_1`, ...

    Attributes:
      everything: whether all of them train, so that nothing is cut.
      mask: a tree like that of the parameters: whether one trains, or from which layer on.

    Raises ConfigError for a pattern that matches nothing that can train, and where no layer of a stack is left.
    """

    def __init__(self, patterns: Sequence[str], shapes: Any, frozen_layers: int = 0):
        names = [path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(shapes)[0]]
        leaves, structure = jax.tree.flatten(shapes)
        whole = jax.tree.leaves(
            jax.tree.map(lambda x: jax.tree.map(lambda _: not _is_quantized(x), x), shapes, is_leaf=_is_quantized)
        )
        floating = [able and jnp.issubdtype(leaf.dtype, jnp.floating) for able, leaf in zip(whole, leaves)]
        for pattern in patterns:
            if not any(able and re.search(pattern, name) for able, name in zip(floating, names)):
                listed = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
                raise ConfigError(
                    f"train.trainable: {pattern!r} matches no parameter that can train; there are: {listed}"
                )
        chosen = [not patterns or any(re.search(p, name) for p in patterns) for name in names]
        mask = [able and one for able, one in zip(floating, chosen)]
        if frozen_layers:
            mask = [one and _from_layer(frozen_layers, name, leaf) for one, name, leaf in zip(mask, names, leaves)]
            if not any(one is not True and one is not False for one in mask):
                raise ConfigError(f"train.frozen_layers = {frozen_layers}, but no stack of layers trains")
        self.everything = all(one is True for one in mask)
        self.mask = jax.tree.unflatten(structure, mask)

    def split(self, tree: Any) -> tuple[Any, Any]:
        """(what trains, the rest): two trees like this one, each with None where the other has the leaf; a leaf of
        which some layers train is cut."""
        if self.everything:
            return tree, None

        def pick(wanted):
            def one(mask, part):
                if mask is True or mask is False:
                    return part if mask is wanted else None
                return _layers(part, slice(mask, None) if wanted else slice(mask))

            return jax.tree.map(one, self.mask, tree)

        return pick(True), pick(False)

    def merge(self, trained: Any, rest: Any) -> Any:
        """The tree that `split` cut."""
        if self.everything:
            return trained

        def one(mask, a, b):
            if mask is True or mask is False:
                return a if mask else b
            return jnp.concatenate([b, a])

        return jax.tree.map(one, self.mask, trained, rest)


def _from_layer(frozen: int, name: str, leaf) -> bool | int:
    """Whether a parameter trains, or from which layer on. Raises ConfigError where none of its layers does."""
    if (alone := re.search(r"(^|/)blocks_(\d+)/", name)) is not None:
        return int(alone[2]) >= frozen
    if re.search(r"(^|/)blocks/", name) is None:
        return True
    if frozen >= leaf.shape[0]:
        raise ConfigError(f"train.frozen_layers = {frozen} leaves none of the {leaf.shape[0]} layers of {name!r}")
    return frozen


def _layers(part, rows: slice):
    """Rows of an array or of its shape; what is told of all layers alike, such as a sharding, as it is."""
    if isinstance(part, jax.ShapeDtypeStruct):
        shape = (len(range(*rows.indices(part.shape[0]))), *part.shape[1:])
        return jax.ShapeDtypeStruct(shape, part.dtype, sharding=part.sharding)
    return part[rows] if isinstance(part, jax.Array | np.ndarray) else part


def _is_quantized(x) -> bool:
    return isinstance(x, QTensor)


ALL = Trainable((), {})
"""Every parameter of any tree."""
