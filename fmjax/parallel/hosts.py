"""Several processes as one: connections made before anything slow, and bytes that all of them see."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, PartitionSpec


def connect(mesh: Mesh) -> None:
    """Opens the connections between processes that collectives over the mesh's axes need on CPUs.

    Gloo connects the devices of a collective at its first use, and gives up where a process comes 30 s after the
    others. Once they are connected it waits for as long as a compilation may differ between processes. So all of them
    connect here, where none has begun anything slow.

    Nothing is done where the mesh is not that of several processes' CPUs, all of them.
    """
    processes = {device.process_index for device in mesh.devices.flat}
    if jax.process_count() == 1 or len(processes) < jax.process_count() or mesh.devices.flat[0].platform != "cpu":
        return
    split = [axis for axis, size in mesh.shape.items() if size > 1]
    groups = [group for count in range(1, len(split) + 1) for group in itertools.combinations(split, count)]

    def sums(x):
        return [jax.lax.psum(x + number, group) for number, group in enumerate(groups)]

    summed = jax.shard_map(sums, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec())
    jax.block_until_ready(jax.jit(summed)(jnp.zeros(())))
    multihost_utils.sync_global_devices("connect")


def from_first_process(data: bytes) -> bytes:
    """What process 0 gave, in every process; all of them must call it, the others with anything."""
    if jax.process_count() == 1:
        return data
    data = data if jax.process_index() == 0 else b""
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    padded = np.zeros(length, np.uint8)
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes()
