"""Packing: documents cut into pieces, pieces laid into rows, all planned by index from the documents' lengths.

A document is its ids with begin and end marks. Its inputs are all ids but the last, its targets all but the first;
they are cut into pieces of at most `sequence_length` inputs. Full pieces are rows of their own; the shorter last
pieces share rows, placed by best-fit decreasing (each into the fullest row that still has room), which wastes under
2% on almost any corpus. The plan depends on the lengths alone, so a row is a pure function of its index.
"""

import dataclasses

import numpy as np

_OPEN_BINS = 256  # bins that `pack_pairs` looks at
PLAN_VERSION = 1  # part of the cache key: raise it when plan_packing lays the same lengths out otherwise


@dataclasses.dataclass(frozen=True)
class PackingPlan:
    """Which pieces lie in which row.

    Attributes:
      starts: int64 [pieces]: where a piece's inputs start in the flat token array; pieces in the order of rows.
      lengths: int32 [pieces]: the number of its inputs; its targets are the same stretch moved by one.
      rows: int64 [rows + 1]: pieces rows[i] .. rows[i+1]-1 lie in row i.
    """

    starts: np.ndarray
    lengths: np.ndarray
    rows: np.ndarray

    def padding(self, sequence_length: int) -> float:
        """The share of positions that hold padding."""
        return 1.0 - float(self.lengths.sum()) / max(1, (len(self.rows) - 1) * sequence_length)


def best_fit(lengths: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """Best-fit decreasing: items into bins.

    Args:
      lengths: int [items], each 1..capacity.
      capacity: the size of a bin.

    Returns:
      order: int64 [items], items grouped by bin, longest first within one.
      bins: int64 [bins + 1], items order[bins[b]:bins[b+1]] lie in bin b.
    """
    by_length = np.argsort(-lengths, kind="stable")
    open_bins: list[list[int]] = [[] for _ in range(capacity + 1)]  # by the room left
    room_left = 0  # bit r is set when some bin has r places left: finds the best fit in one shift
    bin_of = np.empty(len(lengths), np.int64)
    num_bins = 0
    for position, length in enumerate(lengths[by_length].tolist()):
        fitting = room_left >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            chosen = open_bins[room].pop()
            if not open_bins[room]:
                room_left ^= 1 << room
        else:
            room, chosen = capacity, num_bins
            num_bins += 1
        room -= length
        if room:
            if not open_bins[room]:
                room_left |= 1 << room
            open_bins[room].append(chosen)
        bin_of[position] = chosen
    grouped = np.argsort(bin_of, kind="stable")
    counts = np.bincount(bin_of, minlength=num_bins)
    return by_length[grouped], np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def pack_pairs(lengths: np.ndarray, capacities: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Items of two lengths into bins of two capacities: best fit, the largest items first.

    Args:
      lengths: int [items, 2], each within the capacities.
      capacities: of a bin.

    Returns: order, bins as of `best_fit`.
    """
    shares = lengths / np.array(capacities)
    order = np.argsort(-shares.max(axis=1), kind="stable")
    room = np.tile(np.array(capacities), (_OPEN_BINS, 1))
    bins = np.arange(_OPEN_BINS)
    num_bins = _OPEN_BINS
    bin_of = np.empty(len(lengths), np.int64)
    for item in order.tolist():
        length = lengths[item]
        left = room - length
        fitting = np.flatnonzero((left >= 0).all(axis=1))
        if len(fitting):
            # An empty bin has the most room left, so it is opened last.
            chosen = fitting[np.argmin((left[fitting] / capacities).sum(axis=1))]
        else:
            chosen = np.argmin((room / capacities).sum(axis=1))  # the fullest makes place for a new one
            room[chosen], bins[chosen] = capacities, num_bins
            num_bins += 1
        room[chosen] -= length
        bin_of[item] = bins[chosen]
    _, bin_of = np.unique(bin_of, return_inverse=True)
    grouped = np.argsort(bin_of[order], kind="stable")
    return order[grouped], np.concatenate([[0], np.cumsum(np.bincount(bin_of))]).astype(np.int64)


def plan_packing(offsets: np.ndarray, sequence_length: int) -> PackingPlan:
    """Plans the rows of a tokenised corpus.

    Args:
      offsets: int64 [documents + 1]; document d is tokens[offsets[d]:offsets[d+1]], marks included. Documents of
        fewer than two ids have no target and take no part.
      sequence_length: inputs a row, T.
    """
    inputs = np.maximum(np.diff(offsets) - 1, 0)
    full, rest = np.divmod(inputs, sequence_length)
    starts = np.asarray(offsets[:-1], np.int64)

    total = int(full.sum())
    document = np.repeat(np.arange(len(inputs)), full)
    index_in_document = np.arange(total) - np.repeat(np.cumsum(full) - full, full)
    full_starts = starts[document] + index_in_document * sequence_length

    short = np.flatnonzero(rest)
    order, bins = best_fit(rest[short], sequence_length)
    short = short[order]
    return PackingPlan(
        starts=np.concatenate([full_starts, starts[short] + full[short] * sequence_length]),
        lengths=np.concatenate([np.full(total, sequence_length), rest[short]]).astype(np.int32),
        rows=np.concatenate([np.arange(total), total + bins]).astype(np.int64),
    )


def plan_whole(offsets: np.ndarray, sequence_length: int) -> PackingPlan:
    """Plans rows of whole documents; one of more than `sequence_length` inputs, or without a target, takes no part.

    Arguments as of `plan_packing`.
    """
    inputs = np.diff(offsets) - 1
    usable = np.flatnonzero((inputs > 0) & (inputs <= sequence_length))
    order, bins = best_fit(inputs[usable], sequence_length)
    usable = usable[order]
    return PackingPlan(np.asarray(offsets, np.int64)[usable], inputs[usable].astype(np.int32), bins)


class PackedRows:
    """Rows of a tokenised corpus, built when asked for.

    `rows[i]`, 0 <= i < len(rows), is a dict of arrays of shape [T]:
      tokens, targets: int32; 0 where there is padding.
      loss_weights: float32, 1 where there is a target that is learnt, 0 elsewhere.
      segment_ids: int32; the pieces in the row are numbered 1, 2, ...; 0 is padding.
      positions: int32, from 0 in each piece.

    Args:
      tokens: flat integer array of the corpus (may be memory-mapped).
      plan: from `plan_packing` with the same sequence_length.
      sequence_length: T.
      learnt: of each token, 1 where it is to be predicted, 0 where it is there to be read; None: all are.
    """

    def __init__(
        self, tokens: np.ndarray, plan: PackingPlan, sequence_length: int, learnt: np.ndarray | None = None
    ):
        self._tokens = tokens
        self._plan = plan
        self._learnt = learnt
        self._length = sequence_length
        self._counting = np.arange(sequence_length, dtype=np.int32)

    def __len__(self) -> int:
        return len(self._plan.rows) - 1

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        row = {
            name: np.zeros(self._length, np.float32 if name == "loss_weights" else np.int32)
            for name in ("tokens", "targets", "loss_weights", "segment_ids", "positions")
        }
        filled = 0
        first, end = self._plan.rows[index : index + 2].tolist()
        starts, lengths = self._plan.starts[first:end].tolist(), self._plan.lengths[first:end].tolist()
        for segment, (start, length) in enumerate(zip(starts, lengths), 1):
            place = slice(filled, filled + length)
            row["tokens"][place] = self._tokens[start : start + length]
            row["targets"][place] = self._tokens[start + 1 : start + length + 1]
            row["segment_ids"][place] = segment
            row["positions"][place] = self._counting[:length]
            row["loss_weights"][place] = 1.0 if self._learnt is None else self._learnt[start + 1 : start + length + 1]
            filled += length
        return row
