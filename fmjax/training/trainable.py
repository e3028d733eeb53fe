"""Which parameters train: `train.trainable`, regular expressions on their names."""

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

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

    Attributes:
      everything: whether all of them train, so that nothing is cut.

    Raises ConfigError for a pattern that matches nothing that can train.
    """

    def __init__(self, patterns: Sequence[str], shapes: Any):
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
        self.everything = all(mask)
        self.mask = jax.tree.unflatten(structure, mask)

    def split(self, tree: Any) -> tuple[Any, Any]:
        """(what trains, the rest): two trees like this one, each with None where the other has the leaf."""
        if self.everything:
            return tree, None
        pick = lambda wanted: jax.tree.map(lambda one, part: part if one is wanted else None, self.mask, tree)
        return pick(True), pick(False)

    def merge(self, trained: Any, rest: Any) -> Any:
        """The tree that `split` cut."""
        if self.everything:
            return trained
        return jax.tree.map(lambda one, a, b: a if one else b, self.mask, trained, rest)


def _is_quantized(x) -> bool:
    return isinstance(x, QTensor)


ALL = Trainable((), {})
"""Every parameter of any tree."""
