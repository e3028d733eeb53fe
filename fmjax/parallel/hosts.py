"""Several processes as one: connections made before anything slow, and bytes that all of them see."""

import itertools
import json
import pathlib
import secrets
import socket
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, PartitionSpec

from fmjax.config_values import differing_keys
from fmjax.errors import ConfigError, DataError
from fmjax.parallel.watch import barrier

PIECE = 2**26
"""Bytes that processes send at a time: each copy of them lies on a device for the while."""
PATIENCE = 20.0
"""Seconds that a network file system may take to show a new file."""


def connect(mesh: Mesh) -> None:
    """Waits until all processes of the mesh are here, and opens the connections that its collectives need on CPUs.

    The wait has a time-out and names who is missing, which no collective does. On CPUs Gloo connects the devices of a
    collective at its first use, and gives up where a process comes 30 s after the others. Once they are connected it
    waits for as long as a compilation may differ between processes. So all of them connect here, where none has begun
    anything slow.

    Nothing is done where the mesh is not that of several processes, all of them.
    """
    processes = {device.process_index for device in mesh.devices.flat}
    if jax.process_count() == 1 or len(processes) < jax.process_count():
        return
    barrier("the devices' connections")
    if mesh.devices.flat[0].platform != "cpu":
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

    def broadcast(part: bytes) -> bytes:
        return np.asarray(multihost_utils.broadcast_one_to_all(np.frombuffer(part, np.uint8))).tobytes()

    # As bytes: a number of more than 32 bits would lose the others on the way.
    length = int.from_bytes(broadcast(len(data).to_bytes(8, "little")), "little")
    starts = range(0, length, PIECE)
    return b"".join(broadcast(data[i : i + PIECE].ljust(min(PIECE, length - i), b"\0")) for i in starts)


def check_shared(folder: pathlib.Path) -> None:
    """Raises ConfigError in a process that does not see in `folder` what process 0 writes there.

    All processes must call it; only process 0 needs the folder to exist.
    """
    if jax.process_count() == 1:
        return
    mark = secrets.token_hex(8).encode()
    file = folder / ".shared"
    if jax.process_index() == 0:
        file.write_bytes(mark)
    barrier("the shared folder")
    mark = from_first_process(mark)
    deadline = time.monotonic() + PATIENCE
    while not (file.is_file() and file.read_bytes() == mark):
        if time.monotonic() > deadline:
            raise ConfigError(
                f"{str(folder)!r} on host {socket.gethostname()} is not the folder of that name on process 0's host; "
                "give one on a file system that all hosts share"
            )
        time.sleep(0.1)
    multihost_utils.sync_global_devices("shared")
    if jax.process_index() == 0:
        file.unlink(missing_ok=True)


def check_same(contents: Mapping[str, Any]) -> None:
    """Raises DataError in a process that has read something else than process 0, naming what and its host.

    All processes must call it, and none goes on before all of them have.

    Args:
      contents: names of what was read and of its content: JSON-able, dicts of dicts.
    """
    if jax.process_count() == 1:
        return
    first = json.loads(from_first_process(json.dumps(contents).encode()))
    for name, theirs, own in differing_keys(first, contents):
        raise DataError(
            f"{name} on host {socket.gethostname()} is {own!r}, and for process 0 {theirs!r}: it reads other files; "
            "give all hosts the same"
        )
    barrier("the comparison of what was read")
