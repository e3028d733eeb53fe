"""The steps of a sampler, told to whoever wants to see how far it is: a program is then called piece by piece."""

import contextlib
import contextvars
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import jax

State = TypeVar("State")
Tell = Callable[[int, int], None]
"""(steps that are done, steps in all): first with none done, last with all of them."""

LEAST_SECONDS = 0.1
"""A piece takes this long at least, once it is known how long a step takes: calls cost less than a hundredth of it."""

_current: contextvars.ContextVar[Tell | None] = contextvars.ContextVar("tell", default=None)


@contextlib.contextmanager
def telling(tell: Tell | None) -> Iterator[None]:
    """Tells of the steps of all samplers inside; None is nobody."""
    token = _current.set(tell)
    try:
        yield
    finally:
        _current.reset(token)


def in_pieces(advance: Callable[[State, int, int], State], state: State, steps: int, least: int = 1) -> State:
    """`advance(state, 0, steps)`; where somebody is told, in calls of `advance(state, first, last)` one after the
    other. Programs take `first` and `last` as numbers, not as constants, so that one is compiled for all pieces.

    least: steps of a piece at least, where a call costs more than it takes to call it.
    """
    tell = _current.get()
    # Bound to where it lies, as a program gives it back whose parameters are: the next call is of the same program.
    state = jax.tree.map(lambda x: jax.device_put(x, x.sharding) if isinstance(x, jax.Array) else x, state)
    if tell is None:
        return advance(state, 0, steps)
    tell(0, steps)
    first, size = 0, least
    while first < steps:
        begin, last = time.perf_counter(), min(first + size, steps)
        state = jax.block_until_ready(advance(state, first, last))
        tell(last, steps)
        first, size = last, size if time.perf_counter() - begin > LEAST_SECONDS else 2 * size
    return state
