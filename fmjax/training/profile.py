"""A trace of some steps for TensorBoard, Perfetto or XProf: `train.profile_steps`."""

import logging
import pathlib

import jax

log = logging.getLogger("fmjax")


class Profile:
    """Traces the steps from the first of `steps` to the second into `folder`; nothing where `steps` is empty."""

    def __init__(self, steps: tuple[int, ...], folder: pathlib.Path):
        self.steps, self.folder = steps, folder
        self.tracing = False

    def at(self, next_step: int | None, state) -> None:
        """To be called before each step, and with None after the last, with the state that the step before gave."""
        if not self.steps:
            return
        first, last = self.steps
        if next_step == first:
            jax.profiler.start_trace(str(self.folder))
            self.tracing = True
        elif self.tracing and (next_step is None or next_step == last + 1):
            jax.block_until_ready(state.params)
            self.close()
            log.info("profile of steps %d to %d is in %s", first, last, self.folder)

    def close(self) -> None:
        """Ends the trace, if there is one under way."""
        if self.tracing:
            self.tracing = False
            jax.profiler.stop_trace()
