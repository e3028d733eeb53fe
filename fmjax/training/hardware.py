"""What is known of the chips: peak rates, memory, links; for MFU and for plans."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published figures of one device as JAX counts devices; None where not known or not needed.

    Attributes:
      peak_flops: dense bfloat16 peak, FLOP/s, sparsity not counted.
      memory_bytes: of main memory that a program may use: for TPUs what the compiler gives it, a little less than all.
      memory_bandwidth: of main memory, bytes/s.
      link_bandwidth: of one link to a neighbour in one direction, bytes/s.
      wraps_at: a dimension of a multiple of so many devices is closed to a ring; in three dimensions, where all are.
    """

    peak_flops: float
    memory_bytes: int | None = None
    memory_bandwidth: float | None = None
    link_bandwidth: float | None = None
    wraps_at: int | None = None


_GIB = 2**30
_V5E = Chip(197e12, int(15.75 * _GIB), 819e9, 45e9, 16)
_V5P = Chip(459e12, int(95.73 * _GIB), 2765e9, 90e9, 4)
_V6E = Chip(918e12, int(31.24 * _GIB), 1640e9, 90e9, 16)

# By `device.device_kind`. Peaks and bandwidths of memory are the vendors' (cloud.google.com/tpu/docs, nvidia.com data
# sheets), memory of TPUs is what libtpu 0.0.52 says is available; the links are those of "How to Scale Your Model"
# (jax-ml.github.io/scaling-book, table of chips).
CHIPS = {
    "TPU v2": Chip(22.5e12),  # a v2 or v3 device is one core, half a chip
    "TPU v3": Chip(61.5e12),
    "TPU v4": Chip(275e12, int(30.75 * _GIB), 1228e9, 45e9, 4),
    "TPU v5 lite": _V5E,
    "TPU v5e": _V5E,
    "TPU v5": _V5P,
    "TPU v5p": _V5P,
    "TPU v6 lite": _V6E,
    "TPU v6e": _V6E,
    "TPU7x": Chip(1153e12, int(94.74 * _GIB), 3690e9, 90e9, 4),  # one of the chip's two cores
    "NVIDIA A100-SXM4-40GB": Chip(312e12, 40 * 2**30, 1555e9),
    "NVIDIA A100-SXM4-80GB": Chip(312e12, 80 * 2**30, 2039e9),
    "NVIDIA H100 80GB HBM3": Chip(989e12, 80 * 2**30, 3350e9),
    "NVIDIA H200": Chip(989e12, 141 * 10**9, 4800e9),
    "Tesla T4": Chip(65e12, 16 * 2**30, 320e9),  # float16
    "NVIDIA L4": Chip(121e12, 24 * 2**30, 300e9),
}


def chip(device) -> Chip | None:
    """The figures of a device, or None where they are not known (never a guess)."""
    return CHIPS.get(device.device_kind)


def peak_flops(device) -> float | None:
    """Peak matrix rate of one device in FLOP/s, or None when it is not known (never a guess)."""
    known = chip(device)
    return known and known.peak_flops
