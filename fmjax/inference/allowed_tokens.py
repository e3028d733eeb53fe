"""What each row of a batch may draw, where continuations are held to a language: words of bits made on the host."""

from collections.abc import Iterable, Sequence

import numpy as np

from fmjax.errors import InputError
from fmjax.inference.engine_requests import Walk


class AllowedTokens:
    """Words for the rows of one run.

    Args:
      module: the model, whose `vocab_size` tells how many words a row has.
      num_tokens, banned_ids: see `fmjax.inference.engine.Engine`.
      stop_ids: tokens that end a continuation: they may be drawn where it may end, and nowhere else.

    Attributes:
      everything: uint32 [W], every bit set.
      stop_ids: those of the tokens that may be drawn.

    Raises InputError for a module that does not tell its vocabulary, and where nothing can end a continuation.
    """

    def __init__(self, module, num_tokens: int | None, banned_ids: Sequence[int], stop_ids: Iterable[int]):
        vocab_size = getattr(module, "vocab_size", None)
        if vocab_size is None:
            name = type(module).__name__
            raise InputError(f"a constraint needs to know the vocabulary, and {name} has no vocab_size")
        drawn = set(range(vocab_size if num_tokens is None else num_tokens)) - set(banned_ids)
        self.stop_ids = stops = drawn & set(stop_ids)
        if not stops:
            raise InputError(
                "a constraint needs a token that ends the text, which the tokenizer does not have: give one as stop_ids"
            )
        self._text, self._stops = (_words(ids, vocab_size) for ids in (drawn - stops, stops))
        self.everything = np.full(len(self._text), 2**32 - 1, np.uint32)

    def of(self, walk: Walk | None) -> np.ndarray | None:
        """uint32 [W]: what a row may draw; everything of one that is held to nothing. None where no token goes on with
        a text of the language."""
        if walk is None:
            return self.everything
        found, allowed = np.zeros_like(self._text), walk.allowed()
        size = min(len(found), len(allowed))
        found[:size] = allowed[:size] & self._text[:size]
        if walk.may_end():
            found |= self._stops
        return found if found.any() else None


def _words(ids: Iterable[int], size: int) -> np.ndarray:
    """uint32 [ceil(size / 32)]: bit i of word w is set where 32 w + i is one of the ids."""
    bits = np.zeros((-(-size // 32), 32), np.uint32)
    for id in ids:
        bits[divmod(id, 32)] = 1
    return (bits << np.arange(32, dtype=np.uint32)).sum(axis=1, dtype=np.uint32)
