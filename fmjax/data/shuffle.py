"""Endless shuffling with random access: every epoch holds each row once, in an order of its own.

What is random in the data comes from `random_bits`: raw bits, which numpy promises to keep, named by their seed.
"""

import functools
import sys
from collections.abc import Sequence

import numpy as np

from fmjax.data.prepared import fingerprint

_SMALL = 1 << 16  # Grain's keyed permutation walks a domain of this size, which takes milliseconds for a few rows


def _seeded(*parts: object) -> int:
    return int(fingerprint("shuffle", *parts)[:16], 16)


def random_bits(count: int, *seed: object) -> np.ndarray:
    """uint64 [count], uniform: a pure function of `seed`, which are JSON-able values, on any machine."""
    return np.random.Philox(key=_seeded(*seed)).random_raw(count)


class Draws:
    """Random choices one after another: a pure function of `seed`, JSON-able values, and of what was drawn before."""

    def __init__(self, *seed: object):
        self._bits = np.random.Philox(key=_seeded(*seed))

    def bits(self) -> int:
        """64 of them."""
        return int(self._bits.random_raw())

    def below(self, number: int) -> int:
        """A whole number from 0 to `number` - 1; the bias is below number / 2**64."""
        return self.bits() % number

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A number from `low` up to, not including, `high`."""
        return low + (high - low) * (self.bits() >> 11) / 2**53

    def one_of(self, values: Sequence):
        return values[self.below(len(values))]

    def some(self, values: Sequence, count: int) -> list:
        """`count` different ones, in random order."""
        left = list(values)
        return [left.pop(self.below(len(left))) for _ in range(count)]


class ShuffledIndices:
    """Index i of an endless stream to a row: epoch i // num_rows, place i % num_rows in that epoch's order.

    Args:
      num_rows: how many rows an epoch has.
      seed: any JSON-able value.
    """

    def __init__(self, num_rows: int, seed: object):
        self._num_rows = num_rows
        self._order = functools.lru_cache(maxsize=4)(functools.partial(_order, num_rows, seed))

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> int:
        epoch, place = divmod(int(index), self._num_rows)
        return int(self._order(epoch)[place])


def _order(num_rows: int, seed: object, epoch: int) -> np.ndarray:
    # Sorting raw bits rather than `Generator.permutation`: numpy promises that the former stay the same.
    return np.argsort(random_bits(num_rows, seed, epoch), kind="stable").astype(np.uint32)


def shuffled_indices(num_rows: int, seed: object):
    """An endless `grain.MapDataset` of 0 .. num_rows - 1, in a new order each epoch: index i lies in epoch
    i // num_rows. A pure function of (num_rows, seed, index)."""
    import grain

    if num_rows < _SMALL:
        return grain.MapDataset.source(ShuffledIndices(num_rows, seed))
    # Grain adds the epoch to the seed, so neighbouring seeds would repeat each other: hash them apart.
    return grain.MapDataset.range(num_rows).shuffle(seed=_seeded(seed) % 2**32).repeat()


def shuffled(rows, seed: object):
    """An endless `grain.MapDataset` of `rows`, in a new order each epoch; a pure function of (rows, seed, index)."""
    return shuffled_indices(len(rows), seed).map(rows.__getitem__)
