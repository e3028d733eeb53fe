"""Signals that ask a run to end: it saves where it is and leaves in order."""

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator

import jax

log = logging.getLogger("fmjax")


class Stop(threading.Event):
    """Set when a signal has asked the run to end; `training` is True once there are steps that could be lost."""

    training = False
    _agreed = False

    def agreed(self, step: int) -> bool:
        """Whether the run is to end after `step`: all its processes after the same one. They call it at every step."""
        if jax.process_count() == 1:
            return self.is_set()
        from jax.experimental import multihost_utils

        # True at one step alone, wherever in a rollout that lies.
        self._agreed = multihost_utils.reached_preemption_sync_point(step) or self._agreed
        return self._agreed


@contextlib.contextmanager
def stop_signals() -> Iterator[Stop]:
    """An event that SIGTERM or Ctrl-C sets, so that the loop can save and leave in order; a second Ctrl-C interrupts.

    With several processes SIGTERM belongs to `jax.distributed`, which lets all of them stop after the same step.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number, frame):
        if number == signal.SIGINT and not stop.training:
            raise KeyboardInterrupt  # nothing to save yet
        stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        what = "finishing this step, then saving" if stop.training else "leaving before the first step"
        log.warning("%s: %s", signal.Signals(number).name, what)
        if signal.SIGTERM not in numbers:
            signal.raise_signal(signal.SIGTERM)

    numbers = (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else (signal.SIGINT,)
    before = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
