"""Images with captions, from caption files, tars, Parquet or TFDS; or of classes, by templates."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from fmjax.data.base import OpenData
from fmjax.data.captions import OVERLONG
from fmjax.data.image_set import ImageSet
from fmjax.data.image_settings import ImageSettings
from fmjax.data.image_sources.records import Fields
from fmjax.data.image_text import CaptionSettings, open_image_text
from fmjax.data.images import class_names
from fmjax.data.run_tokenizer import check_max_length
from fmjax.errors import ConfigError, DataError
from fmjax.layers.checks import check_choice, check_positive


@dataclasses.dataclass(frozen=True)
class CaptionedImages(ImageSettings):
    """Rows of an image and one of its captions.

    A row has `images` float32 [image_size, image_size, channels], `tokens` and `segment_ids` int32 [sequence_length]
    (see `CaptionRows`), `labels` int32 [] and `loss_weights` float32 []. In training an image is seen once an epoch,
    with one of its captions, which the seed draws; "heldout" has every held-out image with each of its captions.

    `labels` are equal for the captions of one image, and of its equals; with templates they are the class.

    Attributes:
      caption_field: the field of a record with the caption, or a list of them; None is "caption", or another usual
        name.
      label_field: with templates, the field with the class; None is "label", or another usual name.
      image_folder: where the images lie that a caption file names; None is beside it, in a folder "images" there, or in
        the one zip there.
      templates: captions of images that have none but a class, such as ("a photo of a {}.",).
      sequence_length: tokens a caption, T, special ones included.
      tokenizer: "bytes", "train:VOCAB_SIZE" (on the training captions) or another of `TextData`'s, or a path.
      overlong: what becomes of a caption longer than that: "cut", and the log says how many; or "error".
    """

    RESUME_FREE = (*ImageSettings.RESUME_FREE, "image_folder")

    caption_field: str | None = None
    label_field: str | None = None
    image_folder: str | None = None
    templates: tuple[str, ...] = ()
    sequence_length: int = 64
    tokenizer: str = "train:4000"
    overlong: str = "cut"

    def __post_init__(self):
        super().__post_init__()
        check_positive(**{"data.sequence_length": self.sequence_length})
        check_choice("data.overlong", self.overlong, OVERLONG)
        if self.view.mixing:
            raise ConfigError(
                "data.augmentation has mixup or cutmix, which mix classes; captions cannot be mixed: set both to 0"
            )
        for template in self.templates:
            if template.count("{}") != 1:
                raise ConfigError(
                    f"data.templates has {template!r}; a template has one {{}}, such as 'a photo of a {{}}.'"
                )
        if self.label_field is not None and not self.templates:
            raise ConfigError("data.label_field is never read without data.templates")
        if self.templates and (self.caption_field or self.image_folder):
            name = "caption_field" if self.caption_field else "image_folder"
            raise ConfigError(f"data.{name} is never read with data.templates, which make captions of classes")

    @property
    def fields(self) -> Fields:
        return dataclasses.replace(
            super().fields, label=self.label_field, caption=self.caption_field, image_folder=self.image_folder
        )

    @property
    def foreseen(self) -> dict[str, Any]:
        return super().foreseen | {"max_length": self.sequence_length}

    def check_foreseen(self, module) -> None:
        super().check_foreseen(module)
        check_max_length(module, self.sequence_length)

    def open(
        self, *, seed: int, cache_dir: pathlib.Path, workdir: pathlib.Path | None = None, progress: bool = False
    ) -> OpenData:
        """The images, shuffled anew each epoch by `seed`. Each is read once before, so that a bad one is found now.

        Raises as `ImageSettings.read_sets` and `open_image_text`, and DataError for images without captions, and
        without classes for the templates.
        """
        found = self.read_sets(cache_dir, progress, captions=not self.templates)
        classes = class_names([*found.train.labels, *found.heldout.labels])
        train = CaptionedSet(self, found.train, classes)
        heldout = {"heldout": CaptionedSet(self, found.heldout, classes)} if len(found.heldout) else {}
        texts = [caption for index in range(len(train)) for caption in train.captions(index)]
        opened = open_image_text(
            train, heldout, self.view, CaptionSettings(self.sequence_length, self.tokenizer, self.overlong), texts,
            name=self.source, identity=f"captioned_images:{found.content}", seed=seed, cache_dir=cache_dir,
            progress=progress,
        )  # fmt: skip
        return dataclasses.replace(opened, trained_on=found.train.keys)


class CaptionedSet:
    """An `ImageSet` as `Captioned` examples."""

    def __init__(self, data: CaptionedImages, images: ImageSet, classes: tuple[str, ...]):
        self._codec, self._images = data.codec, images
        if data.templates:
            if not images.labels:
                raise DataError(f"{images.where}: its images have no classes, which data.templates make captions of")
            self._captions = [tuple(t.replace("{}", label) for t in data.templates) for label in images.labels]
            self._labels = [classes.index(label) for label in images.labels]
            return
        if not images.captions:
            raise DataError(
                f"{images.where}: its images have no captions; name their field with data.caption_field, put a "
                "captions.csv into the folder, or make captions of classes with data.templates"
            )
        first: dict[str, int] = {}
        self._captions = images.captions
        self._labels = [first.setdefault(key, index) for index, key in enumerate(images.keys)]

    def __len__(self) -> int:
        return len(self._images)

    def image(self, index: int) -> np.ndarray:
        return self._images.pixels(index, self._codec)

    def captions(self, index: int) -> Sequence[str]:
        return self._captions[index]

    def label(self, index: int) -> int:
        return self._labels[index]
