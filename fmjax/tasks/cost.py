"""What an evaluation costs: FLOPs by formula, energy by the machine's own meter or, labelled so, by an estimate."""

import dataclasses
import os
import pathlib
import time
from collections.abc import Mapping

import jax

POWERCAP = pathlib.Path("/sys/class/powercap")

# Watts of one device under load, for estimates: vendors' published board power. TPUs: Google publishes none for most;
# those given are of Jouppi et al. 2023 (https://arxiv.org/abs/2304.01433), table 4, and 2021, mean under load.
WATTS = {
    "TPU v4": 170.0,
    "NVIDIA A100-SXM4-40GB": 400.0,
    "NVIDIA A100-SXM4-80GB": 400.0,
    "NVIDIA H100 80GB HBM3": 700.0,
    "NVIDIA H200": 700.0,
    "Tesla T4": 70.0,
    "NVIDIA L4": 72.0,
}
WATTS_PER_CORE = 5.0  # of server processors, board power over cores: 280 W / 64 (AMD EPYC 7763), 270 W / 40 (Xeon 8380)


def forward_flops(module, lengths: Mapping[int, int]) -> float | None:
    """FLOPs of a forward pass over sequences, {length in tokens: how many}; None where the module does not tell.

    By the convention of `fmjax.layers.flops`, with logits at every position: a third of what training needs.
    """
    if not hasattr(module, "flops_per_example"):
        return None
    try:
        return sum(count * module.flops_per_example({"tokens": (n,)}) / 3 for n, count in lengths.items() if n)
    except KeyError:  # a module that needs other inputs, such as a source
        return None


@dataclasses.dataclass(frozen=True)
class Energy:
    """Joules, and how they are known: "measured: ..." or "estimated: ..."; None where neither can be had."""

    joules: float | None
    source: str


class EnergyMeter:
    """Energy between its making and `read()`.

    Measured by the processors' counters (RAPL, Linux; of the whole machine, other work on it included) or NVIDIA's
    (NVML, where `pynvml` is installed; of the devices JAX uses); otherwise estimated from the published power of the
    devices and the time. On several hosts, of this process's own devices.
    """

    def __init__(self):
        self._begin = time.perf_counter()
        self._device = jax.local_devices()[0]
        self._counters = self._read_counters()

    def read(self) -> Energy:
        seconds = time.perf_counter() - self._begin
        if self._counters:
            now = self._read_counters()
            joules = sum((now[name][0] - before) % wrap for name, (before, wrap) in self._counters.items())
            kind = "NVML" if self._device.platform == "gpu" else "RAPL, the whole machine"
            return Energy(joules, f"measured: {kind}")
        if self._device.platform == "cpu":
            cores = os.cpu_count() or 1
            return Energy(seconds * cores * WATTS_PER_CORE, f"estimated: {cores} cores of {WATTS_PER_CORE:g} W")
        watts, count = WATTS.get(self._device.device_kind), jax.local_device_count()
        if watts is None:
            return Energy(None, f"not known: no power is on record for {self._device.device_kind!r}")
        return Energy(seconds * count * watts, f"estimated: {count} x {self._device.device_kind} of {watts:g} W")

    def _read_counters(self) -> dict[str, tuple[float, float]]:
        """Name to (joules so far, where the count starts again); empty where there is no meter."""
        return {"gpu": _nvidia_counters, "cpu": _rapl_counters}.get(self._device.platform, dict)()


def _rapl_counters(root: pathlib.Path | None = None) -> dict[str, tuple[float, float]]:
    found = {}
    for zone in sorted((root or POWERCAP).glob("intel-rapl:[0-9]*")):
        if zone.name.count(":") > 1:  # a part of a package, which the package's own count holds already
            continue
        try:
            count, limit = (int((zone / name).read_text()) / 1e6 for name in ("energy_uj", "max_energy_range_uj"))
        except (OSError, ValueError):
            return {}
        found[zone.name] = count, limit
    return found


def _nvidia_counters() -> dict[str, tuple[float, float]]:
    try:
        import pynvml

        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(d.local_hardware_id) for d in jax.local_devices()]
        counts = [pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3 for handle in handles]
    except Exception:  # no package, no driver, or a device that does not count: an estimate is given, labelled so
        return {}
    return {str(index): (count, 2.0**54) for index, count in enumerate(counts)}
