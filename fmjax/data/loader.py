"""From rows to host batches: Grain reads ahead on threads; step n's batch depends on n alone."""

import os
import threading
import time
from collections.abc import Sequence

import numpy as np

from fmjax.data.base import Rows, stacked

_LAST_STEP = 2**62  # Grain ranges have an end; no run reaches this one
_MOST_THREADS = 16  # each holds a batch


class Loader:
    """An endless iterator of this process's share of the batches, starting at a given step.

    The global batch of step n is rows n * batch_size .. (n + 1) * batch_size - 1. Only `row_indices` of them are
    read, so every process reads its own rows and no others; what the loader yields does not depend on how far it
    reads ahead. An exception while reading is raised by the `next` that would have given its batch.

    Args:
      rows: endless random-access rows, such as `OpenData.train`.
      batch_size: examples in the global batch.
      row_indices: which of the batch's rows this process holds, each within 0 .. batch_size - 1; None is all.
      start_step: the first step to yield.
      num_threads: threads that read ahead, a batch each; 0 reads in the caller's thread. None is one a core, from 2 to
        16. Decoding of images leaves the interpreter to others.
      prefetch: batches to hold ready; at least one a thread is.

    Attributes:
      wait_seconds: time spent waiting inside `next` so far.
      num_threads: how many there are.
    """

    def __init__(
        self,
        rows: Rows,
        batch_size: int,
        row_indices: Sequence[int] | None = None,
        start_step: int = 0,
        num_threads: int | None = None,
        prefetch: int = 8,
    ):
        import grain

        indices = list(range(batch_size)) if row_indices is None else [int(i) for i in row_indices]
        if not indices:
            raise ValueError("row_indices is empty; every process must hold at least one row of the batch")
        outside = [i for i in indices if not 0 <= i < batch_size]
        if outside:
            raise ValueError(f"row_indices {outside} lie outside the batch of {batch_size} rows")

        def load(step: int) -> dict[str, np.ndarray]:
            started = time.thread_time()
            batch = stacked([rows[step * batch_size + i] for i in indices])
            self._count(len(indices), time.thread_time() - started)
            return batch

        self.num_threads = min(max(os.cpu_count() or 1, 2), _MOST_THREADS) if num_threads is None else num_threads
        self._counted, self._lock = (0, 0.0), threading.Lock()
        held = max(prefetch, self.num_threads) if self.num_threads else 0
        options = grain.ReadOptions(num_threads=self.num_threads, prefetch_buffer_size=held)
        steps = grain.MapDataset.range(start_step, _LAST_STEP).map(load)
        self._batches = iter(steps.to_iter_dataset(options))
        self.wait_seconds = 0.0

    def __iter__(self) -> "Loader":
        return self

    def _count(self, rows: int, seconds: float) -> None:
        with self._lock:
            self._counted = (self._counted[0] + rows, self._counted[1] + seconds)

    @property
    def rows_per_core_second(self) -> float | None:
        """How many rows a core makes in a second of its time, whatever else the machine does; None before the first."""
        rows, seconds = self._counted
        return rows / seconds if seconds else None

    def due(self, step: int) -> bool:
        """Whether a model must first make the rows of step `step` (`fmjax.training.experience`): none does."""
        return False

    def __next__(self) -> dict[str, np.ndarray]:
        start = time.perf_counter()
        try:
            return next(self._batches)
        finally:
            self.wait_seconds += time.perf_counter() - start

    def close(self) -> None:
        """Stops reading ahead; the loader yields nothing afterwards."""
        self._batches.close()
