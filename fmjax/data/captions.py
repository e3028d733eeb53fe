"""Captions as rows of tokens: framed as the tokenizer frames texts, cut or refused where they are too long."""

import dataclasses
import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from fmjax.data.prepared import fingerprint
from fmjax.data.run_tokenizer import check_max_length, check_vocabulary
from fmjax.data.tokenizers.loading import Tokenizer
from fmjax.errors import ConfigError, DataError

log = logging.getLogger("fmjax")

OVERLONG = ("cut", "error")
NO_LABEL = -1
"""The label of a caption that nothing else in the data is known to mean."""


@dataclasses.dataclass(frozen=True)
class CaptionRows:
    """What makes `tokens` and `segment_ids`, int32 [length] each, of a caption.

    Attributes:
      tokenizer: whose `encode_pair` puts special tokens around a text.
      length: T, special tokens included. The rest of a row is 0 in both arrays; text has segment 1.
      overlong: "cut" leaves out the last tokens of a text that do not fit, never special ones, as `transformers` does
        with truncation; "error" refuses.
      setting: the config's key of the length, for messages.
    """

    tokenizer: Tokenizer
    length: int
    overlong: str = "cut"
    setting: str = "data.sequence_length"

    def __call__(self, caption: str) -> dict[str, np.ndarray]:
        """The arrays of a caption. Raises DataError for an empty one, and for one too long that is not to be cut."""
        ids = self._ids(caption)
        if len(ids) > self.length:
            if self.overlong == "error":
                raise DataError(
                    f"caption {caption[:60]!r} has {len(ids)} tokens, more than {self.setting} = {self.length}; "
                    "raise it, or set data.overlong = 'cut'"
                )
            ids = self.cut(caption, ids)
        tokens, segments = np.zeros(self.length, np.int32), np.zeros(self.length, np.int32)
        tokens[: len(ids)], segments[: len(ids)] = ids, 1
        return {"tokens": tokens, "segment_ids": segments}

    def check_lengths(self, captions: Iterable[str], name: str) -> None:
        """Counts the captions that are too long: refused with their number by DataError, or told in the log.

        name: of the data, for the message.
        """
        lengths = [(len(self._ids(caption)), caption) for caption in captions]
        overlong = [(length, caption) for length, caption in lengths if length > self.length]
        if not overlong:
            return
        count = f"{len(overlong)} of {len(lengths)} captions"
        found = f"{name}: {count} are longer than {self.setting} = {self.length} tokens"
        longest = f"the longest, {max(overlong)[1][:60]!r}, has {max(overlong)[0]}"
        if self.overlong == "error":
            raise DataError(f"{found}; {longest}. Raise it, or set data.overlong = 'cut'")
        log.warning("%s, and are cut; %s", found, longest)

    def _ids(self, caption: str) -> list[int]:
        if not caption.strip():
            raise DataError("a caption is empty; leave its line out, or write what the image shows")
        return self.tokenizer.encode_pair(caption)[0]

    def cut(self, caption: str, ids: list[int]) -> list[int]:
        """The first `length` of a caption's ids, the special ones behind the text among them. Raises ConfigError where
        these leave no place for text."""
        text = self.tokenizer.encode(caption)
        before = next((i for i in range(len(ids) - len(text) + 1) if ids[i : i + len(text)] == text), None)
        if before is None:
            raise ConfigError(
                f"the caption {caption[:60]!r} is too long, and cannot be cut: data.tokenizer frames a text with other "
                f"tokens than it encodes it with; raise {self.setting}, or take another tokenizer"
            )
        behind = ids[before + len(text) :]
        kept = self.length - before - len(behind)
        if kept < 1:
            raise ConfigError(
                f"{self.setting} = {self.length} leaves no token for text: the tokenizer puts "
                f"{before + len(behind)} around it"
            )
        return ids[: before + kept] + behind

    def check(self, module: Any, name: str) -> None:
        """Raises ConfigError for a module with fewer tokens than the tokenizer, called `name`, or shorter texts."""
        check_vocabulary(module, self.tokenizer, name)
        check_max_length(module, self.length)


@dataclasses.dataclass(frozen=True)
class CaptionTexts:
    """Captions as `open_tokenizer` reads documents."""

    captions: Sequence[str]

    @property
    def fingerprint(self) -> str:
        return fingerprint("captions", list(self.captions))

    def stream(self) -> Iterator[tuple[str, str]]:
        return (("train", caption) for caption in self.captions)
