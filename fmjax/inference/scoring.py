"""Log-likelihoods of tokens given those before them, many segments packed into rows of constant shape.

The context of a question is computed once for all its options (`fmjax.inference.segments`), and only the positions that
predict a wanted token go through the vocabulary projection: no [B, T, V] array exists.
"""

import dataclasses
import functools
import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from fmjax.errors import InputError
from fmjax.inference import counted
from fmjax.inference.rows import pass_tokens
from fmjax.inference.segments import Batch, Segment, batches
from fmjax.layers.attention.reference import Forked
from fmjax.layers.embed import output_logits
from fmjax.parallel import watch
from fmjax.parallel.placement import whole

TRACES: dict[str, int] = defaultdict(int)
"""How often the program was traced; tests hold it to one compilation a row length."""

PROJECTED = 256
"""Positions whose logits exist at the same time."""


@dataclasses.dataclass(frozen=True)
class SegmentScore:
    """Log-likelihood (nats) of a segment's scored tokens, whether each was the likeliest, and how many there are.

    Of equally likely tokens the first is the likeliest, as in lm-evaluation-harness.
    """

    loglikelihood: float
    is_greedy: bool
    num_tokens: int


@functools.partial(jax.jit, static_argnames=("module",))
def token_logprobs(module: nn.Module, params, tokens, segment_ids, positions, branches, where, targets, count):
    """Log-probabilities of chosen tokens at chosen places; arguments as the fields of `fmjax.inference.segments.Batch`.

    Returns: log-probabilities float32 [B * T], and bool [B * T], whether the target has the largest logit (of equal
      ones the first).
    """
    TRACES["score"] += 1
    if branches is not None:
        segment_ids = Forked(segment_ids, branches, positions)
    inputs = dict(segment_ids=segment_ids, positions=positions)
    if hasattr(module, "features"):
        rows, head = module.apply({"params": params}, tokens, **inputs, method="features")
        project = functools.partial(output_logits, head=head)
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
        top = jnp.max(logits, axis=-1)
        found = chosen - top - jnp.log(jnp.sum(jnp.exp(logits - top[:, None]), axis=-1))
        logprobs = jax.lax.dynamic_update_slice_in_dim(logprobs, found, i * size, 0)
        # Of equal logits the first, as generation takes it (`fmjax.inference.sampler.sample`).
        is_before = jnp.arange(logits.shape[-1]) < target[:, None]
        likeliest = (chosen == top) & (jnp.max(jnp.where(is_before, logits, -jnp.inf), axis=-1) < top)
        return logprobs, jax.lax.dynamic_update_slice_in_dim(greedy, likeliest, i * size, 0)

    empty = jnp.zeros(where.shape, jnp.float32), jnp.zeros(where.shape, bool)
    return whole(jax.lax.fori_loop(0, (count + size - 1) // size, score_chunk, empty))


def _call(module, params, batch: Batch):
    arrays = (batch.tokens, batch.segment_ids, batch.positions, batch.branches, batch.where, batch.targets)
    return token_logprobs(module, params, *arrays, np.int32(batch.count))


def score_segments(module: nn.Module, params, segments: Sequence[Segment], **options) -> list[SegmentScore]:
    """Scores of all segments, in order; arguments and errors as in `iter_scores`."""
    found = dict(iter_scores(module, params, segments, **options))
    return [found[index] for index in range(len(segments))]


def iter_scores(
    module: nn.Module,
    params,
    segments: Sequence[Segment],
    *,
    context_length: int | None = None,
    tokens_per_batch: int | None = None,
    num_shards: int = 1,
    progress: str | None = None,
    unit: str = "texts",
) -> Iterator[tuple[int, SegmentScore]]:
    """Scores segments, giving (index, score) as batches are done, long ones first.

    Segments that begin alike share that beginning where the module `can_fork` (`fmjax.models.decoder.Decoder`);
    otherwise those share a pass whose inputs are the same.

    Args:
      module, params: a decoder language model.
      segments: each with at most `context_length` inputs.
      context_length: longest row; None is `module.max_length`.
      tokens_per_batch: inputs of one forward pass on one shard, padding included; None goes by the platform.
      num_shards: into how many parts the rows of a batch are split over the mesh
        (`fmjax.parallel.placement.scoring_context`).
      progress: label of a progress bar over the segments; None shows none.
      unit: what the bar counts.

    Raises: InputError for a segment that is longer than the context or scores its first token, before anything is
      computed.
    """
    context_length = context_length or getattr(module, "max_length", None)
    _check(module, segments, context_length)
    # Continuations of one token after one context share a pass.
    counted.read(len(inputs) for inputs in {segment.inputs for segment in segments})
    tokens_per_batch = tokens_per_batch or pass_tokens()
    options = dict(context_length=context_length, tokens_per_batch=tokens_per_batch, num_shards=num_shards)
    bar = dict(desc=progress, disable=progress is None, unit=f" {unit}", dynamic_ncols=True)
    return _iter_scores(module, params, segments, options, bar)


def _iter_scores(module, params, segments, options, bar):
    is_open = [segment.start < len(segment.tokens) for segment in segments]
    yield from ((index, SegmentScore(0.0, True, 0)) for index, wanted in enumerate(is_open) if not wanted)
    indices = [index for index, wanted in enumerate(is_open) if wanted]
    waiting, number = None, 0
    with tqdm(total=len(indices), **bar) as bar:
        found = batches(segments, indices, can_fork=getattr(module, "can_fork", False), **options)
        for batch in itertools.chain(found, [None]):
            results = None if batch is None else _call(module, params, batch)
            # Read a batch when the next is on its way, so that the device does not wait for the host.
            if waiting is not None:
                number += 1
                watch.at(f"batch {number} of scores")
                yield from _read(*waiting)
                bar.update(len(waiting[0]))
            waiting = None if batch is None else (batch.owners, results)
    watch.at("what follows the scores", limited=False)


def _read(owners, results) -> Iterator[tuple[int, SegmentScore]]:
    logprobs, greedy = (np.asarray(x) for x in results)
    for index, start, stop in owners:
        loglikelihood = float(np.sum(logprobs[start:stop], dtype=np.float64))
        yield index, SegmentScore(loglikelihood, bool(greedy[start:stop].all()), stop - start)


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
