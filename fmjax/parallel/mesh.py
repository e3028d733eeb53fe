"""The device mesh and the one table that maps logical axes to mesh axes."""

import dataclasses
import math
import re
from collections.abc import Mapping

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from fmjax.errors import ConfigError

AXES = ("data", "fsdp", "tensor", "sequence")

# Axes that may go from slice to slice (a host, on GPUs), the one that sends least first.
SLICED = ("data", "fsdp", "sequence", "tensor")

# Logical axis of a parameter or activation -> mesh axes. An empty tuple says: replicated, on purpose.
DEFAULT_RULES: dict[str, tuple[str, ...]] = {
    # parameters
    "vocab": ("tensor",),
    "embed": ("fsdp", "sequence"),  # what splits a batch may split the parameters too
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "layers": (),
    "position": (),
    "norm": (),
    "rank": (),  # of low-rank adapters
    # what objectives carry
    "codes": (),
    "queue": (),
    # activations
    "batch": ("data", "fsdp"),
    "length": ("sequence",),
    "act_embed": (),
    "act_heads": ("tensor",),
    "act_mlp": ("tensor",),
    "act_vocab": ("tensor",),
}


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How many devices along each mesh axis, and the table. One size may be -1: whatever is left."""

    data: int = -1  # replicas of the whole model (DDP)
    fsdp: int = 1  # parameters, gradients and optimizer state split, batch split too (FSDP, ZeRO-3)
    tensor: int = 1  # every layer split (Megatron's tensor parallelism)
    # long sequences split (context parallelism), and with them parameters, gradients and optimizer state
    sequence: int = 1
    extra: dict[str, int] = dataclasses.field(default_factory=dict)  # further axes, {"expert": 4}, for `rules` to use
    # logical axis to mesh axes, over DEFAULT_RULES
    rules: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    replicate: tuple[str, ...] = ()  # parameters (regular expressions on names) that may stay whole on every device

    def __post_init__(self):
        for axis in self.extra:
            if axis in AXES:
                raise ConfigError(f"mesh.extra names the axis {axis!r}, which every mesh has; set mesh.{axis}")
        for axis, size in self.sizes.items():
            if size < 1 and size != -1:
                raise ConfigError(f"mesh.{axis} = {size} must be at least 1, or -1 for whatever is left")
        if list(self.sizes.values()).count(-1) > 1:
            raise ConfigError(f"only one mesh axis may be -1, got {self.sizes}; set the others, such as mesh.data=1")
        for logical, mesh_axes in self.rules.items():
            for axis in mesh_axes:
                if axis not in self.sizes:
                    known = ", ".join(self.sizes)
                    raise ConfigError(f"mesh.rules.{logical} names the mesh axis {axis!r}; known: {known}")
        for pattern in self.replicate:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(f"mesh.replicate: {pattern!r} is not a regular expression ({error})") from None

    @property
    def sizes(self) -> dict[str, int]:
        """Of all mesh axes, in the order of the mesh: neighbouring devices differ in the last."""
        first, *others = AXES
        return {first: getattr(self, first)} | dict(self.extra) | {axis: getattr(self, axis) for axis in others}

    def filled(self, num_devices: int) -> dict[str, int]:
        """`sizes` with -1 filled in. Raises ConfigError when they do not multiply to the number of devices."""
        sizes = self.sizes
        fixed = math.prod(size for size in sizes.values() if size != -1)
        if -1 in sizes.values():
            if num_devices % fixed:
                raise ConfigError(
                    f"mesh {sizes}: {num_devices} devices are not divisible by the fixed sizes' product {fixed}"
                )
            sizes = {axis: num_devices // fixed if size == -1 else size for axis, size in sizes.items()}
        if math.prod(sizes.values()) != num_devices:
            raise ConfigError(
                f"mesh {sizes} needs {math.prod(sizes.values())} devices, there are {num_devices}; "
                "set one mesh axis to -1 to take whatever is there"
            )
        return sizes

    @property
    def table(self) -> dict[str, tuple[str, ...]]:
        """The full table, logical axis to mesh axes."""
        return DEFAULT_RULES | {k: tuple(v) for k, v in self.rules.items()}


def make_mesh(config: MeshConfig, devices=None) -> Mesh:
    """The mesh of `config` over `devices`; None is all.

    Raises ConfigError when the sizes do not multiply to them.
    """
    devices = jax.devices() if devices is None else devices
    sizes = config.filled(len(devices))
    shape, names = tuple(sizes.values()), tuple(sizes)
    types = (AxisType.Auto,) * len(names)
    if devices and devices[0].platform == "cpu":
        grid = np.asarray(devices).reshape(shape)  # simulated devices have no topology to lay the mesh on
        return Mesh(grid, names, axis_types=types)
    return Mesh(_laid_out(sizes, devices), names, axis_types=types)


def _laid_out(sizes: Mapping[str, int], devices) -> np.ndarray:
    """The devices such that neighbours along an axis are near each other; `SLICED` go from slice to slice."""
    shape = tuple(sizes.values())
    num_slices = len({getattr(device, "slice_index", 0) for device in devices})
    if num_slices == 1:
        # An axis may take a part of a dimension of the torus, where whole dimensions do not give the sizes.
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    between, left = {}, num_slices
    for axis in SLICED:
        between[axis] = math.gcd(sizes[axis], left)
        left //= between[axis]
    if left > 1:
        given = ", ".join(f"mesh.{axis} = {sizes[axis]}" for axis in SLICED)
        raise ConfigError(
            f"{given} do not divide over {num_slices} slices (hosts, on GPUs), across which only these axes go; "
            f"make their product a multiple of {num_slices}"
        )
    within = tuple(size // between.get(axis, 1) for axis, size in sizes.items())
    across = tuple(between.get(axis, 1) for axis in sizes)
    return mesh_utils.create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)
