"""A mesh for using a trained model: where its parameters lie, and the context to compute in."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from fmjax.errors import ConfigError
from fmjax.parallel.hosts import connect
from fmjax.parallel.logical import mesh_axes, num_shards
from fmjax.parallel.mesh import AXES, MeshConfig, make_mesh
from fmjax.parallel.sharding import param_shardings
from fmjax.registry import nearest


@dataclasses.dataclass(frozen=True)
class Placement:
    """A mesh with the config it was made from."""

    mesh: Mesh
    config: MeshConfig

    @classmethod
    def make(cls, sizes: Mapping[str, Any]) -> "Placement":
        """The placement over all devices for fields of `MeshConfig`, {"fsdp": 2, "tensor": 2}.

        `data` fills the rest, unless another axis is -1.

        Raises ConfigError for an unknown field, or sizes that do not multiply to the devices.
        """
        known = [field.name for field in dataclasses.fields(MeshConfig)]
        for key in sizes:
            if key not in known:
                raise ConfigError(f"mesh has no field {key!r}{nearest(key, known)} Known: {', '.join(known)}")
        given = [sizes.get(axis) for axis in AXES] + list(sizes.get("extra", {}).values())
        fills = {"data": 1} if -1 in given else {}
        config = MeshConfig(**fills | dict(sizes))
        mesh = make_mesh(config)
        connect(mesh)
        return cls(mesh, config)

    def shardings(self, shapes, axes):
        """Of every parameter; arguments and errors as in `param_shardings`."""
        return param_shardings(shapes, axes, self.mesh, self.config.table, self.config.replicate)

    def inference(self):
        """See `inference_context`."""
        return inference_context(self.mesh, self.config.table)

    def scoring(self):
        """As `inference`, with the rows of a batch split over `num_row_shards`."""
        return inference_context(self.mesh, self.config.table, split_rows=True)

    @property
    def num_row_shards(self) -> int:
        """Into how many parts the mesh splits the rows of a batch."""
        (axes,) = mesh_axes(self.mesh, ("batch",), self.config.table)
        return num_shards(self.mesh, axes)


@contextlib.contextmanager
def inference_context(mesh: Mesh, table: Mapping[str, tuple[str, ...]], split_rows: bool = False):
    """Generation and scoring with parameters that lie on `mesh` belong inside this context.

    The rows of a few prompts do not divide over the mesh's axes of the batch, so they stay whole unless `split_rows`;
    "cache_rows" are the axes that the engine splits the rows of its cache over, where they do.
    """
    rules = dict(table) | {"length": (), "cache_rows": table.get("batch", ())}
    if not split_rows:
        rules["batch"] = ()
    with jax.set_mesh(mesh), nn.logical_axis_rules(tuple(rules.items())):
        yield


def whole(tree):
    """Under jit: the arrays whole on every device of the mesh at hand, so that every host can read them.

    Without a mesh, as they are.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return tree
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, PartitionSpec()), tree)


def put_whole(array, placement: Placement | None) -> jax.Array:
    """An array whole on the devices of a placement, or, without one, on the first device: as `whole` gives it back, so
    that a program that takes what it gave is not compiled for either anew."""
    first = SingleDeviceSharding(jax.local_devices()[0])
    return jax.device_put(array, first if placement is None else NamedSharding(placement.mesh, PartitionSpec()))


def each_inside(context: Callable[[], contextlib.AbstractContextManager], items: Iterator) -> Iterator:
    """The items of an iterator, each made inside a context that is left again before the item is handed on."""
    done = object()
    while True:
        with context():
            item = next(items, done)
        if item is done:
            return
        yield item
