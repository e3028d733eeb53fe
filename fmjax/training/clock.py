"""Speed of a run: what it did between two log lines, with everything that is not training taken out."""

import concurrent.futures
import logging
import math
import resource
import sys
import time

import jax

from fmjax.training.hardware import peak_flops
from fmjax.training.program import Program

log = logging.getLogger("fmjax")


class Clock:
    """Counts steps and time since the last reading.

    Args:
      mesh: for the number of devices and their peak rate.
      tokens_per_step: or None where the batch has no tokens.
      flops_per_step: the model's FLOPs of one step (see `layers.flops`), or None where the module does not tell.
    """

    def __init__(self, mesh, examples_per_step: int, tokens_per_step: int | None, flops_per_step: float | None):
        self.examples_per_step = examples_per_step
        self.tokens_per_step = tokens_per_step
        self.flops_per_step = flops_per_step
        self.device = jax.local_devices()[0]  # memory is only told of one's own devices
        self.peak = None if (one := peak_flops(self.device)) is None else one * mesh.size
        self.restart(0.0)

    def restart(self, input_wait: float, at: float | None = None) -> None:
        """Starts a new reading, now or at that `time.perf_counter()`; `input_wait` is the loader's seconds waited."""
        self.start = time.perf_counter() if at is None else at
        self.steps, self.paused, self.collecting, self.input_wait = 0, 0.0, 0.0, input_wait

    def pause(self, seconds: float) -> None:
        """Takes time spent on something else (evaluation, a save) out of the reading."""
        self.paused += seconds

    def collected(self, seconds: float) -> None:
        """Takes time spent on making rows out of the reading, which tells it by itself."""
        self.paused += seconds
        self.collecting += seconds

    def read(self, input_wait: float, at: float | None = None) -> dict[str, float]:
        """The `perf/...` metrics from the last reading until now, or until `at`, from where the next one counts.

        `steps` must have been counted up; `at` is the `time.perf_counter()` at which the last of them was complete.
        """
        at = time.perf_counter() if at is None else at
        elapsed = max(at - self.start - self.paused, 1e-9)
        seconds = elapsed / max(self.steps, 1)
        values = {
            "perf/seconds_per_step": seconds,
            "perf/examples_per_second": self.examples_per_step / seconds,
            "perf/input_wait_share": min((input_wait - self.input_wait) / elapsed, 1.0),
        }
        if self.collecting:
            values["perf/collect_seconds"] = self.collecting / max(self.steps, 1)
        if self.tokens_per_step:
            values["perf/tokens_per_second"] = self.tokens_per_step / seconds
        if self.flops_per_step:
            values["perf/model_flops_per_second"] = self.flops_per_step / seconds
            if self.peak:
                values["perf/mfu"] = self.flops_per_step / seconds / self.peak
        values |= memory(self.device)
        self.restart(input_wait, at)
        return values


def make_clock(program: Program, batch_size: int) -> Clock:
    """The clock of a program's steps; says why, where MFU cannot be told."""
    shapes = {name: array.shape for name, array in program.row.items()}
    tokens = batch_size * math.prod(shapes["tokens"]) if "tokens" in shapes else None
    module = program.module
    flops = batch_size * module.flops_per_example(shapes) if hasattr(module, "flops_per_example") else None
    clock = Clock(program.mesh, batch_size, tokens, flops)
    if clock.peak is None:
        log.info("the peak rate of %r is not known: MFU is not reported", clock.device.device_kind)
    elif flops is None:
        log.info("%s does not tell its FLOPs (flops_per_example): MFU is not reported", type(module).__name__)
    return clock


class Completions:
    """Notes when steps are complete, whenever the host comes to read them: a thread waits for each in turn.

    The host itself would have to wait for a step before it dispatches the next one.
    """

    def __init__(self):
        self.thread = concurrent.futures.ThreadPoolExecutor(1, "completions")

    def of(self, arrays) -> concurrent.futures.Future:
        """Of the `time.perf_counter()` at which `arrays` are computed."""
        return self.thread.submit(lambda: (jax.block_until_ready(arrays), time.perf_counter())[1])

    def close(self) -> None:
        """Waits for what is under way."""
        self.thread.shutdown()


def memory(device: jax.Device) -> dict[str, float]:
    """Peak memory in bytes: of the device where its backend tells, and of this process on the host."""
    values = {}
    stats = device.memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        values["perf/peak_device_memory_bytes"] = float(stats["peak_bytes_in_use"])
    unit = 1 if sys.platform == "darwin" else 1024
    values["perf/peak_host_memory_bytes"] = float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
    return values
