"""The devices of a plan: real ones, simulated ones, or TPU slices that are only compiled for."""

import contextlib
import importlib.util
import math
import os
import sys
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from fmjax.errors import InputError
from fmjax.training.hardware import chip

EXAMPLES = "v4:2x2x4, v5e:2x2, v5e:16x16, v5p:4x4x4, v5p:8x16x16, v6e:16x16, tpu7x:4x4x4, cpu:8, attached"


def devices_of(topology: str) -> Sequence[jax.Device]:
    """The devices that a name stands for.

    Args:
      topology: "attached": what JAX finds; "cpu:N": N simulated devices, to be asked for before JAX has looked for its
        own; "GENERATION:AxB" or "GENERATION:AxBxC": a TPU slice, whose devices can be compiled for and no more.

    Raises: InputError for a name that is not known, or where the TPU compiler is not installed.
    """
    if topology == "attached":
        return jax.devices()
    generation, colon, shape = topology.partition(":")
    if generation == "cpu":
        return _simulated(topology, shape)
    if not colon or not generation.startswith(("v", "tpu")):
        raise InputError(f"topology {topology!r} is not known; expected something like {EXAMPLES}")
    if not all(part.isdecimal() and int(part) for part in shape.split("x")):
        raise InputError(f"topology {topology!r}: expected the slice's sides after the colon, like {EXAMPLES}")
    return _tpu_slice(topology)


def _simulated(topology: str, number: str) -> Sequence[jax.Device]:
    if not number.isdecimal() or not int(number):
        raise InputError(f"topology {topology!r}: expected cpu:N with a whole number, such as cpu:8")
    try:
        jax.config.update("jax_num_cpu_devices", int(number))
    except RuntimeError:
        pass  # JAX has its devices already: there may be enough of them
    devices = jax.devices("cpu")
    if len(devices) < int(number):
        raise InputError(
            f"topology {topology!r}: JAX has already started with {len(devices)} CPU devices; ask for it in a fresh "
            "process, before any computation"
        )
    return devices[: int(number)]


def _tpu_slice(topology: str) -> Sequence[jax.Device]:
    if importlib.util.find_spec("libtpu") is None:
        raise InputError(
            f"topology {topology!r} needs the TPU compiler, which also runs on a machine without a TPU: "
            "pip install 'jax[tpu]' (or pip install libtpu)"
        )
    from jax.experimental import topologies

    # The compiler asks the machine which TPU it has, and waits for an answer, unless told not to; and it lets one
    # process in at a time, which is for those that use a chip.
    settings = {
        "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5p-8",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }  # fmt: skip
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    # The two cores of a v4 chip are one device, as JAX has it on such a chip.
    options = {"chip_config_name": "megacore"} if topology.startswith("v4:") else {}
    try:
        with _quiet():
            return topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices
    except Exception as error:  # whatever the compiler raises for a name that it does not know
        raise InputError(
            f"topology {topology!r} is not one that the installed TPU compiler knows ({str(error).splitlines()[0]}); "
            f"expected something like {EXAMPLES}"
        ) from error


@contextlib.contextmanager
def _quiet():
    """Without what a library that is not Python's writes to the terminal; a fault still raises."""
    sys.stderr.flush()
    try:
        number = sys.stderr.fileno()
    except (OSError, ValueError):  # stderr is not a file: a notebook, a test
        yield
        return
    kept = os.dup(number)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), number)
        try:
            yield
        finally:
            os.dup2(kept, number)
            os.close(kept)


def memory_bytes(devices: Sequence[jax.Device]) -> int | None:
    """Main memory that a program may use on one of the devices; simulated ones share the machine's."""
    known = chip(devices[0])
    if known is not None and known.memory_bytes is not None:
        return known.memory_bytes
    if devices[0].platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(devices)
    stats = devices[0].memory_stats()
    return stats.get("bytes_limit") if stats else None


def axis_bandwidths(mesh: Mesh) -> Mapping[str, float] | None:
    """Bytes per second that one device can send along each mesh axis of more than one device.

    An axis laid over whole dimensions of the torus uses both directions of each; over an open or a partial dimension,
    one direction. None where the devices have no known links.
    """
    devices = mesh.devices
    known = chip(devices.flat[0])
    if known is None or known.link_bandwidth is None or not hasattr(devices.flat[0], "coords"):
        return None
    coordinates = np.array([device.coords for device in devices.flat]).reshape(*devices.shape, -1)
    sides = coordinates.reshape(-1, coordinates.shape[-1]).max(axis=0) + 1
    found = {}
    for axis, (name, size) in enumerate(mesh.shape.items()):
        if size == 1:
            continue
        line = np.moveaxis(coordinates, axis, 0).reshape(size, -1, coordinates.shape[-1])[:, 0]
        total = 0.0
        for dimension, side in enumerate(sides):
            reached = len(set(line[:, dimension].tolist()))
            if reached > 1:
                closed = reached == side and side % known.wraps_at == 0
                total += known.link_bandwidth * (2 if closed else 1)
        # Devices of one chip (two cores) have no coordinates between them: count one link.
        found[name] = total or known.link_bandwidth
    return found


def joined_bandwidth(axes: str, bandwidths: Mapping[str, float]) -> float:
    """Of a collective along several axes ("fsdp+tensor"): the links of all of them."""
    return math.fsum(bandwidths[name] for name in axes.split("+"))
