"""Texts as the segments of tokens whose log-likelihoods a model is asked for, as lm-evaluation-harness cuts them."""

from collections.abc import Sequence

from fmjax.errors import InputError
from fmjax.inference.checks import check_list
from fmjax.inference.scoring import rolling_windows
from fmjax.inference.segments import Segment


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
    segments, owners = [], []
    for index, tokens in enumerate(model.tokens(texts)):
        first = model.with_bos([], f"text {index}")[0]
        windows = rolling_windows(tokens, first, model.context_length or max(1, len(tokens)))
        segments += windows
        owners += [index] * len(windows)
    return segments, owners


def check_scores(model) -> None:
    """Raises InputError where the model does not predict each token from those before it."""
    if model.is_bidirectional:
        raise InputError(
            f"{model} gives no log-likelihoods of texts: it does not predict each token from those before it alone; "
            "that takes a decoder, such as GPT or LLaMA"
        )


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
            f"a continuation has {wanted} tokens, more than the model's context of {context_length}: it cannot be scored "
            "whole; evaluate a model with a longer context, or with --limit only the documents before it"
        )
    return Segment(segment.tokens[extra:], segment.start - extra)
