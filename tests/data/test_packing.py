"""Packing: every token of every document once, targets that follow, no mixing of documents, little padding."""

import time

import numpy as np
import pytest

from fmjax.data.packing import PackedRows, best_fit, plan_packing


def corpus(rng, documents, longest):
    """Documents of distinct ids, so that any wrong token shows; includes empty and one-id documents."""
    lengths = rng.integers(0, longest, documents)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return np.arange(1, offsets[-1] + 1, dtype=np.uint32), offsets


@pytest.mark.parametrize("seed,sequence_length,longest", [(0, 8, 40), (1, 7, 9), (2, 16, 5), (3, 1, 6), (4, 64, 65)])
def test_an_epoch_holds_every_input_and_target_once(seed, sequence_length, longest):
    tokens, offsets = corpus(np.random.default_rng(seed), 200, longest)
    rows = PackedRows(tokens, plan_packing(offsets, sequence_length), sequence_length)
    pairs, pieces = [], []
    for i in range(len(rows)):
        row = rows[i]
        filled = int((row["segment_ids"] > 0).sum())
        for name in ("tokens", "targets", "loss_weights", "segment_ids", "positions"):
            assert row[name].shape == (sequence_length,)
            assert row[name].dtype == (np.float32 if name == "loss_weights" else np.int32)
            assert not row[name][filled:].any()  # padding is at the end, and is all zeros
        assert (row["loss_weights"][:filled] == 1).all()
        for segment in range(1, row["segment_ids"].max() + 1):
            (place,) = np.nonzero(row["segment_ids"] == segment)
            assert (np.diff(place) == 1).all()
            np.testing.assert_array_equal(row["positions"][place], np.arange(len(place)))
            # Ids count upwards through the corpus, so a piece of one document is a run of consecutive ids.
            np.testing.assert_array_equal(np.diff(row["tokens"][place]), 1)
            np.testing.assert_array_equal(row["targets"][place], row["tokens"][place] + 1)
            pieces.append((row["tokens"][place[0]], row["tokens"][place[-1]]))
        pairs += list(row["tokens"][:filled])
    inputs = np.concatenate([tokens[a : b - 1] for a, b in zip(offsets, offsets[1:]) if b - a > 1])
    np.testing.assert_array_equal(np.sort(pairs), inputs)
    document = np.searchsorted(offsets, np.array(pieces) - 1, side="right")
    np.testing.assert_array_equal(document[:, 0], document[:, 1])


def test_best_fit_puts_each_item_where_least_room_is_left():
    # By hand: 6 | 5 | 4 joins 6 (room 4, exactly) | 3 joins 5 (room 5, least that fits) | 2 joins 5+3.
    order, bins = best_fit(np.array([2, 3, 4, 5, 6]), 10)
    grouped = [sorted(np.array([2, 3, 4, 5, 6])[order[a:b]]) for a, b in zip(bins, bins[1:])]
    assert grouped == [[4, 6], [2, 3, 5]]


def test_a_million_pieces_are_planned_in_seconds_with_little_padding():
    lengths = np.random.default_rng(0).geometric(1 / 200, 1_000_000) + 1
    start = time.perf_counter()
    plan = plan_packing(np.concatenate([[0], np.cumsum(lengths)]), 512)
    assert time.perf_counter() - start < 15  # 2 s on a free core
    assert plan.padding(512) < 0.001


def test_rows_outside_are_refused():
    rows = PackedRows(np.arange(10), plan_packing(np.array([0, 10]), 4), 4)
    assert len(rows) == 3
    with pytest.raises(IndexError):
        rows[3]
    with pytest.raises(IndexError):
        rows[-1]
