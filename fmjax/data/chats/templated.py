"""What data of chats share, whatever is learnt of them: the template, and what becomes of chats that do not fit."""

import dataclasses
import logging
import pathlib
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np

from fmjax.data.base import OpenData
from fmjax.data.chats.sources import ChatSource, Reader, open_chats, texts
from fmjax.data.prepared import fingerprint
from fmjax.data.sources import SourceSpec, SplitSource
from fmjax.data.text import TextData
from fmjax.data.tokenizers.loading import Tokenizer
from fmjax.data.tokenizers.templates import TURNS
from fmjax.errors import ConfigError, DataError
from fmjax.layers.checks import check_choice

log = logging.getLogger("fmjax")


@dataclasses.dataclass(frozen=True)
class TemplatedData(TextData):
    """Records of chats, as the model's own template writes them.

    Attributes:
      tokenizer: as in `TextData`; of a chat model it brings the template.
      chat_template: the template in place of the tokenizer's own: "turns", each message between the tokenizer's BOS
        and EOS, or a file (.jinja). It is saved with the run.
      overlong: what becomes of a chat longer than a row: "drop" leaves it out and logs how many; "error" refuses.
      bad_chats: what becomes of a chat whose roles do not take turns, that has an empty reply or ends without one:
        "error" refuses it, by file and row; "skip" leaves it out and logs how many.
      text_field, document_separator, tfds_data_dir: not for chats; refused.
    """

    BUILTIN: ClassVar[str]  # import path of what data.source = "builtin" is
    READER: ClassVar[Reader]  # what a record is read by

    tokenizer: str = "bytes"
    chat_template: str | None = None
    overlong: str = "drop"
    bad_chats: str = "error"

    def __post_init__(self):
        check_choice("data.overlong", self.overlong, ("drop", "error"))
        check_choice("data.bad_chats", self.bad_chats, ("error", "skip"))
        super().__post_init__()

    def open(
        self, *, seed: int, cache_dir: pathlib.Path, workdir: pathlib.Path | None = None, progress: bool = False
    ) -> OpenData:
        """As `TextData.open`; raises DataError, naming file and row, for what is no chat."""
        opened = super().open(seed=seed, cache_dir=cache_dir, workdir=workdir, progress=progress)
        template = fingerprint(sorted(opened.tokenizer.chat_templates.items()))
        return dataclasses.replace(opened, identity={**opened.identity, "chat_template": template}, documents=_none)

    def _open_source(self, spec: SourceSpec, cache_dir: pathlib.Path) -> ChatSource:
        kind = type(self)
        return open_chats(spec, cache_dir, kind.READER, kind.BUILTIN, self.bad_chats == "skip")

    def _open_tokenizer(self, sources: list[SplitSource], cache_dir: pathlib.Path, progress: bool) -> Tokenizer:
        tokenizer = super()._open_tokenizer([_Texts(source) for source in sources], cache_dir, progress)
        if self.chat_template is not None:
            tokenizer.chat_templates = {"default": self._template(tokenizer)}
        if not tokenizer.chat_templates:
            raise ConfigError(
                f"the tokenizer {self.tokenizer!r} has no chat template: set data.chat_template to 'turns' (each "
                "message between its BOS and EOS) or to a file with one, or begin with a chat model"
            )
        return tokenizer

    def _template(self, tokenizer: Tokenizer) -> str:
        if self.chat_template == "turns":
            if tokenizer.bos_id is None or tokenizer.eos_id is None:
                raise ConfigError(
                    f"data.chat_template = 'turns' needs a tokenizer with BOS and EOS, which {self.tokenizer!r} has "
                    "not; name a file with a template"
                )
            return TURNS
        path = pathlib.Path(self.chat_template).expanduser()
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"data.chat_template = {self.chat_template!r}: expected 'turns' or a file with a template ({error})"
            ) from None

    def _fitting(self, lengths: np.ndarray, split: str) -> np.ndarray:
        """Which chats of so many inputs fit into a row, bool. Raises DataError where one does not and may not be left
        out, or none fits to train on."""
        overlong = np.flatnonzero(lengths > self.sequence_length)
        if len(overlong):
            self._say_overlong(lengths, overlong, split)
        if split == "train" and len(overlong) == len(lengths):
            raise DataError(
                f"no chat fits into a row of data.sequence_length = {self.sequence_length} tokens; make it larger"
            )
        return lengths <= self.sequence_length

    def _say_overlong(self, lengths: np.ndarray, overlong: np.ndarray, split: str) -> None:
        first, longest = int(overlong[0]), int(lengths.max())
        told = f"{len(overlong)} of {len(lengths)} {split} chats"
        if self.overlong == "error":
            raise DataError(
                f"{told} are longer than a row of data.sequence_length = {self.sequence_length} tokens: the first of "
                f"them, chat {first} of its split, has {int(lengths[first])}, the longest {longest}. Make it larger, "
                "or leave them out with data.overlong=drop"
            )
        log.warning(
            "%s are left out: they are longer than a row of data.sequence_length = %d tokens (the longest has %d).",
            told, self.sequence_length, longest,
        )  # fmt: skip


def _none(split: str = "heldout") -> Sequence[str]:
    """The `documents` of chats: raises ConfigError."""
    raise ConfigError(
        f"these data are chats, and no text documents (split {split!r} was asked for); eval/loss is that of the "
        "held-out replies"
    )


@dataclasses.dataclass(frozen=True)
class _Texts:
    """What is said in the chats of a source, for a tokenizer that is trained on it."""

    chats: SplitSource

    @property
    def fingerprint(self) -> str:
        return self.chats.fingerprint

    def stream(self) -> Iterator[tuple[str, str]]:
        for split, chat in self.chats.stream():
            for text in texts(chat):
                yield split, text
