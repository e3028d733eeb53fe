"""Where parameters, optimizer state, carries and batches lie; what cannot lie as the table says is a named error."""

import math
import re
from collections.abc import Mapping

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fmjax.errors import ConfigError
from fmjax.parallel.logical import mesh_axes, num_shards
from fmjax.registry import nearest

# A parameter with more elements than this must be sharded when the mesh has an axis to shard over.
LARGE_PARAMETER = 2**20


def logical_axes(boxed_params):
    """The tree of logical axis names (a tuple a parameter) of what a module's `init` returns.

    A parameter without names, from a module that annotates none, gets `None` for every dimension.
    """
    is_box = lambda x: isinstance(x, nn.Partitioned)  # LogicallyPartitioned is one
    return jax.tree.map(
        lambda leaf: tuple(leaf.names) if is_box(leaf) else (None,) * len(leaf.shape), boxed_params, is_leaf=is_box
    )


def path_name(path) -> str:
    """`decoder/layers/mlp/kernel` for a key path of `jax.tree_util`."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def param_shardings(shapes, axes, mesh: Mesh, table: Mapping[str, tuple[str, ...]], replicate: tuple[str, ...] = ()):
    """The sharding of every parameter.

    Args:
      shapes: tree of arrays or `jax.ShapeDtypeStruct`.
      axes: the same tree of logical axis names, from `logical_axes`. One that ends in "?" splits its dimension where
        that divides, and leaves it whole where it does not.
      table: logical axis to mesh axes.
      replicate: regular expressions of parameter names that may stay whole although large.

    Raises:
      ConfigError: a logical axis is not in the table, a dimension does not divide, or a large parameter would be
        whole on every device of a mesh that could split it. The message names the parameter.
    """
    splittable = math.prod(size for axis, size in mesh.shape.items() if axis != "data") > 1

    def one(path, shape, names):
        name = path_name(path)
        optional = [logical is not None and logical.endswith("?") for logical in names]
        names = tuple(logical and logical.removesuffix("?") for logical in names)
        for logical in names:
            if logical is not None and logical not in table:
                raise ConfigError(
                    f"parameter {name!r}: logical axis {logical!r} is not in the sharding "
                    f"table{nearest(logical, table)} Known: {', '.join(table)}; add it under mesh.rules"
                )
        split = mesh_axes(mesh, names, table)
        whole = [may and size % num_shards(mesh, by) != 0 for size, by, may in zip(shape.shape, split, optional)]
        split = [() if keep else by for by, keep in zip(split, whole)]
        for dimension, (size, axes) in enumerate(zip(shape.shape, split)):
            if size % num_shards(mesh, axes):
                raise ConfigError(
                    f"parameter {name!r} with axes {names}: dimension {dimension} of shape {shape.shape} has size "
                    f"{size}, which does not divide over {' x '.join(axes)!r} ({num_shards(mesh, axes)} devices)"
                )
        large = math.prod(shape.shape) > LARGE_PARAMETER
        if splittable and large and not any((*split, *whole)) and not any(re.search(p, name) for p in replicate):
            raise ConfigError(
                f"parameter {name!r} of shape {shape.shape} (axes {names}) would be whole on each of {mesh.size} "
                "devices; give its axes a mesh axis in mesh.rules, or add a pattern that matches it to mesh.replicate"
            )
        return NamedSharding(mesh, PartitionSpec(*split))

    return jax.tree_util.tree_map_with_path(one, shapes, axes)


def batch_sharding(mesh: Mesh, table: Mapping[str, tuple[str, ...]]) -> NamedSharding:
    """Sharding of the leading, global batch axis of every array of a batch.

    Raises ConfigError for a table without `batch`, which would have every device compute the whole batch.
    """
    if "batch" not in table:
        known = ", ".join(table)
        raise ConfigError(f"the sharding table has no logical axis 'batch', only: {known}; add it under mesh.rules")
    return NamedSharding(mesh, PartitionSpec(*mesh_axes(mesh, ("batch",), table)))


def check_batch(batch_size: int, mesh: Mesh, table: Mapping[str, tuple[str, ...]], what: str) -> None:
    """Raises ConfigError when `batch_size` does not divide over the mesh axes of the batch."""
    (axes,) = mesh_axes(mesh, ("batch",), table)
    parts = num_shards(mesh, axes)
    if batch_size % parts:
        sizes = " x ".join(f"{a} {mesh.shape[a]}" for a in axes)
        raise ConfigError(f"{what} = {batch_size} does not divide over the mesh's {parts} batch shards ({sizes})")


def local_rows(batch_size: int, sharding: NamedSharding) -> list[int]:
    """Indices, within a global batch, of the rows that this process's devices hold."""
    rows = set()
    for rows_slice, *_ in sharding.addressable_devices_indices_map((batch_size,)).values():
        rows.update(range(*rows_slice.indices(batch_size)))
    return sorted(rows)


def to_global(batch: dict[str, np.ndarray], rows: list[int], spec) -> dict[str, jax.Array]:
    """Global arrays from the rows this process holds.

    Args:
      batch: [len(rows), ...] arrays.
      rows: their indices within the global batch, ascending.
      spec: the global batch as ShapeDtypeStructs with shardings.
    """
    place = {row: i for i, row in enumerate(rows)}

    def one(local, shape):
        if shape.sharding.is_fully_addressable:
            return jax.device_put(local, shape.sharding)

        def shard(index):
            start, stop, _ = index[0].indices(shape.shape[0])
            return local[place[start] : place[start] + stop - start]

        return jax.make_array_from_callback(shape.shape, shape.sharding, shard)

    return {name: one(batch[name], shape) for name, shape in spec.items()}


def like_params(tree, params, shardings, default):
    """Shardings for `tree` (an optimizer state), whose leaves mirror parameters somewhere below their path.

    A leaf at a path that ends in a parameter's path takes that parameter's sharding when the shapes agree, and the
    sharding without the missing dimension when it is the parameter reduced over one (Adafactor's factors); any other
    leaf takes `default`.
    """
    flat = {
        tuple(str(k) for k in path): (leaf.shape, sharding)
        for (path, leaf), sharding in zip(
            jax.tree_util.tree_flatten_with_path(params)[0], jax.tree.leaves(shardings), strict=True
        )
    }

    def one(path, leaf):
        keys = tuple(str(k) for k in path)
        for start in range(len(keys)):
            if keys[start:] in flat:
                shape, sharding = flat[keys[start:]]
                return _reduced(leaf.shape, shape, sharding, default)
        return default

    return jax.tree_util.tree_map_with_path(one, tree)


def carry_shardings(boxed, params, shardings, mesh: Mesh, table: Mapping[str, tuple[str, ...]]):
    """Of what an objective carries: by names where a leaf is boxed with them, as the parameter it mirrors, or whole.

    Args:
      boxed: shapes of the carry, with boxes of logical axis names where it has such.
      params, shardings: of the parameters.
      table: logical axis to mesh axes.

    Raises ConfigError as `param_shardings`, but for large leaves that stay whole.
    """
    shapes, axes = nn.unbox(boxed), logical_axes(boxed)
    named = param_shardings(shapes, axes, mesh, table, replicate=(".*",))
    mirrored = like_params(shapes, params, shardings, NamedSharding(mesh, PartitionSpec()))
    return jax.tree.map(lambda by_name, by_path, names: by_name if any(names) else by_path, named, mirrored, axes)


def _reduced(shape, param_shape, sharding: NamedSharding, default):
    if tuple(shape) == tuple(param_shape):
        return sharding
    spec = (*sharding.spec, *(None,) * (len(param_shape) - len(sharding.spec)))
    # Equal sizes make the missing dimension ambiguous; any choice is a valid layout, the last is the usual factor.
    for gone in reversed(range(len(param_shape))):
        if tuple(shape) == (*param_shape[:gone], *param_shape[gone + 1 :]):
            return NamedSharding(sharding.mesh, PartitionSpec(*spec[:gone], *spec[gone + 1 :]))
    return default
