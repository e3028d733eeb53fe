"""Texts, a token after the other: `fmjax.inference.continuations` as a generator."""

import dataclasses
from collections.abc import Iterator, Sequence

from fmjax.errors import InputError
from fmjax.inference import continuations


class Autoregressive:
    """Continuations of texts or token ids."""

    Options = continuations.Options

    def __init__(self, model):
        self.model = model

    def default_prompts(self) -> Sequence[str]:
        raise InputError(f'{self.model} continues texts: give it some, [""] to start from nothing')

    def run(self, prompts: Sequence, options: continuations.Options) -> Iterator[tuple[int, str]]:
        """(index, text) of each continuation when it has ended."""
        pieces = self.model.pieces(prompts, **{f.name: getattr(options, f.name) for f in dataclasses.fields(options)})
        return ((piece.index, piece.whole.text) for piece in pieces if piece.whole is not None)
