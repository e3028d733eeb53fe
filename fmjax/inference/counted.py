"""How long the sequences are that a model reads, told to whoever wants to know what a computation takes."""

import collections
import contextlib
import contextvars
import dataclasses
from collections.abc import Iterable, Iterator


@dataclasses.dataclass
class Passes:
    """Sequences by length in tokens, padding left out.

    Attributes:
      read: forward passes.
      trained: forward and backward passes.
      is_told: whether anything was said, if only that there was nothing to read.
    """

    read: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    trained: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    is_told: bool = False


_current: contextvars.ContextVar[Passes | None] = contextvars.ContextVar("passes", default=None)


@contextlib.contextmanager
def counting() -> Iterator[Passes]:
    """Counts what is read and trained inside."""
    passes = Passes()
    token = _current.set(passes)
    try:
        yield passes
    finally:
        _current.reset(token)


def read(lengths: Iterable[int]) -> None:
    """Says that sequences of these lengths go through the model once each."""
    if (passes := _current.get()) is not None:
        passes.read.update(lengths)
        passes.is_told = True


def trained(lengths: Iterable[int]) -> None:
    """Says that the model is trained on sequences of these lengths once each."""
    if (passes := _current.get()) is not None:
        passes.trained.update(lengths)
        passes.is_told = True
