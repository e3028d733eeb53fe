"""From logical axis names to mesh axes: the one place that does it, for what lies on a mesh and what is computed on it.

Arrays that lie there go by a config's table (`fmjax.parallel.sharding`), activations by the rules in context
(`nn.logical_axis_rules`), which are such a table.
"""

import math
from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
from jax.sharding import PartitionSpec


def mesh_axes(mesh, names: Sequence[str | None], table: Mapping | None = None) -> list[tuple[str, ...]]:
    """The mesh axes that split each of the dimensions so called; `PartitionSpec(*...)` of them is a sharding.

    Args:
      mesh: such as `jax.sharding.get_abstract_mesh()`. Its axes of one device split nothing, nor does an empty mesh.
      names: a logical axis a dimension, or None for one without; a mesh axis goes to the first that asks for it.
      table: logical axis to mesh axes; None is the rules in context. What is not in it is not split.
    """
    table = dict(reversed(nn.get_logical_axis_rules())) if table is None else table
    found = []
    for name in names:
        wanted = table.get(name) or ()
        taken = {axis for axes in found for axis in axes}
        wanted = (wanted,) if isinstance(wanted, str) else wanted
        found.append(tuple(axis for axis in wanted if mesh.shape.get(axis, 1) > 1 and axis not in taken))
    return found


def num_shards(mesh, names: Sequence[str]) -> int:
    """Parts into which these mesh axes split together."""
    return math.prod(mesh.shape[name] for name in names)


def constrain(x: jax.Array, names: Sequence[str | None]) -> jax.Array:
    """x, laid out by the logical axes of its dimensions where there are a mesh and rules in context.

    Inside `jax.shard_map` the mesh axes that it maps over are left out: there x is one device's part.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not nn.get_logical_axis_rules():
        return x
    if not mesh.manual_axes:
        return jax.lax.with_sharding_constraint(x, PartitionSpec(*mesh_axes(mesh, names)))
    if set(mesh.manual_axes) == set(mesh.axis_names):
        return x
    split = [tuple(axis for axis in axes if axis not in mesh.manual_axes) for axes in mesh_axes(mesh, names)]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*split))


def vary_alike(*arrays):
    """The arrays (or trees of them, or None), all varying over each mesh axis of `jax.shard_map` that one varies over.

    JAX does so for its own operations, not for the arguments of a primitive or rule of ours. The transpose is the sum
    over these axes. Where nothing varies, as outside of `shard_map`, nothing is done.
    """
    varying = lambda x: jax.typeof(x).manual_axis_type.varying
    wanted = frozenset().union(*map(varying, jax.tree.leaves(arrays)))
    return jax.tree.map(lambda x: jax.lax.pcast(x, tuple(sorted(wanted - varying(x))), to="varying"), arrays)
