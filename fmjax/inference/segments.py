"""Segments of tokens packed into batches of constant shape.

Segments of one batch share rows (`segment_ids` keep them apart), and segments that begin alike share that beginning:
a tree whose trunk is computed once, with a branch for what each goes on with.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from fmjax.inference.rows import bucket, pack_rows, packed_batches

SHORT = 256
"""Longest row of the first length bucket; what is longer goes to rows of the model's full context."""

MIN_SHARED = 8
"""Tokens that segments have in common at least where they share them: less is not worth tying them to one row."""

WORTH = 0.1
"""Part of all inputs that sharing saves at least; for less, the attention of plain rows serves, a platform's kernel."""


@dataclasses.dataclass(frozen=True)
class Segment:
    """Tokens to score: `tokens[start:]`, each given all before it; `start` is at least 1."""

    tokens: Sequence[int]
    start: int

    @property
    def inputs(self) -> tuple[int, ...]:
        return tuple(self.tokens[:-1])


@dataclasses.dataclass(frozen=True)
class Batch:
    """Segments in B rows of T tokens.

    Attributes:
      tokens, segment_ids, positions: int32 [B, T]; segment id 0 is padding, and a tree has one segment id.
      branches: int32 [B, T], 0 for trunks, or None where no segments share one.
      where: int32 [B * T], places in the flattened rows whose next token is scored; the first `count` are real.
      targets: int32 [B * T], the tokens scored there.
      owners: (segment, start, stop) of its targets.
    """

    tokens: np.ndarray
    segment_ids: np.ndarray
    positions: np.ndarray
    branches: np.ndarray | None
    where: np.ndarray
    targets: np.ndarray
    count: int
    owners: list[tuple[int, int, int]]


class _Inputs(NamedTuple):
    """Segments with the same inputs, such as the one-token answers to one question."""

    inputs: tuple[int, ...]
    members: list[int]
    num_targets: int


@dataclasses.dataclass(frozen=True)
class _Tree:
    """Segments that begin alike; leaves: (segment, its branch's number from 1, 0 for the trunk's end)."""

    trunk: tuple[int, ...]
    branches: list[tuple[int, ...]]
    leaves: list[tuple[int, int]]
    num_targets: int

    @property
    def num_inputs(self) -> int:
        return len(self.trunk) + sum(map(len, self.branches))

    @property
    def size(self) -> int:
        """Room it takes in a row, which holds as many inputs and as many targets as it is long."""
        return max(self.num_inputs, self.num_targets)


def batches(
    segments: Sequence[Segment],
    indices: Sequence[int],
    *,
    context_length: int | None,
    tokens_per_batch: int,
    num_shards: int,
    can_fork: bool,
) -> Iterator[Batch]:
    """The segments of `indices`, each in one batch.

    Args:
      context_length: no segment has more inputs; None is any.
      tokens_per_batch, num_shards: see `fmjax.inference.scoring.iter_scores`.
      can_fork: whether segments may share a beginning, rather than nothing but all their inputs.
    """
    alike = list(_same_inputs(segments, indices))
    trees = list(_grow(alike, context_length)) if can_fork else []
    total = sum(len(one.inputs) for one in alike)
    forks = can_fork and sum(tree.num_inputs for tree in trees) < (1 - WORTH) * total
    if not forks:
        trees = [_tree([one], len(one.inputs)) for one in alike]
    for length, rows in _length_buckets(trees, context_length):
        for part, height in packed_batches(rows, length, tokens_per_batch, num_shards):
            yield _fill(part, segments, (height, length), forks)


def _same_inputs(segments, indices) -> Iterator[_Inputs]:
    members = defaultdict(list)
    for index in indices:
        members[segments[index].inputs].append(index)
    for inputs, same in members.items():
        yield from _split(inputs, same, segments)


def _grow(alike: list[_Inputs], context_length: int | None) -> Iterator[_Tree]:
    # In the order of their tokens those that begin alike are neighbours.
    group, trunk = [], 0
    for one in sorted(alike, key=lambda one: one.inputs):
        if group:
            shared = min(trunk, _num_common(group[-1].inputs, one.inputs))
            saves_more = shared * len(group) > trunk * (len(group) - 1)
            if shared >= MIN_SHARED and saves_more:
                joined = _tree([*group, one], shared)
                if joined.size <= _largest(len(one.inputs), context_length):
                    group, trunk = [*group, one], shared
                    continue
            yield _tree(group, trunk)
        group, trunk = [one], len(one.inputs)
    if group:
        yield _tree(group, trunk)


def _split(inputs, same, segments) -> Iterator[_Inputs]:
    """Parts of at most as many targets as inputs, or SHORT if that is more, so that a row can hold any of them."""
    limit = max(len(inputs), SHORT)
    members, targets = [], 0
    for index in same:
        count = len(segments[index].tokens) - segments[index].start
        if members and targets + count > limit:
            yield _Inputs(inputs, members, targets)
            members, targets = [], 0
        members.append(index)
        targets += count
    yield _Inputs(inputs, members, targets)


def _tree(group: list[_Inputs], trunk: int) -> _Tree:
    branches, leaves = [], []
    for one in group:
        if rest := one.inputs[trunk:]:
            branches.append(rest)
        leaves += [(index, len(branches) if rest else 0) for index in one.members]
    return _Tree(group[0].inputs[:trunk], branches, leaves, sum(one.num_targets for one in group))


def _num_common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens both begin with."""
    for i, (x, y) in enumerate(zip(a, b)):
        if x != y:
            return i
    return min(len(a), len(b))


def _largest(length: int, context_length: int | None) -> int:
    """Size of a tree of inputs of `length`: rows that are much longer cost more attention than sharing saves."""
    size = 2 * max(SHORT, length)
    return size if context_length is None else max(SHORT, min(size, context_length))


def _length_buckets(trees: Sequence[_Tree], context_length) -> Iterator[tuple[int, list[list[_Tree]]]]:
    """At most two (row length, rows), short and long, the lengths powers of two or the context's own."""

    def pack(part):
        longest = max(tree.size for tree in part)
        length = bucket(longest, low=32, high=None if context_length is None else max(context_length, longest))
        return length, [[part[i] for i in row] for row in pack_rows([tree.size for tree in part], length)]

    short = trees
    if any(tree.size > SHORT for tree in trees):
        # Short ones fill what long ones leave of their rows.
        length, rows = pack(trees)
        long = [row for row in rows if row[0].size > SHORT]
        short = [tree for row in rows if row[0].size <= SHORT for tree in row]
        yield length, long
    if short:
        yield pack(short)


def _fill(rows: list[list[_Tree]], segments, shape: tuple[int, int], forks: bool) -> Batch:
    tokens, segment_ids, positions, branches = np.zeros((4, *shape), np.int32)
    where, targets = np.zeros((2, shape[0] * shape[1]), np.int32)
    owners, count = [], 0
    for r, trees in enumerate(rows):
        at = 0
        for number, tree in enumerate(trees, start=1):
            begin, trunk = at, len(tree.trunk)
            shifts = []  # of each part: from the number of an input to its place in the flattened rows
            for branch, part in enumerate((tree.trunk, *tree.branches)):
                first = trunk if branch else 0
                span = slice(at, at + len(part))
                tokens[r, span], branches[r, span] = part, branch
                positions[r, span] = np.arange(first, first + len(part))
                shifts.append(r * shape[1] + at - first)
                at += len(part)
            segment_ids[r, begin:at] = number
            for index, branch in tree.leaves:
                wanted = segments[index].tokens[segments[index].start :]
                places = np.arange(segments[index].start - 1, len(segments[index].tokens) - 1)
                stop = count + len(wanted)
                where[count:stop] = places + np.where(places < trunk, shifts[0], shifts[branch])
                targets[count:stop] = wanted
                owners.append((index, count, stop))
                count = stop
    return Batch(tokens, segment_ids, positions, branches if forks else None, where, targets, count, owners)
