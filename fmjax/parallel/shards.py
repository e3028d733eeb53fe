"""Into how many parts the mesh in context splits a logical axis: for what is mapped over the shards by hand."""

import math
from collections.abc import Sequence

import flax.linen as nn


def mesh_axes(mesh, logical: Sequence[str]) -> list[tuple[str, ...]]:
    """The mesh axes that split each logical axis, by the rules in context (`nn.logical_axis_rules`).

    Args:
      mesh: such as `jax.sharding.get_abstract_mesh()`; an empty one splits nothing.
      logical: names of different axes; a mesh axis goes to the first that asks for it.
    """
    entries = nn.logical_to_mesh_axes(tuple(logical))
    names = [(entry,) if isinstance(entry, str) else tuple(entry or ()) for entry in entries]
    return [tuple(name for name in group if mesh.shape.get(name, 1) > 1) for group in names]


def num_shards(mesh, names: Sequence[str]) -> int:
    """Parts into which these mesh axes split together."""
    return math.prod(mesh.shape[name] for name in names)
