"""One point measured: the train step of `fmjax.train` planned, compiled and run in this process."""

import ctypes
import gc
import pathlib
import sys
import time

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

from points import Point  # noqa: E402
from runs import memory, reset_peak  # noqa: E402


def measure(point: Point, min_steps: int, min_seconds: float) -> dict:
    """Seconds and bytes of a step.

    Args:
      min_steps, min_seconds: steps are timed until there are so many and they have taken so long.

    Returns:
      model_flops, hardware_flops: by the formula, and in the products of the compiled program; of all devices.
      planned_bytes: of one device, by the plan.
      process_bytes: by which the process grew for the state and one step by itself, by device.
      running_bytes: the same after all steps: what a step gives back is not always back before the next one asks for
        as much, or not in one piece.
      seconds: of the fastest step; `steps` were timed, their median took `median_seconds`.
      compile_seconds: of tracing and compiling the step, as the first thing that this process compiles.
    """
    from fmjax import cpu

    cpu.set_up_training()  # as `fmjax.train` does
    import jax

    from fmjax.config import resolve
    from fmjax.planning.plan import plan_program, planned_program

    program, example = planned_program(resolve(point.config()), jax.devices(), HERE)
    start = time.perf_counter()
    run_step = program.compile_train_step()
    compile_seconds = time.perf_counter() - start
    plan = plan_program(program, example, "attached")
    batch = _batch(program)
    _give_back()
    before = memory("VmRSS")
    state = program.init()
    state, metrics = run_step(state, batch, program.key)
    metrics["loss"].block_until_ready()
    _give_back()  # what making the state took for a while
    reset_peak()
    seconds = []
    while len(seconds) < min_steps or sum(seconds) < min_seconds:
        start = time.perf_counter()
        state, metrics = run_step(state, batch, program.key)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - start)
        if len(seconds) == 1:
            process_bytes = memory("VmHWM") - before
    return dict(
        model_flops=plan.model_flops_per_step, hardware_flops=plan.hardware_flops_per_step,
        planned_bytes=plan.peak_bytes_per_device, process_bytes=process_bytes / point.devices,
        running_bytes=(memory("VmHWM") - before) / point.devices,
        seconds=min(seconds), median_seconds=sorted(seconds)[len(seconds) // 2], steps=len(seconds),
        compile_seconds=compile_seconds, loss=float(metrics["loss"]),
    )  # fmt: skip


def _batch(program) -> dict:
    """Rows of one document each, of random bytes: they cost a model what text does."""
    import jax
    import numpy as np

    shape = program.batch_spec["tokens"].shape
    tokens = np.random.default_rng(0).integers(0, 256, (shape[0], shape[1] + 1), np.int32)
    arrays = dict(
        tokens=tokens[:, :-1], targets=tokens[:, 1:], loss_weights=np.ones(shape, np.float32),
        segment_ids=np.ones(shape, np.int32), positions=np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape),
    )  # fmt: skip
    return jax.device_put(arrays, program.batch_sharding)


def _give_back() -> None:
    """Pages that nothing uses any more go back to the system, so that they are not taken for those of a step."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
