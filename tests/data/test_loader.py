"""The loader: batches by step alone, own rows only, waiting measured, errors passed on."""

import threading
import time

import numpy as np
import pytest

from fmjax.data.loader import Loader


class Counted:
    """Rows that say their index and remember who asked."""

    def __init__(self, delay=0.0, broken=None):
        self.reads, self.lock, self.delay, self.broken = [], threading.Lock(), delay, broken

    def __getitem__(self, index):
        if index == self.broken:
            raise RuntimeError(f"row {index} is unreadable")
        time.sleep(self.delay)
        with self.lock:
            self.reads.append(index)
        return {"index": np.int64(index), "square": np.full(3, index**2)}


@pytest.mark.parametrize("num_threads,prefetch", [(0, 0), (1, 1), (4, 9)])
@pytest.mark.parametrize("start_step", [0, 7])
def test_batches_depend_on_the_step_alone(num_threads, prefetch, start_step):
    loader = Loader(Counted(), 6, start_step=start_step, num_threads=num_threads, prefetch=prefetch)
    for step in range(start_step, start_step + 12):
        batch = next(loader)
        np.testing.assert_array_equal(batch["index"], np.arange(step * 6, step * 6 + 6))
        np.testing.assert_array_equal(batch["square"], batch["index"][:, None] ** 2 * np.ones((1, 3)))
    loader.close()


@pytest.mark.parametrize("shares", [[[0, 1, 2, 3]], [[0, 1], [2, 3]], [[0, 2], [3], [1]]])
def test_hosts_read_their_own_rows_and_together_all(shares):
    counted = [Counted() for _ in shares]
    loaders = [Loader(rows, 4, row_indices=share, start_step=3) for rows, share in zip(counted, shares)]
    for step in range(3, 8):
        together = np.empty(4, int)
        for loader, share in zip(loaders, shares):
            together[share] = next(loader)["index"]
        np.testing.assert_array_equal(together, np.arange(step * 4, step * 4 + 4))
    for loader, rows, share in zip(loaders, counted, shares):
        loader.close()
        with rows.lock:
            assert {index % 4 for index in rows.reads} == set(share)
            assert len(rows.reads) == len(set(rows.reads))


def test_waiting_for_a_slow_source_is_measured():
    slow = Loader(Counted(delay=0.05), 2, num_threads=1, prefetch=1)
    for _ in range(3):
        next(slow)
    slow.close()
    assert slow.wait_seconds > 0.2  # six rows of 0.05 s
    ready = Loader(Counted(), 2, num_threads=1, prefetch=4)
    next(ready)
    before = ready.wait_seconds
    time.sleep(0.2)  # what the training step would take
    next(ready)
    ready.close()
    assert ready.wait_seconds - before < 0.1


def test_an_error_surfaces_at_its_batch():
    loader = Loader(Counted(broken=5), 2, num_threads=2)
    assert next(loader)["index"].tolist() == [0, 1]
    assert next(loader)["index"].tolist() == [2, 3]
    with pytest.raises(RuntimeError, match="row 5 is unreadable"):
        next(loader)
    loader.close()


def test_rows_outside_the_batch_are_refused():
    with pytest.raises(ValueError, match=r"\[4\]"):
        Loader(Counted(), 4, row_indices=[0, 4])
    with pytest.raises(ValueError, match="row_indices"):
        Loader(Counted(), 4, row_indices=[])


def test_rows_a_second_a_core_are_told_whatever_the_rows_wait_for():
    class Busy(Counted):
        def __getitem__(self, index):
            until = time.thread_time() + 0.004
            while time.thread_time() < until:
                pass
            return super().__getitem__(index)

    for threads in (0, 3):
        loader = Loader(Busy(delay=0.004), 4, num_threads=threads, prefetch=3)
        for _ in range(4):
            next(loader)
        loader.close()
        assert 150 < loader.rows_per_core_second < 251
    assert Loader(Counted(), 1).num_threads >= 2
