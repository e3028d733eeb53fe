"""Log-likelihoods of texts: as segments of tokens, cut as lm-evaluation-harness does, and their scores."""

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Sequence

from fmjax.errors import InputError
from fmjax.inference import kinds, prompts, scoring
from fmjax.inference.checks import check_list
from fmjax.inference.scoring import rolling_windows
from fmjax.inference.segments import Segment
from fmjax.parallel.placement import each_inside

log = logging.getLogger("fmjax")


def continuation_segments(model, pairs: Sequence[tuple[str, str]]) -> tuple[list[Segment], list[bool]]:
    """For each (context, continuation), the segment that scores the continuation, and whether its context was cut.

    Spaces at the end of a context belong to the continuation, whose tokens are those that `context + continuation` has
    beyond the context's. An empty context is the tokenizer's `prefix_id`. A context that does not fit keeps its end.

    Args:
      model: a `fmjax.load.Model` of a decoder.

    Raises: InputError for another model, or where a continuation alone is longer than the context, or has no token of
      its own, or for what is no pair of texts.
    """
    check_scores(model)
    check_list("pairs", pairs)
    for index, pair in enumerate(pairs):
        is_pair = isinstance(pair, Sequence) and not isinstance(pair, str | bytes) and len(pair) == 2
        if not is_pair or not all(isinstance(text, str) for text in pair):
            raise InputError(f"pair {index} must be two texts, (context, continuation), got {pair!r}")
    pairs = [_move_spaces(context, continuation) for context, continuation in pairs]
    wholes = model.tokens([context + continuation for context, continuation in pairs])
    different = list(dict.fromkeys(context for context, _ in pairs))  # options of one question have the same
    tokens_of = dict(zip(different, model.tokens(different)))
    contexts = [tokens_of[context] for context, _ in pairs]
    segments = []
    for (context, continuation), whole, before in zip(pairs, wholes, contexts):
        if continuation and len(whole) <= len(before):
            raise InputError(
                f"the continuation {continuation!r} has no token of its own after the context ending in "
                f"{context[-20:]!r}: the tokenizer joins them; move their border"
            )
        tokens = model.with_bos(whole, repr(continuation), force=not before)
        start = len(tokens) - (len(whole) - len(before))
        segments.append(Segment(tokens, start))
    fitted = [_fit(segment, model.context_length) for segment in segments]
    return fitted, [len(new.tokens) < len(old.tokens) for new, old in zip(fitted, segments)]


def rolling_segments(model, texts: Sequence[str]) -> tuple[list[Segment], list[int]]:
    """Segments that score every token of every text once, from the tokenizer's `prefix_id`, and the text that each
    belongs to.

    Windows of the model's context, as `fmjax.inference.scoring.rolling_windows` says. EOS is not scored.
    Raises InputError as `continuation_segments`.
    """
    check_scores(model)
    check_list("texts", texts)
    segments, owners = [], []
    for index, tokens in enumerate(model.tokens(texts)):
        first = model.with_bos([], f"text {index}")[0]
        windows = rolling_windows(tokens, first, model.context_length or max(1, len(tokens)))
        segments += windows
        owners += [index] * len(windows)
    return segments, owners


def lacks(model) -> str | None:
    """What a model lacks to give log-likelihoods of texts."""
    if not kinds.reads_tokens(model.module):
        return f"it gives no log-likelihoods of texts: it reads {', '.join(kinds.inputs(model.module)) or 'nothing'}"
    if model.is_bidirectional:
        return (
            "it gives no log-likelihoods of texts, as it does not predict each token from those before it alone; that "
            "takes a decoder, such as GPT or LLaMA"
        )
    return prompts.lacks_tokenizer(model)


def check_scores(model) -> None:
    """Raises InputError where the model gives no log-likelihoods of texts."""
    if lack := lacks(model):
        raise InputError(f"{model} cannot score: {lack}")


def score(model, pairs: Sequence[tuple[str, str]], *, progress: str | None = None) -> list[tuple[float, bool, int]]:
    """See `Model.score`."""
    segments, cut = continuation_segments(model, pairs)
    if any(cut):
        log.warning(
            "%d of %d contexts were longer than the model's: their beginning was left out", sum(cut), len(pairs)
        )
    found = dict(iter_scores(model, segments, progress))
    return [found[index] for index in range(len(segments))]


def rolling(model, texts: Sequence[str], *, progress: str | None = None) -> list[tuple[float, int]]:
    """See `Model.loglikelihood_rolling`."""
    segments, owners = rolling_segments(model, texts)
    totals = [[0.0, 0] for _ in texts]
    found = dict(iter_scores(model, segments, progress))
    for index, owner in enumerate(owners):
        totals[owner][0] += found[index][0]
        totals[owner][1] += found[index][2]
    return [(loglikelihood, count) for loglikelihood, count in totals]


def iter_scores(
    model, segments: Sequence[Segment], progress: str | None = None, unit: str = "texts"
) -> Iterator[tuple[int, tuple[float, bool, int]]]:
    """See `Model.iter_scores`."""
    placement = model.placement
    options = dict(context_length=model.context_length, progress=progress, unit=unit)
    context = contextlib.nullcontext
    if placement is not None:
        context, options = placement.scoring, options | {"num_shards": placement.num_row_shards}
    scores = scoring.iter_scores(model.module, model.params, segments, **options)
    return ((i, dataclasses.astuple(one)) for i, one in each_inside(context, scores))


def _move_spaces(context: str, continuation: str) -> tuple[str, str]:
    """Spaces at the end of the context moved to the front of the continuation."""
    if not continuation:
        return context, continuation
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation


def _fit(segment: Segment, context_length: int | None) -> Segment:
    """The segment with its beginning cut to the context."""
    if context_length is None:
        return segment
    extra = max(0, len(segment.tokens) - 1 - context_length)
    if extra >= segment.start:
        wanted = len(segment.tokens) - segment.start
        raise InputError(
            f"a continuation has {wanted} tokens, more than the model's context of {context_length}: it cannot be "
            "scored whole; evaluate a model with a longer context, or with --limit only the documents before it"
        )
    return Segment(segment.tokens[extra:], segment.start - extra)
