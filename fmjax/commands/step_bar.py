"""How far a sampler is, on a terminal."""

import contextlib
import sys
from collections.abc import Iterator

import jax
from tqdm import tqdm

from fmjax.inference.steps import telling


@contextlib.contextmanager
def shown() -> Iterator[None]:
    """Shows the steps of each sampler inside, where standard error is a terminal. Not of several processes: they
    compute the same programs, whoever of them has a terminal."""
    if not sys.stderr.isatty() or jax.process_count() > 1:
        yield
        return
    bars = _Bars()
    with contextlib.closing(bars), telling(bars.tell):
        yield


class _Bars:
    """One bar after the other, each gone when its steps are done."""

    def __init__(self):
        self.bar = None

    def tell(self, done: int, steps: int) -> None:
        if done == 0:
            self.close()
            self.bar = tqdm(total=steps, unit="step", leave=False, dynamic_ncols=True, disable=False)
        self.bar.update(done - self.bar.n)
        if done == steps:
            self.close()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
