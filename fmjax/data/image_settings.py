"""What all data of images in files have in common: their source, size and statistics, and what is held out."""

import dataclasses
import logging
import pathlib
from typing import Annotated, Any, ClassVar

from fmjax.data.augmentation import AUGMENTATIONS
from fmjax.data.codecs.image import ImageCodec
from fmjax.data.image_rows import View, check_module
from fmjax.data.image_set import BAD_IMAGES, ImageSet, readable
from fmjax.data.image_sources.opening import open_image_sets
from fmjax.data.image_sources.records import Fields
from fmjax.data.prepared import fingerprint
from fmjax.data.splits import is_heldout
from fmjax.errors import ConfigError, DataError
from fmjax.layers.checks import check_choice

log = logging.getLogger("fmjax")


@dataclasses.dataclass(frozen=True)
class ImageSettings:
    """Images and what becomes of them before a model sees them.

    Attributes:
      source: a folder with a subfolder of images for each class, or with a `metadata.jsonl` that names files and
        labels, {"file_name": "a.png", "label": "cat"}; or one of such folders train and validation (or test) alone.
        Or a file, folder or glob of .tar (WebDataset), .parquet (Hugging Face) or IDX files (MNIST). Or
        tfds:NAME[/CONFIG][:VERSION][:SPLIT].
      image_size: side that images are scaled to, in pixels.
      channels: 1 for grey images, 3 for colour.
      image_field: the field of a record with the image, or its file's name, in Parquet, TFDS and caption files; None is
        "image", or another usual name.
      tfds_data_dir: folder of prepared TFDS datasets; None is a folder in the cache.
      heldout_fraction: the share of images held out, by a hash of their files, where the source has none of its own;
        None is 0.1.
      augmentation: random changes of training images, such as {"name": "standard", "min_area": 0.3, "flip": 0.5}; None
        is none.
      bad_images: what becomes of images that cannot be read: "refuse" stops before training; "skip" leaves them out,
        and the log says how many and which.
      mean, std: statistics that values from 0 to 1 are normalised with, one number a channel or one for all; None is
        0.5.
    """

    # Compared by content, through `OpenData.identity`.
    RESUME_FREE: ClassVar[tuple[str, ...]] = ("source", "tfds_data_dir")

    source: str = ""
    image_size: int = 0
    channels: int = 3
    image_field: str | None = None
    tfds_data_dir: str | None = None
    heldout_fraction: float | None = None
    augmentation: Annotated[dict, AUGMENTATIONS] | None = None
    bad_images: str = "refuse"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self):
        if not self.source:
            raise ConfigError("data.source is empty: give the folder of the images")
        if self.image_size < 1:
            raise ConfigError(
                f"data.image_size = {self.image_size} must be at least 1: the side of the images in pixels"
            )
        if self.heldout_fraction is not None and not 0 <= self.heldout_fraction < 1:
            raise ConfigError(f"data.heldout_fraction = {self.heldout_fraction} must be at least 0 and below 1")
        check_choice("data.bad_images", self.bad_images, BAD_IMAGES)
        self.codec  # checks channels and statistics

    @property
    def codec(self) -> ImageCodec:
        mean, std = ((0.5,) if numbers is None else numbers for numbers in (self.mean, self.std))
        return ImageCodec(self.image_size, self.image_size, self.channels, mean, std)

    @property
    def view(self) -> View:
        return View(self.codec, self.augmentation)

    @property
    def foreseen(self) -> dict[str, Any]:
        """See `fmjax.data.base.DataPlugin`."""
        return {"image_size": self.image_size, "num_channels": self.channels}

    def check_foreseen(self, module) -> None:
        check_module(module, self.codec)

    @property
    def fields(self) -> Fields:
        """What fields of records are called."""
        return Fields(image=self.image_field, tfds_data_dir=self.tfds_data_dir)

    def read_sets(self, cache_dir: pathlib.Path, progress: bool, captions: bool = False) -> "OpenSets":
        """The images to train on and those held out, without any that cannot be read.

        captions: whether they are looked for.

        Raises:
          DataError: a source that is not there, cannot be read, or has images that cannot be and are not to be skipped.
          ConfigError: a held-out fraction of a source that has held-out images of its own.
        """
        cache_dir = pathlib.Path(cache_dir)
        found = open_image_sets(self.source, self.fields, cache_dir, captions)
        sets = {split: readable(one, self.codec, self.bad_images, cache_dir, progress) for split, one in found.items()}
        content = fingerprint({split: one.fingerprint for split, one in sets.items()})
        if "heldout" in sets:
            if self.heldout_fraction is not None:
                raise ConfigError(f"data.heldout_fraction is never read: {self.source} has held-out images of its own")
            return OpenSets(sets["train"], sets["heldout"], f"put some into {sets['train'].where!r}", content)
        train, heldout = self._divided(sets["train"])
        remedy = "lower data.heldout_fraction, or make folders train and validation"
        return OpenSets(train, heldout, remedy, content)

    def _divided(self, whole: ImageSet) -> tuple[ImageSet, ImageSet]:
        """Images to train on, and those held out by their content: equal ones are on one side."""
        fraction = 0.1 if self.heldout_fraction is None else self.heldout_fraction
        sides: tuple[list, list] = ([], [])
        for index, key in enumerate(whole.keys):
            sides[is_heldout(key, fraction)].append(index)
        if not sides[0]:
            raise DataError(
                f"data.source {self.source!r}: all {len(whole)} images are held out; lower heldout_fraction"
            )
        if fraction and not sides[1]:
            log.warning(
                "data.source %r: none of its %d images is held out at data.heldout_fraction = %s, so nothing is "
                "evaluated; raise it, or make folders train and validation",
                self.source, len(whole), fraction,
            )  # fmt: skip
        return whole.subset(sides[0]), whole.subset(sides[1])


@dataclasses.dataclass(frozen=True)
class OpenSets:
    """Images to train on and to evaluate on.

    Attributes:
      train, heldout: the images; none may be held out.
      remedy: what one does where a class is only held out.
      content: a fingerprint of all.
    """

    train: ImageSet
    heldout: ImageSet
    remedy: str
    content: str
