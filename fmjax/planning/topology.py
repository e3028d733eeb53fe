"""The devices of a plan: real ones, simulated ones, or TPU slices that are only compiled for."""

import contextlib
import importlib.util
import itertools
import math
import os
import pathlib
import sys
from collections import Counter
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
    if generation in ("v5e", "v6e") and shape.count("x") != 1:
        raise InputError(f"topology {topology!r}: slices of {generation} have two sides, like {generation}:4x4")
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
            "pip install 'jax[tpu]' (the extra [plan] of fmjax)"
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
            f"topology {topology!r}: the TPU compiler refuses it: {str(error).splitlines()[0]}\n"
            f"Expected something like {EXAMPLES}"
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
    if devices[0].platform == "cpu":
        return _machine_memory() // len(devices)
    try:
        stats = devices[0].memory_stats()  # of a device that is there: what JAX has taken for itself
    except jax.errors.JaxRuntimeError:
        stats = None
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"]
    known = chip(devices[0])
    return known and known.memory_bytes


def _machine_memory() -> int:
    """Of the machine, or what a container may take of it."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = pathlib.Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    return min(found, int(text)) if text.isdecimal() else found


def axis_bandwidths(mesh: Mesh) -> dict[str, float]:
    """Bytes per second that one device can send along each mesh axis of more than one device, where that is known.

    An axis laid over a dimension of the torus that is closed uses both directions; over an open dimension, or a part of
    one, as much as the device at its end: one. Where neighbours along the axis are several links apart they share
    those with the lines between. An axis from slice to slice is not known, nor are devices without known links.
    """
    devices = mesh.devices
    known = chip(devices.flat[0])
    if known is None or known.link_bandwidth is None or not hasattr(devices.flat[0], "coords"):
        return {}
    coordinates = np.array([device.coords for device in devices.flat]).reshape(*devices.shape, -1)
    slices = np.array([getattr(device, "slice_index", 0) for device in devices.flat]).reshape(devices.shape)
    sides = coordinates.reshape(-1, coordinates.shape[-1]).max(axis=0) + 1
    whole_torus = all(side % known.wraps_at == 0 for side in sides)
    found = {}
    for axis, (name, size) in enumerate(mesh.shape.items()):
        if size == 1 or len(np.unique(np.moveaxis(slices, axis, 0).reshape(size, -1)[:, 0])) > 1:
            continue
        line = np.moveaxis(coordinates, axis, 0).reshape(size, -1, coordinates.shape[-1])[:, 0]
        total = 0.0
        for dimension, side in enumerate(sides):
            places = np.unique(line[:, dimension])
            if len(places) > 1:
                rings = whole_torus if known.wraps_at == 4 else side % known.wraps_at == 0
                directions = 2 if rings and len(places) == side else 1
                total += known.link_bandwidth * directions / np.diff(places).min()
        # Devices of one chip (two cores) have no coordinates between them: count one link.
        found[name] = total or known.link_bandwidth
    return found


def link_seconds(link_bytes: Mapping[str, float], bandwidths: Mapping[str, float]) -> dict[str, float]:
    """Seconds for which the links of each axis are busy, traffic along several axes spread over them at its best.

    The links of any set of axes must carry what goes along no others. However all is spread, the set for which that
    takes longest takes so long, and need not take longer: what goes along further axes too is left to those, for which
    the same then holds. So the longest time is a bound from below.

    Args:
      link_bytes: what one device sends, by axes joined by "+".
      bandwidths: bytes per second of the axes; what goes along another, whose links are not known, is left out.
    """
    left = {frozenset(axes.split("+")): sent for axes, sent in link_bytes.items()}
    left = {axes: sent for axes, sent in left.items() if axes <= bandwidths.keys()}
    axes, found = set().union(*left), {}
    while axes:
        sizes = range(1, len(axes) + 1)
        sets = [frozenset(one) for size in sizes for one in itertools.combinations(sorted(axes), size)]
        seconds = {
            one: math.fsum(sent for along, sent in left.items() if along <= one) / math.fsum(bandwidths[a] for a in one)
            for one in sets
        }
        slowest = max(sets, key=seconds.get)
        found |= dict.fromkeys(sorted(slowest), seconds[slowest])
        axes -= slowest
        spread: Counter[frozenset] = Counter()
        for along, sent in left.items():
            spread[along - slowest] += sent
        left = {along: sent for along, sent in spread.items() if along}
    return found
