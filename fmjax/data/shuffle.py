"""Endless shuffling with random access: every epoch holds each row once, in an order of its own."""

import functools
import sys

import numpy as np

from fmjax.data.cache import fingerprint

_SMALL = 1 << 16  # Grain's keyed permutation walks a domain of this size, which takes milliseconds for a few rows


def _seeded(*parts: object) -> int:
    return int(fingerprint("shuffle", *parts)[:16], 16)


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
    bits = np.random.Philox(key=_seeded(seed, epoch)).random_raw(num_rows)
    return np.argsort(bits, kind="stable").astype(np.uint32)


def shuffled(rows, seed: object):
    """An endless `grain.MapDataset` of `rows`, in a new order each epoch; a pure function of (rows, seed, index)."""
    import grain

    if len(rows) < _SMALL:
        return grain.MapDataset.source(ShuffledIndices(len(rows), seed)).map(rows.__getitem__)
    # Grain adds the epoch to the seed, so neighbouring seeds would repeat each other: hash them apart.
    return grain.MapDataset.source(rows).shuffle(seed=_seeded(seed) % 2**32).repeat()
