"""The handwritten digits of scikit-learn with captions by templates: image and text together, with no download."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Sequence

import numpy as np

from fmjax.data.base import OpenData
from fmjax.data.captions import OVERLONG
from fmjax.data.digits import CODEC, read_digits
from fmjax.data.image_rows import View
from fmjax.data.image_text import CaptionSettings, open_image_text
from fmjax.data.shuffle import Draws
from fmjax.errors import ConfigError
from fmjax.layers.checks import check_choice, check_positive

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = (
    "the digit {}",
    "a handwritten {}",
    "a photo of the number {}",
    "this is a {}",
    "a photo of a handwritten {}",
)
"""The last ones are held out."""


@dataclasses.dataclass(frozen=True)
class DigitCaptions:
    """Rows of a digit and what it is called.

    A row has `images` float32 [8, 8, 1] in [-1, 1], `tokens` and `segment_ids` int32 [sequence_length] (see
    `CaptionRows`), `labels` int32 [], the digit, and `loss_weights` float32 []. Rows of one digit are positives of one
    another. Evaluated are the images of `fmjax.data.digits`'s test set, as "test" in words that are trained on, as
    "templates" in those held out.

    Attributes:
      max_shift: training images are moved by up to this many pixels along each axis, at random for each row.
      heldout_templates: how many of the five ways to word a caption, the last ones, are never trained on.
      sequence_length: tokens a caption, T, special ones included.
      tokenizer: "bytes", "train:VOCAB_SIZE" (on the captions) or another of `TextData`'s, or a path.
      overlong: what becomes of a caption longer than that: "cut", or "error".
    """

    max_shift: int = 1
    heldout_templates: int = 1
    sequence_length: int = 32
    tokenizer: str = "bytes"
    overlong: str = "error"

    def __post_init__(self):
        check_positive(**{"data.sequence_length": self.sequence_length})
        check_choice("data.overlong", self.overlong, OVERLONG)
        if not 0 <= self.max_shift < CODEC.height:
            raise ConfigError(f"data.max_shift = {self.max_shift} must be from 0 to {CODEC.height - 1} pixels")
        if not 0 <= self.heldout_templates < len(TEMPLATES):
            raise ConfigError(
                f"data.heldout_templates = {self.heldout_templates} must be from 0 to {len(TEMPLATES) - 1}"
            )

    def open(
        self, *, seed: int, cache_dir: pathlib.Path, workdir: pathlib.Path | None = None, progress: bool = False
    ) -> OpenData:
        """The digits, shuffled anew each epoch by `seed`.

        Raises TokenizerError for a tokenizer that cannot be read or trained, DataError for captions too long.
        """
        images, labels, test = read_digits()
        pixels = np.stack([CODEC.decode({CODEC.array: image}) for image in images])
        known, unknown = np.split(np.array(TEMPLATES), [len(TEMPLATES) - self.heldout_templates])
        sets = {"test": CaptionedDigits(pixels[test], labels[test], known, one=True)}
        if len(unknown):
            sets["templates"] = CaptionedDigits(pixels[test], labels[test], unknown, one=True)
        content = hashlib.blake2b(images.tobytes() + labels.tobytes(), digest_size=16).hexdigest()
        return open_image_text(
            CaptionedDigits(pixels[~test], labels[~test], known), sets, View(CODEC, max_shift=self.max_shift),
            CaptionSettings(self.sequence_length, self.tokenizer, self.overlong),
            [template.format(word) for template in known for word in WORDS],
            name="the digits", identity=f"digit_captions:{content}", seed=seed, cache_dir=cache_dir, progress=progress,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class CaptionedDigits:
    """Digits as `Captioned` examples.

    Attributes:
      pixels: uint8 [N, 8, 8, 1].
      labels: int [N].
      templates: that captions are made by.
      one: whether an example has one caption, drawn for it, or one by each template.
    """

    pixels: np.ndarray
    labels: np.ndarray
    templates: Sequence[str]
    one: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> np.ndarray:
        return self.pixels[index]

    def captions(self, index: int) -> Sequence[str]:
        chosen = [Draws("digit_captions", index).one_of(self.templates)] if self.one else self.templates
        return [str(template).format(WORDS[self.labels[index]]) for template in chosen]

    def label(self, index: int) -> int:
        return int(self.labels[index])
