"""Sequences in arrays of few shapes."""

import numpy as np
import pytest

from fmjax.errors import InputError
from fmjax.inference import values
from fmjax.inference.rows import batches, bucket, check_lengths, lay, pack_rows, packed_batches, padded


def test_sequences_of_a_row_lie_one_behind_the_other():
    laid = lay([[5, 6], [7], [8, 9, 4]], [1, 0, 1], (2, 6))
    assert laid.tokens.tolist() == [[7, 0, 0, 0, 0, 0], [5, 6, 8, 9, 4, 0]]
    assert laid.segment_ids.tolist() == [[1, 0, 0, 0, 0, 0], [1, 1, 2, 2, 2, 0]]
    assert laid.positions.tolist() == [[0, 0, 0, 0, 0, 0], [0, 1, 0, 1, 2, 0]]
    assert laid.owners.tolist() == [[1, -1, -1, -1, -1, -1], [0, 0, 2, 2, 2, -1]]


def test_lengths_and_heights_are_of_few_shapes():
    assert [bucket(n) for n in (1, 16, 17, 100)] == [16, 16, 32, 128]
    assert bucket(100, high=120) == 120
    assert padded([[1], [2] * 17], 4).tokens.shape == (4, 32)
    assert list(batches([3, 1, 2, 1], 3, "texts")) == [[1, 3, 2], [0]]
    assert [(len(part), height) for part, height in packed_batches(range(7), 64, 256)] == [(4, 4), (3, 4)]
    assert [(len(part), height) for part, height in packed_batches(range(3), 64, 256, 2)] == [(3, 4)]


def test_packing_fills_rows_and_loses_nothing():
    sizes = np.random.default_rng(0).integers(1, 33, 500).tolist()
    rows = pack_rows(sizes, 64)
    assert sorted(sum(rows, [])) == list(range(500))
    assert max(sum(sizes[i] for i in row) for row in rows) <= 64
    assert len(rows) <= 1.02 * np.ceil(sum(sizes) / 64) + 1


def test_a_text_that_is_too_long_is_named():
    check_lengths([[1] * 9], None)
    with pytest.raises(InputError, match="text 1 has 5 tokens, more than the model's context of 4; split it"):
        check_lengths([[1], [1] * 5], 4, "split it")


def test_a_pass_on_a_cpu_is_of_what_its_caches_hold():
    def size(**shapes):
        return values._pass_size({name: np.zeros((1, *shape), np.float32) for name, shape in shapes.items()})

    assert size(images=(112, 112, 3)) == 13
    assert size(images=(8, 8, 1)) == values.PASS_VALUES
    assert size(images=(1024, 1024, 3)) == 1
    assert size(tokens=(77,), segment_ids=(77,)) == 1024 // 77
