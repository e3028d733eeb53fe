"""Prompts for a model that learns from what is said of its replies: documents tokenised once, one a row."""

import dataclasses
import itertools
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from fmjax.data.base import OpenData, Row, described
from fmjax.data.corpus import Corpus
from fmjax.data.sources import open_source, split_train
from fmjax.data.text import TextData
from fmjax.errors import ConfigError, DataError


@dataclasses.dataclass(frozen=True)
class PromptData(TextData):
    """Documents as prompts: a row has `tokens` int32 [sequence_length], BOS and the document, 0 after its end, and
    `lengths` int32 [].

    Attributes:
      sequence_length: tokens that a prompt has at most, BOS included.
    """

    sequence_length: int = 64

    @property
    def example(self) -> dict[str, Any]:
        """The arrays of a row, known without reading any data."""
        return described(tokens=self.sequence_length, lengths=None)

    def open(
        self, *, seed: int, cache_dir: pathlib.Path, workdir: pathlib.Path | None = None, progress: bool = False
    ) -> OpenData:
        """As `TextData.open`; raises DataError for too long a prompt, ConfigError for too few to hold some out."""
        for name, spec in self._specs().items():
            source = open_source(spec, pathlib.Path(cache_dir))
            if split_train(source, spec, self.eval_source is not None).heldout == "tail":
                raise ConfigError(
                    f"{source.name} has {source.num_documents} prompts, too few to hold a share of them out; set "
                    f"data{name and '.mixture.' + name}.heldout_fraction = 0, a larger one, or data.eval_source"
                )
        return super().open(seed=seed, cache_dir=cache_dir, workdir=workdir, progress=progress)

    def _rows(self, corpus: Corpus, split: str) -> "PromptRows":
        return PromptRows(corpus, split, self.sequence_length)


class PromptRows(Sequence):
    """Row i is document i of a split (`PromptData`). Raises DataError where one is longer than a row."""

    def __init__(self, corpus: Corpus, split: str, length: int):
        self._split, self._length = corpus.splits[split], length
        sizes = np.diff(self._split.offsets) - 1
        if len(sizes) and sizes.max() > length:
            raise DataError(
                f"{split} prompt {int(sizes.argmax())} has {sizes.max()} tokens, more than data.sequence_length = "
                f"{length}; raise it or leave the prompt out"
            )

    def __len__(self) -> int:
        return len(self._split.offsets) - 1

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        start, end = self._split.offsets[index : index + 2]
        tokens = np.zeros(self._length, np.int32)
        tokens[: end - 1 - start] = self._split.tokens[start : end - 1]  # what follows EOS would be another text
        return {"tokens": tokens, "lengths": np.asarray(end - 1 - start, np.int32)}


def digit_strings(length: int = 3) -> list[str]:
    """Every string of so many digits, with = behind it: "000=", "001=", ..."""
    return ["".join(digits) + "=" for digits in itertools.product("0123456789", repeat=length)]
