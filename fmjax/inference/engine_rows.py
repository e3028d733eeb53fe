"""The rows of a batch that decodes: a request on its way, and what programs are told of it."""

import dataclasses
from collections.abc import Collection, Sequence

import numpy as np

from fmjax.inference.allowed_tokens import AllowedTokens
from fmjax.inference.engine_programs import Starting
from fmjax.inference.engine_requests import PromptRequest, Walk, digest
from fmjax.inference.sampler import Settings


@dataclasses.dataclass(eq=False)
class Row:
    """A request on its way.

    Attributes:
      index: of the request.
      allowed: tokens that it may draw.
      sent: tokens that dispatched programs draw, at least unless it stops.
      drawn: tokens that the host has read.
      done: whether it has ended.
      walk: through the request's language, or None.
      words: what that allows next (`AllowedTokens.of`).
    """

    index: int
    request: PromptRequest
    allowed: int
    sent: int = 0
    drawn: int = 0
    done: bool = False
    walk: Walk | None = None
    words: np.ndarray | None = None


def starting(rows: Sequence[Row], capacity: int, words: Sequence[np.ndarray] | None) -> Starting:
    """What `prefill` is told of rows that begin, as many as `capacity`.

    words: what each row may draw first; None where no row of the run is held to a language.
    """

    def column(values, dtype):
        values = list(values)
        return np.asarray(values + [values[0]] * (capacity - len(values)), dtype)

    requests = [row.request for row in rows]
    columns = [column(values, None) for values in zip(*(r.sampling.values for r in requests))]
    return Starting(
        column((row.allowed for row in rows), np.int32),
        column((r.seed for r in requests), np.uint32),
        column((digest(r.tokens) for r in requests), np.uint32),
        column((r.copy for r in requests), np.uint32),
        Settings(*(c.astype(np.int32 if i == 1 else np.float32) for i, c in enumerate(columns))),
        None if words is None else column(words, np.uint32),
    )


def followed(row: Row, new: Sequence[int], allowed: AllowedTokens, stop_ids: Collection[int]) -> int:
    """How many new tokens the row's walk, if any, goes on by: what a pass drew behind a dead end means nothing."""
    if row.walk is None:
        return len(new)
    for number, token in enumerate(new):
        if number and allowed.of(row.walk) is None:
            return number
        if token not in stop_ids:
            row.walk.take(token)
    return len(new)
