"""What an evaluation costs: FLOPs by formula, energy by the machine's own meter or, labelled so, by an estimate."""

import dataclasses
import math
import os
import pathlib
import threading
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
MOST_WATTS = 1000.0
"""What one counter's device is taken to use at most: above any processor's power."""
WATTS_PER_CORE = 5.0  # of server processors, board power over cores: 280 W / 64 (AMD EPYC 7763), 270 W / 40 (Xeon 8380)


def flops(
    module, read: Mapping[int, int], trained: Mapping[int, int] = {}, examples: Mapping[tuple, int] = {}
) -> float | None:
    """FLOPs of sequences, {length in tokens: how many}; None where the module does not tell.

    By the convention of `fmjax.layers.flops`, with logits at every position.

    Args:
      read: of one forward pass each, a third of what training needs.
      trained: of one forward and backward pass each.
      examples: others than sequences, of one forward pass each, {(name, shape) of each array: how many}.
    """
    if not hasattr(module, "flops_per_example"):
        return None
    try:
        kinds = (read, 1), (trained, 3)
        others = sum(count * module.flops_per_example(dict(shapes)) / 3 for shapes, count in examples.items())
        return others + sum(
            count * module.flops_per_example({"tokens": (n,)}) * passes / 3
            for lengths, passes in kinds
            for n, count in lengths.items()
            if n
        )
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
    devices and the time. On several hosts, of this process's own host, and said to be.

    A counter starts again at its end, RAPL's after minutes: a thread reads it more often than it can have, and where
    it came too late an estimate is given.
    """

    def __init__(self):
        self._begin = time.perf_counter()
        self._device = jax.local_devices()[0]
        self._counters = self._read_counters()
        self._joules, self._is_whole, self._at = 0.0, True, self._begin
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._longest = min((wrap / MOST_WATTS for _, wrap in self._counters.values()), default=math.inf)
        if self._longest < threading.TIMEOUT_MAX:
            threading.Thread(target=self._keep_reading, daemon=True).start()

    def __enter__(self) -> "EnergyMeter":
        return self

    def __exit__(self, *_) -> None:
        self._ended.set()

    def read(self) -> Energy:
        self._ended.set()
        seconds = time.perf_counter() - self._begin
        found = self._measured(seconds) or self._estimated(seconds)
        if (count := jax.process_count()) > 1:
            return Energy(found.joules, f"{found.source}; of one host alone, of {count} processes")
        return found

    def _measured(self, seconds: float) -> Energy | None:
        if not self._counters:
            return None
        self._sample(self._begin + seconds)
        kind = "NVML" if self._device.platform == "gpu" else "RAPL, the whole machine"
        return Energy(self._joules, f"measured: {kind}") if self._is_whole else None

    def _estimated(self, seconds: float) -> Energy:
        if self._device.platform == "cpu":
            cores = os.cpu_count() or 1
            return Energy(seconds * cores * WATTS_PER_CORE, f"estimated: {cores} cores of {WATTS_PER_CORE:g} W")
        watts, count = WATTS.get(self._device.device_kind), jax.local_device_count()
        if watts is None:
            return Energy(None, f"not known: no power is on record for {self._device.device_kind!r}")
        return Energy(seconds * count * watts, f"estimated: {count} x {self._device.device_kind} of {watts:g} W")

    def _keep_reading(self) -> None:
        while not self._ended.wait(self._longest / 2):
            self._sample(time.perf_counter())

    def _sample(self, now: float) -> None:
        """Adds what the counters have counted since they were last read."""
        with self._lock:
            counters = self._read_counters()
            if counters.keys() != self._counters.keys() or now - self._at > self._longest:
                self._is_whole = False
                return
            self._joules += sum((counters[name][0] - old) % wrap for name, (old, wrap) in self._counters.items())
            self._counters, self._at = counters, now

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
