"""Tokens to text as they come."""

from collections.abc import Sequence

CONTEXT = 8
"""Earlier tokens decoded along with new ones, so that what a token's text owes to its neighbours comes out right."""


class TextStream:
    """The text that follows a prompt, piece by piece; the pieces joined are the continuation.

    Decoding each token by itself would be wrong: SentencePiece drops the space in front of a first word, and a
    character may be spread over several byte tokens. Such a character is held back until it is complete.

    Args:
      tokenizer: see `fmjax.data.tokenizer.Tokenizer`.
      prompt: the tokens that come before.
    """

    def __init__(self, tokenizer, prompt: Sequence[int]):
        self._tokenizer = tokenizer
        self._tokens = list(prompt[-CONTEXT:])
        self._shown = len(self._tokens)

    def push(self, tokens: Sequence[int], last: bool = False) -> str:
        """The text that `tokens` add; with `last`, an incomplete character comes out as U+FFFD."""
        self._tokens += tokens
        before = self._tokenizer.decode(self._tokens[: self._shown])
        after = self._tokenizer.decode(self._tokens)
        if after.endswith("\ufffd") and not last:
            return ""
        self._tokens = self._tokens[max(0, min(self._shown, len(self._tokens) - CONTEXT)) :]
        self._shown = len(self._tokens)
        return after[len(before) :]
