"""Sequences of tokens of any length in arrays of few shapes: in batches of about the same length, a row or packed."""

import bisect
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from fmjax.errors import InputError
from fmjax.parallel import watch
from fmjax.parallel.platform import target_platform

# Tokens of one forward pass. On a CPU what a layer computes is to stay in the processor's caches.
PASS_TOKENS = {"cpu": 1024}
DEFAULT_PASS_TOKENS = 4096


def bucket(length: int, low: int = 16, high: int | None = None) -> int:
    """`length` rounded up to a power of two, at least `low`, at most `high` (which `length` must not exceed)."""
    size = max(low, 1 << max(0, int(length) - 1).bit_length())
    return size if high is None else min(size, high)


class LaidRows(NamedTuple):
    """Sequences laid into rows; all int32 [B, T].

    Attributes:
      tokens: 0 for padding.
      segment_ids: the sequences of a row have 1, 2, ...; 0 is padding.
      positions: of each token in its sequence.
      owners: the index of the sequence that each token is of; -1 for padding.
    """

    tokens: np.ndarray
    segment_ids: np.ndarray
    positions: np.ndarray
    owners: np.ndarray


def lay(sequences: Sequence[Sequence[int]], rows: Sequence[int], shape: tuple[int, int]) -> LaidRows:
    """Sequences in rows of `shape`, each in the row that `rows` names, behind those that are there."""
    found = LaidRows(*np.zeros((3, *shape), np.int32), np.full(shape, -1, np.int32))
    filled, counts = [0] * shape[0], [0] * shape[0]
    for index, (sequence, row) in enumerate(zip(sequences, rows)):
        counts[row] += 1
        place = row, slice(filled[row], filled[row] + len(sequence))
        values = sequence, counts[row], np.arange(len(sequence)), index
        for array, value in zip(found, values):
            array[place] = value
        filled[row] += len(sequence)
    return found


def padded(sequences: Sequence[Sequence[int]], height: int, high: int | None = None) -> LaidRows:
    """A sequence a row, in `height` rows of the bucket of the longest, at most `high` long."""
    width = bucket(max(1, *map(len, sequences)), high=high)
    return lay(sequences, range(len(sequences)), (height, width))


def batches(lengths: Sequence[int], height: int, what: str) -> Iterator[list[int]]:
    """Indices of sequences of these lengths, at most `height` at a time, short ones first; the watch hears of each.

    what: what they are, for messages.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    for start in range(0, len(order), height):
        watch.at(f"a batch of {what}")
        yield order[start : start + height]
    watch.at(f"what follows the {what}", limited=False)


def pass_tokens() -> int:
    """Tokens of one forward pass on one shard, padding included, where nothing else is asked for."""
    return PASS_TOKENS.get(target_platform(), DEFAULT_PASS_TOKENS)


def packed_batches(rows: Sequence, length: int, num_tokens: int, num_shards: int = 1) -> Iterator[tuple[list, int]]:
    """(some of the rows, how many rows their batch has) with about `num_tokens` tokens on each shard.

    A shard's share is a power of two, or as many rows of `length` as its tokens allow.
    """
    share = min(bucket(-(-len(rows) // num_shards), low=1), max(1, num_tokens // length))
    height = num_shards * share
    for start in range(0, len(rows), height):
        yield rows[start : start + height], height


def pack_rows(sizes: Sequence[int], length: int) -> list[list[int]]:
    """Indices of `sizes` gathered into rows of at most `length`: largest first, each into the fullest row it fits."""
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (what is left, row), sorted
    for index in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        place = bisect.bisect_left(room, (sizes[index], -1))
        if place == len(room):
            left, row = length, len(rows)
            rows.append([])
        else:
            left, row = room.pop(place)
        rows[row].append(index)
        bisect.insort(room, (left - sizes[index], row))
    return rows


def check_lengths(texts: Sequence[Sequence[int]], longest: int | None, remedy: str = "shorten it") -> None:
    """Raises InputError for a text of more tokens than a model's context, saying what to do."""
    for index, text in enumerate(texts):
        if longest is not None and len(text) > longest:
            raise InputError(
                f"text {index} has {len(text)} tokens, more than the model's context of {longest}; {remedy}"
            )
