"""How much a model reads, told to whoever wants to know what a computation takes."""

import collections
import contextlib
import contextvars
import dataclasses
from collections.abc import Iterable, Iterator, Mapping


@dataclasses.dataclass
class Passes:
    """Sequences by length in tokens, padding left out, and other examples by the shapes of their arrays.

    Attributes:
      read: forward passes of sequences.
      trained: forward and backward passes of sequences.
      examples: forward passes of other examples; a key is (name, shape) of each array.
      is_told: whether anything was said, if only that there was nothing to read.
    """

    read: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    trained: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    examples: collections.Counter = dataclasses.field(default_factory=collections.Counter)
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


def read_examples(shapes: Mapping[str, tuple[int, ...]], count: int) -> None:
    """Says that `count` examples with arrays of these shapes, by name, go through the model once each."""
    if (passes := _current.get()) is not None:
        passes.examples[tuple(sorted(shapes.items()))] += count
        passes.is_told = True


def trained(lengths: Iterable[int]) -> None:
    """Says that the model is trained on sequences of these lengths once each."""
    if (passes := _current.get()) is not None:
        passes.trained.update(lengths)
        passes.is_told = True
