"""What the terminal shows of the steps: a bar, the time to the first one, an estimate of the time of the others."""

import logging
import sys
import time

from tqdm import tqdm

log = logging.getLogger("fmjax")


class Progress:
    """The steps from `step`, which is done, to `last`.

    Args:
      shown: whether there is a bar; the lines of the log are written in any case.
    """

    def __init__(self, step: int, last: int, shown: bool):
        self.first, self.last = step + 1, last
        self.measured_from, self.estimated, self.said_waiting = 0.0, False, False
        # A terminal is redrawn often; a log file gets a line now and then.
        interval = 0.5 if sys.stderr.isatty() else 15.0
        self.bar = tqdm(
            total=last, initial=step, unit="step", disable=not shown, dynamic_ncols=True,
            mininterval=interval, maxinterval=interval,
        )  # fmt: skip

    def first_done(self, seconds: float) -> None:
        """The first step was complete so many seconds after the start."""
        log.info("first step %.1f s after the start", seconds)
        self.measured_from = time.perf_counter()

    def say_waiting(self, speed: dict[str, float]) -> None:
        """Says once that the steps wait for their rows, where they do for more than a fifth of the time."""
        share, rate = speed["perf/input_wait_share"], speed.get("perf/rows_per_core_second")
        if share > 0.2 and rate and not self.said_waiting:
            self.said_waiting = True
            log.warning(
                "%.0f%% of the time the steps wait for rows, of which a core makes %.0f a second: such steps need more "
                "cores, or rows that are made more cheaply", 100 * share, rate,
            )  # fmt: skip

    def estimate(self, step: int) -> None:
        """Says once how long the rest will take, when steps after the first have shown it; `step` may still run."""
        passed, count = time.perf_counter() - self.measured_from, step - self.first - 1
        if self.estimated or count < 2 or passed <= 2.0:
            return
        self.estimated = True
        left = self.last - step
        log.info("about %s for the remaining %d steps", duration(passed / count * left), left)

    def show(self, row: dict[str, float]) -> None:
        """The loss and the speed of a row of metrics, beside the bar."""
        speed = row.get("perf/tokens_per_second")
        told = f"loss {row['train/loss']:.3f}" + (f", {speed:,.0f} tokens/s" if speed else "")
        self.bar.set_postfix_str(told, refresh=False)

    def close(self) -> None:
        self.bar.close()


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
