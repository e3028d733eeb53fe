"""How many steps a run has that may take so many minutes: measured before its first step, on a state that is then left.

The run is that of `train.steps` = this number from its first step on, its schedule included, and keeps it.
"""

import logging
import time
from collections.abc import Callable

import jax
import numpy as np

from fmjax.errors import ConfigError
from fmjax.parallel.sharding import to_global

log = logging.getLogger("fmjax")

SHARE = 0.1
"""Of its minutes a run has at least this share for steps, however long it took to prepare them."""
MEASURED_SECONDS, LEAST, MOST = 3.0, 2, 20
"""How long steps are measured for, and how many of them at least and at most."""


def measured(program, loader, rows: list[int]) -> tuple[Callable, float, float]:
    """(the compiled train step, seconds of compiling it, seconds of a step) of a program, on batches of its own run."""
    begin = time.perf_counter()
    train_step = program.compile_train_step()
    compiling = time.perf_counter() - begin
    state = program.init()

    def step():
        nonlocal state
        batch = to_global(next(loader), rows, program.batch_spec)
        state, metrics = train_step(state, batch, program.key, *program.others)
        jax.block_until_ready(metrics)

    return train_step, compiling, seconds_per_step(step)


def seconds_per_step(step: Callable[[], None], clock: Callable[[], float] = time.perf_counter) -> float:
    """Of `step()`, which returns when the step is complete. All processes call it as often, and get process 0's answer.

    The first two calls are not counted: the first is slower, the second says how many the time to measure leaves.
    """
    step()
    begin = clock()
    step()
    count = round(_agreed(np.clip(MEASURED_SECONDS / max(clock() - begin, 1e-9), LEAST, MOST)))
    begin = clock()
    for _ in range(count):
        step()
    return _agreed((clock() - begin) / count)


def steps_in_time(wanted: int, minutes: float, passed: float, compiling: float, per_step: float) -> int:
    """The steps of a run: `wanted`, or as many as its minutes leave, or the least (`SHARE`), which takes longer.

    All processes get process 0's answer.

    Args:
      minutes: `train.max_minutes`.
      passed: seconds since the run's command began.
      compiling: seconds of compiling a step, which another number of steps makes necessary once more.
      per_step: seconds.

    Raises ConfigError where no step fits into that share.
    """
    left = 60.0 * minutes - passed
    fitting = wanted if wanted * per_step <= left else int((left - compiling) / per_step)
    least = int(SHARE * 60.0 * minutes / per_step)
    steps = round(_agreed(min(wanted, max(fitting, least))))
    begun = f"{passed:.0f} s have passed since the command began, compiling takes {compiling:.0f} s more"
    if steps < 1:
        raise ConfigError(
            f"train.max_minutes = {minutes:g} leaves no time for a step: {begun}, a step {per_step:.2g} s. Give the "
            "run more minutes"
        )
    if steps > max(fitting, 0):
        log.warning("%s: the run takes longer than train.max_minutes = %g, a tenth of it in steps", begun, minutes)
    return steps


def _agreed(value: float) -> float:
    """Process 0's value, for all processes."""
    if jax.process_count() == 1:
        return float(value)
    from jax.experimental import multihost_utils

    return float(multihost_utils.broadcast_one_to_all(np.float32(value)))
