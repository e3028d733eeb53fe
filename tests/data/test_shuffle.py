"""Shuffling: each epoch a permutation of its own, for small (numpy) and large (Grain) sets alike."""

import numpy as np
import pytest

from fmjax.data import shuffle


@pytest.mark.parametrize("small", [1 << 16, 0], ids=["numpy", "grain"])
@pytest.mark.parametrize("count", [1, 2, 7, 300])
def test_every_epoch_is_a_permutation_of_its_own(monkeypatch, small, count):
    monkeypatch.setattr(shuffle, "_SMALL", small)
    rows = list(range(count))
    endless = shuffle.shuffled(rows, [0, "name"])
    epochs = [[endless[e * count + i] for i in range(count)] for e in range(3)]
    assert all(sorted(epoch) == rows for epoch in epochs)
    other = shuffle.shuffled(rows, [1, "name"])
    epochs += [[other[e * count + i] for i in range(count)] for e in range(3)]
    if count == 300:
        assert len({tuple(epoch) for epoch in epochs}) == 6
        # No order kept: neighbours of one epoch are apart in another, and rows do not stay near their place.
        for epoch in epochs:
            assert abs(np.corrcoef(epoch, rows)[0, 1]) < 0.25
            assert np.mean(np.abs(np.diff(epoch))) > 60  # a third of 300 expected
    assert 0 <= endless[10**15 + 1] < count


def test_orders_stay_the_same_across_versions():
    indices = shuffle.ShuffledIndices(8, [0, "name"])
    assert [indices[i] for i in range(16)] == EXPECTED


EXPECTED = [1, 5, 2, 6, 7, 0, 4, 3, 7, 0, 5, 6, 1, 3, 2, 4]
