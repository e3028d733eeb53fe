"""Log-likelihoods of tokens given those before them, many segments packed into rows of constant shape.

Segments of one batch share rows (`segment_ids` keep them apart), segments with equal inputs share a forward pass, and
only the positions that predict a wanted token go through the vocabulary projection: no [B, T, V] array exists.
"""

import bisect
import dataclasses
import functools
from collections import defaultdict
from collections.abc import Iterator, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from fmjax.errors import InputError
from fmjax.inference.engine import bucket
from fmjax.parallel.placement import whole

TRACES: dict[str, int] = defaultdict(int)
"""How often the program was traced; tests hold it to one compilation a row length."""

SHORT = 256
"""Longest row of the first length bucket; longer segments go to rows of the model's full context."""

PROJECTED = 512
"""Positions whose logits exist at the same time."""


@dataclasses.dataclass(frozen=True)
class Segment:
    """Tokens to score: `tokens[start:]`, each given all before it; `start` is at least 1."""

    tokens: Sequence[int]
    start: int

    @property
    def inputs(self) -> tuple[int, ...]:
        return tuple(self.tokens[:-1])


@dataclasses.dataclass(frozen=True)
class Score:
    """Log-likelihood (nats) of a segment's scored tokens, whether each was the likeliest, and how many there are."""

    loglikelihood: float
    is_greedy: bool
    num_tokens: int


@functools.partial(jax.jit, static_argnames=("module",))
def token_logprobs(module: nn.Module, params, tokens, segment_ids, positions, where, targets, count):
    """Log-probabilities of chosen tokens at chosen places.

    Args:
      tokens, segment_ids, positions: int32 [B, T], packed rows.
      where: int32 [K], places in the flattened [B * T] whose next token is scored; the first `count` are real.
      targets: int32 [K], the tokens scored there.

    Returns: log-probabilities float32 [K], and bool [K], whether the target is the largest logit.
    """
    TRACES["score"] += 1
    inputs = dict(segment_ids=segment_ids, positions=positions)
    if hasattr(module, "features"):
        from fmjax.layers.embed import output_logits

        hidden, head = module.apply({"params": params}, tokens, **inputs, method="features")
        rows, project = hidden, lambda x: output_logits(x, head)
    else:  # a module of a third party that only knows logits: the same numbers, at the price of [B, T, V]
        rows, project = module.apply({"params": params}, tokens, **inputs), lambda x: x
    rows = rows.reshape(-1, rows.shape[-1])
    size = min(PROJECTED, where.shape[0])

    def score_chunk(i, out):
        logprobs, greedy = out
        index = jax.lax.dynamic_slice_in_dim(where, i * size, size)
        target = jax.lax.dynamic_slice_in_dim(targets, i * size, size)
        logits = project(rows[index]).astype(jnp.float32)
        chosen = jnp.take_along_axis(logits, target[:, None], axis=-1)[:, 0]
        chosen = chosen - jax.nn.logsumexp(logits, axis=-1)
        logprobs = jax.lax.dynamic_update_slice_in_dim(logprobs, chosen, i * size, 0)
        return logprobs, jax.lax.dynamic_update_slice_in_dim(greedy, jnp.argmax(logits, -1) == target, i * size, 0)

    empty = jnp.zeros(where.shape, jnp.float32), jnp.zeros(where.shape, bool)
    return whole(jax.lax.fori_loop(0, (count + size - 1) // size, score_chunk, empty))


def score_segments(module: nn.Module, params, segments: Sequence[Segment], **options) -> list[Score]:
    """Scores of all segments, in order; arguments and errors as in `iter_scores`."""
    found = dict(iter_scores(module, params, segments, **options))
    return [found[index] for index in range(len(segments))]


def iter_scores(
    module: nn.Module,
    params,
    segments: Sequence[Segment],
    *,
    context_length: int | None = None,
    tokens_per_batch: int = 4096,
    num_shards: int = 1,
    progress: str | None = None,
) -> Iterator[tuple[int, Score]]:
    """Scores segments, giving (index, score) as batches are done: long segments first within a length bucket.

    Args:
      module, params: a decoder language model.
      segments: each with at most `context_length` inputs.
      context_length: longest row; None is `module.max_length`.
      tokens_per_batch: inputs of one forward pass on one shard, padding included.
      num_shards: into how many parts the rows of a batch are split over the mesh
        (`fmjax.parallel.placement.scoring_context`).
      progress: label of a progress bar over the segments; None shows none.

    Raises: InputError for a segment that is longer than the context or scores its first token, before anything is
      computed.
    """
    context_length = context_length or getattr(module, "max_length", None)
    _check(module, segments, context_length)
    return _iter_scores(module, params, segments, context_length, (tokens_per_batch, num_shards), progress)


def _iter_scores(module, params, segments, context_length, size, progress):
    is_open = [segment.start < len(segment.tokens) for segment in segments]
    yield from ((index, Score(0.0, True, 0)) for index, wanted in enumerate(is_open) if not wanted)
    indices = [index for index, wanted in enumerate(is_open) if wanted]
    waiting = None
    with tqdm(total=len(indices), desc=progress, disable=progress is None, dynamic_ncols=True) as bar:
        for batch in (*_batches(segments, indices, context_length, *size), None):
            results = None if batch is None else token_logprobs(module, params, *batch.arrays)
            # Read a batch when the next is on its way, so that the device does not wait for the host.
            if waiting is not None:
                yield from _read(*waiting)
                bar.update(len(waiting[0]))
            waiting = None if batch is None else (batch.owners, results)


def _read(owners, results) -> Iterator[tuple[int, Score]]:
    logprobs, greedy = (np.asarray(x) for x in results)
    for index, start, stop in owners:
        loglikelihood = float(np.sum(logprobs[start:stop], dtype=np.float64))
        yield index, Score(loglikelihood, bool(greedy[start:stop].all()), stop - start)


def _check(module, segments, context_length) -> None:
    vocab_size = getattr(module, "vocab_size", None)
    for index, segment in enumerate(segments):
        if not 1 <= segment.start <= len(segment.tokens):
            raise InputError(
                f"segment {index} scores from token {segment.start} of {len(segment.tokens)}; "
                "the first token has nothing before it: start from 1, after BOS for instance"
            )
        if context_length is not None and len(segment.tokens) - 1 > context_length:
            raise InputError(
                f"segment {index} has {len(segment.tokens) - 1} inputs, more than the context of {context_length}"
            )
        if vocab_size and len(segment.tokens) and not 0 <= min(segment.tokens) <= max(segment.tokens) < vocab_size:
            raise InputError(f"segment {index} has a token outside the model's vocabulary 0..{vocab_size - 1}")


@dataclasses.dataclass(frozen=True)
class _Group:
    """Segments with the same inputs: one pass for all, such as the one-token answers to one question."""

    inputs: tuple[int, ...]
    members: list[int]
    num_targets: int

    @property
    def size(self) -> int:
        """Room it takes in a row, which holds as many inputs and as many targets as it is long."""
        return max(len(self.inputs), self.num_targets)


@dataclasses.dataclass(frozen=True)
class _Batch:
    """One call of `token_logprobs`; owners: (segment, start, stop) of its targets."""

    arrays: tuple
    owners: list[tuple[int, int, int]]


def _batches(segments, indices, context_length, tokens_per_batch, num_shards) -> Iterator[_Batch]:
    for length, groups in _length_buckets(segments, indices, context_length):
        rows = pack_rows([group.size for group in groups], length)
        # A shard's share is a power of two, or as many rows as its tokens allow.
        share = bucket(-(-len(rows) // num_shards), low=1)
        height = num_shards * min(share, max(1, tokens_per_batch // length))
        for start in range(0, len(rows), height):
            part = [[groups[i] for i in row] for row in rows[start : start + height]]
            yield _fill(part, segments, (height, length))


def _length_buckets(segments, indices, context_length):
    """At most two (row length, groups), short and long, the lengths powers of two or the context's own."""
    members = defaultdict(list)
    for index in indices:
        members[segments[index].inputs].append(index)
    short, long = [], []
    for inputs, same in members.items():
        for group in _split(inputs, same, segments):
            (short if group.size <= SHORT else long).append(group)
    for groups in (short, long):
        if groups:
            longest = max(group.size for group in groups)
            limit = None if context_length is None else max(context_length, longest)
            yield bucket(longest, low=32, high=limit), groups


def _split(inputs, same, segments) -> Iterator[_Group]:
    """Groups of at most as many targets as inputs, or SHORT if that is more, so that a row can hold any of them."""
    limit = max(len(inputs), SHORT)
    members, targets = [], 0
    for index in same:
        count = len(segments[index].tokens) - segments[index].start
        if members and targets + count > limit:
            yield _Group(inputs, members, targets)
            members, targets = [], 0
        members.append(index)
        targets += count
    yield _Group(inputs, members, targets)


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


def _fill(rows, segments, shape) -> _Batch:
    tokens, segment_ids, positions = np.zeros((3, *shape), np.int32)
    where, targets = np.zeros((2, shape[0] * shape[1]), np.int32)
    owners, count = [], 0
    for r, groups in enumerate(rows):
        at = 0
        for number, group in enumerate(groups, start=1):
            span = slice(at, at + len(group.inputs))
            tokens[r, span], segment_ids[r, span] = group.inputs, number
            positions[r, span] = np.arange(len(group.inputs))
            for index in group.members:
                wanted = segments[index].tokens[segments[index].start :]
                first = r * shape[1] + at + segments[index].start - 1
                where[count : count + len(wanted)] = np.arange(first, first + len(wanted))
                targets[count : count + len(wanted)] = wanted
                owners.append((index, count, count + len(wanted)))
                count += len(wanted)
            at += len(group.inputs)
    return _Batch((tokens, segment_ids, positions, where, targets, np.int32(count)), owners)


def rolling_windows(tokens: Sequence[int], first: int, context_length: int) -> list[Segment]:
    """A text of any length as segments that score each of its tokens once.

    As lm-evaluation-harness defines it with one token of context: windows of `context_length` inputs whose scored
    tokens are disjoint; the first window starts from the token `first` (BOS), each later one from the token before
    what it scores; the last window, if it has fewer left to score, reaches back so as to be full.
    """
    line = [first, *tokens]
    windows = []
    for begin in range(0, len(tokens), context_length):
        end = min(begin + context_length, len(tokens))
        low = max(0, end - context_length)
        windows.append(Segment(line[low : end + 1], begin - low + 1))
    return windows
