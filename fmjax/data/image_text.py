"""Rows of images with captions, of whatever `Captioned` examples: one caption a row, drawn by seed or each in turn."""

import dataclasses
import itertools
import pathlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from fmjax.data.base import OpenData, Row
from fmjax.data.captions import CaptionRows, CaptionTexts
from fmjax.data.documents import chosen_documents
from fmjax.data.image_rows import View, check_module
from fmjax.data.run_tokenizer import open_tokenizer
from fmjax.data.shuffle import Draws, shuffled_indices


class Captioned(Protocol):
    """Images with captions, by number."""

    def __len__(self) -> int: ...

    def image(self, index: int) -> np.ndarray:
        """uint8 [H, W, C], of any size that the codec scales."""

    def captions(self, index: int) -> Sequence[str]:
        """At least one; all of them describe the image."""

    def label(self, index: int) -> int:
        """Equal for images that the same captions describe; -1 where that is not known.

        Those that a decoder is to write another text of than the caption have `written(index, caption, draws)` too."""


@dataclasses.dataclass(frozen=True)
class ImageTextRows:
    """What makes a row of an image, a caption and a label.

    Attributes:
      written: of what a decoder is to write (`Captioned.written`); None where that is the caption.
    """

    view: View
    captions: CaptionRows
    written: CaptionRows | None = None

    def __call__(self, examples: Captioned, index: int, caption: str, draws: Draws | None = None) -> Row:
        """A row of an example and one of its captions; the image is changed as `draws` say, and not without them."""
        image, label = examples.image(index), examples.label(index)
        arrays = self.view.unchanged(image) if draws is None else self.view(image, draws)
        if self.written is not None:
            text = examples.written(index, caption, Draws("written", index) if draws is None else draws)
            made = self.written(text)
            arrays |= {"written": made["tokens"], "written_ids": made["segment_ids"]}
        numbers = {"labels": np.asarray(label, np.int32), "loss_weights": np.ones((), np.float32)}
        return arrays | self.captions(caption) | numbers


class TrainingPairs:
    """Endless rows: every epoch has each image once, in an order and with one of its captions that `seed` draws. Row i
    is a pure function of (seed, i)."""

    def __init__(self, examples: Captioned, row: ImageTextRows, seed: object):
        self._examples, self._row, self._seed = examples, row, seed
        self._order = shuffled_indices(len(examples), [seed, "image_text"])

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> Row:
        chosen = int(self._order[index])
        captions = self._examples.captions(chosen)
        draws = Draws("image_text", self._seed, int(index))
        caption = draws.one_of(captions)
        return self._row(self._examples, chosen, caption, draws)


class EvaluationPairs(Sequence):
    """Finite rows: each image with each of its captions, in order."""

    def __init__(self, examples: Captioned, row: ImageTextRows):
        self._examples, self._row = examples, row
        self._pairs = [(i, caption) for i in range(len(examples)) for caption in examples.captions(i)]

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Row:
        number, caption = self._pairs[index]
        return self._row(self._examples, number, caption)

    @property
    def texts(self) -> list[str]:
        """The captions of the rows."""
        return [caption for _, caption in self._pairs]


@dataclasses.dataclass(frozen=True)
class CaptionSettings:
    """What a config says of captions: tokens a row (T), the tokenizer's name, "cut" or "error" for those too long; and
    tokens a row of what a decoder is to write, None where that is the caption."""

    sequence_length: int
    tokenizer: str
    overlong: str
    written_length: int | None = None


def open_image_text(
    train: Captioned,
    evaluation: Mapping[str, Captioned],
    view: View,
    settings: CaptionSettings,
    tokenizer_texts: Sequence[str],
    *,
    captions_of: Iterable[str] | None = None,
    name: str,
    identity: str,
    seed: int,
    cache_dir: pathlib.Path,
    progress: bool,
    written: Sequence[str] = (),
    written_of: Iterable[str] = (),
) -> OpenData:
    """The data of examples to train on and others to evaluate on.

    Args:
      view: what a model is shown of an image; it mixes none.
      tokenizer_texts: captions that a tokenizer is trained on, where the settings ask for one.
      captions_of: all captions that training rows may have, each once; None: those that the tokenizer is trained on.
      written: texts that a decoder is to write, which it is trained on, too.
      written_of: texts among which are the longest that it may have to write.
      name: of the data, for messages.
      identity: what a run remembers them by.

    Raises TokenizerError for a tokenizer that cannot be read or trained, DataError for captions that are refused.
    """
    codec = view.codec
    tokenizer = open_tokenizer(
        settings.tokenizer, [CaptionTexts([*tokenizer_texts, *written])], pathlib.Path(cache_dir), progress
    )
    captions = CaptionRows(tokenizer, settings.sequence_length, settings.overlong)
    to_write = None
    if settings.written_length is not None:
        to_write = CaptionRows(tokenizer, settings.written_length, settings.overlong, "data.written_length")
        to_write.check_lengths(written_of, name)
    row = ImageTextRows(view, captions, to_write)
    rows = {split: EvaluationPairs(examples, row) for split, examples in evaluation.items()}
    trained = tokenizer_texts if captions_of is None else captions_of
    captions.check_lengths(itertools.chain(trained, *(part.texts for part in rows.values())), name)

    def check(module: Any) -> None:
        check_module(module, codec)
        captions.check(module, settings.tokenizer)

    return OpenData(
        train=TrainingPairs(train, row, seed),
        evaluation=rows,
        tokenizer=tokenizer,
        codecs={"image": codec},
        model_fields={
            "image_size": codec.height, "num_channels": codec.channels,
            "vocab_size": tokenizer.vocab_size, "max_length": settings.sequence_length,
        },
        check=check,
        identity={"dataset": identity, "tokenizer": tokenizer.fingerprint},
        documents=lambda split="heldout": chosen_documents({key: part.texts for key, part in rows.items()}, split),
        num_train=len(train),
    )  # fmt: skip
