"""Tokens to text as they come, up to a stop string."""

from collections.abc import Sequence

from fmjax.errors import InputError

CONTEXT = 8
"""Earlier tokens decoded along with new ones, so that what a token's text owes to its neighbours comes out right."""


class TextStream:
    """The text that follows a prompt, piece by piece; the pieces joined are the continuation.

    Decoding each token by itself would be wrong: SentencePiece drops the space in front of a first word, and a
    character may be spread over several byte tokens. Such a character is held back until it is complete.

    Args:
      tokenizer: see `fmjax.data.tokenizers.loading.Tokenizer`; None gives no text.
      prompt: the tokens that come before. Where they end inside a character, the continuation begins with all of it.
    """

    def __init__(self, tokenizer, prompt: Sequence[int]):
        self._tokenizer = tokenizer
        self._tokens = list(prompt[-CONTEXT:])
        self._shown = len(self._tokens)

    def push(self, tokens: Sequence[int], last: bool = False) -> str:
        """The text that `tokens` add; with `last`, an incomplete character comes out as U+FFFD."""
        if self._tokenizer is None:
            return ""
        self._tokens += tokens
        before = self._tokenizer.decode(self._tokens[: self._shown])
        after = self._tokenizer.decode(self._tokens)
        if after.endswith("\ufffd") and not last:
            return ""
        # The signs of a character that was not complete before stand for it no more.
        while before.endswith("\ufffd") and not after.startswith(before):
            before = before[:-1]
        self._tokens = self._tokens[max(0, min(self._shown, len(self._tokens) - CONTEXT)) :]
        self._shown = len(self._tokens)
        return after[len(before) :]


class StoppedText:
    """As `TextStream`, but the text ends before the first of some stop strings.

    What is given out is never taken back: an end of the text that may be the beginning of a stop string is held back
    until more has come. A stop string counts wherever it lies over tokens, in the continuation alone.

    Args:
      tokenizer, prompt: as in `TextStream`.
      stops: strings, none of them empty.

    Attributes:
      num_tokens: how many tokens have been taken in; those after the one that completes a stop string are not.
      stopped: whether a stop string has come.

    Raises InputError for an empty stop string, a single string in place of several, or any without a tokenizer.
    """

    def __init__(self, tokenizer, prompt: Sequence[int], stops: Sequence[str] = ()):
        check_stops(stops)
        if stops and tokenizer is None:
            raise InputError(f"stop={list(stops)!r} needs texts, and the model has no tokenizer; use stop_ids")
        self._stream = TextStream(tokenizer, prompt)
        self._stops = tuple(stops)
        self._held = ""
        self.num_tokens, self.stopped = 0, False

    def push(self, tokens: Sequence[int], last: bool = False) -> str:
        """The text that `tokens` add for certain; with `last`, all that is left of it."""
        if not self._stops:
            self.num_tokens += len(tokens)
            return self._stream.push(tokens, last)
        out = ""
        # One by one, to know which token completes a stop string.
        for place, token in enumerate(tokens):
            if self.stopped:
                return out
            self.num_tokens += 1
            out += self._add(self._stream.push([token], last and place == len(tokens) - 1))
        if last and not self.stopped:
            out += self._add("" if tokens else self._stream.push([], True))
            if not self.stopped:
                out, self._held = out + self._held, ""
        return out

    def _add(self, text: str) -> str:
        self._held += text
        starts = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if starts:
            self.stopped = True
            return self._held[: min(starts)]
        kept = max(_overlap(self._held, stop) for stop in self._stops)
        out, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
        return out


def check_stops(stops: Sequence[str]) -> None:
    """Raises InputError for what cannot be stop strings."""
    if isinstance(stops, str):
        raise InputError(f"stop: expected a list of strings, got one string; write [{stops!r}]")
    if not all(isinstance(stop, str) and stop for stop in stops):
        raise InputError(f"stop: expected strings that are not empty, got {list(stops)!r}")


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
