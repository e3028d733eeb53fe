"""Images in files, read when a step needs them: rows are a pure function of (config, seed, index)."""

import dataclasses
import logging
import pathlib
from collections.abc import Mapping
from typing import Annotated, ClassVar

from fmjax.data.augmentation import AUGMENTATIONS
from fmjax.data.base import OpenData
from fmjax.data.codecs.image import ImageCodec
from fmjax.data.codecs.label import LabelCodec
from fmjax.data.image_files import labelled_files, split_folders
from fmjax.data.image_rows import EvaluationImages, TrainingImages, View, check_module
from fmjax.data.image_set import BAD_IMAGES, ImageSet, readable
from fmjax.data.prepared import content_hash, fingerprint
from fmjax.data.splits import is_heldout
from fmjax.errors import ConfigError, DataError
from fmjax.layers.checks import check_choice

log = logging.getLogger("fmjax")


@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """Rows of one image each, with its class.

    A row has `images` float32 [image_size, image_size, channels], `labels` int32 [] (soft ones, float32 [num_classes],
    where the augmentation mixes images) and `loss_weights` float32 []. Classes are numbered by their names' order.

    Attributes:
      source: a folder with a subfolder of images for each class, or with a `metadata.jsonl` that names files and
        labels, {"file_name": "a.png", "label": "cat"}; or one of such folders train and validation (or test) alone.
      image_size: side that images are scaled to, in pixels.
      channels: 1 for grey images, 3 for colour.
      max_shift: training images are moved by up to this many pixels along each axis, at random for each row; the gap is
        black.
      heldout_fraction: the share of images held out, by a hash of their files, where the source has no folder for that;
        None is 0.1.
      augmentation: random changes of training images, such as {"name": "standard", "min_area": 0.3, "flip": 0.5}; None
        is none.
      bad_images: what becomes of images that cannot be read: "refuse" stops before training; "skip" leaves them out,
        and the log says how many and which.
      mean, std: statistics that values from 0 to 1 are normalised with, one number a channel or one for all; None is
        0.5.
    """

    RESUME_FREE: ClassVar[tuple[str, ...]] = ("source",)  # compared by content, through `OpenData.identity`

    source: str = ""
    image_size: int = 0
    channels: int = 3
    max_shift: int = 0
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
        if not 0 <= self.max_shift < self.image_size:
            raise ConfigError(f"data.max_shift = {self.max_shift} must be from 0 to {self.image_size - 1} pixels")
        if self.heldout_fraction is not None and not 0 <= self.heldout_fraction < 1:
            raise ConfigError(f"data.heldout_fraction = {self.heldout_fraction} must be at least 0 and below 1")
        check_choice("data.bad_images", self.bad_images, BAD_IMAGES)
        self.codec  # checks channels and statistics

    @property
    def codec(self) -> ImageCodec:
        mean, std = ((0.5,) if numbers is None else numbers for numbers in (self.mean, self.std))
        return ImageCodec(self.image_size, self.image_size, self.channels, mean, std)

    def open(
        self, *, seed: int, cache_dir: pathlib.Path, workdir: pathlib.Path | None = None, progress: bool = False
    ) -> OpenData:
        """The images, shuffled anew each epoch by `seed`. Each is read once before, so that a bad one is found now.

        Raises:
          DataError: a folder or file that is not there or cannot be read.
          ConfigError: a held-out fraction of a source that has a folder for that.
        """
        sets = {
            split: readable(one, self.codec, self.bad_images, cache_dir, progress)
            for split, one in self._sets(cache_dir).items()
        }
        train, heldout = self._divided(sets)
        names = tuple(sorted(set(train.labels)))
        for index, label in enumerate(heldout.labels):
            if label not in names:
                remedy = "lower data.heldout_fraction, or make folders train and validation"
                if "heldout" in sets:
                    remedy = f"put some into {train.where!r}"
                raise DataError(f"{heldout.place(index)!r}: no image to train on has its class {label!r}; {remedy}")
        codec, labels = self.codec, LabelCodec(len(names), names)
        view = View(codec, self.augmentation, self.max_shift)
        return OpenData(
            train=TrainingImages(train, labels, view, seed),
            evaluation={"heldout": EvaluationImages(heldout, labels, view)} if len(heldout) else {},
            codecs={"image": codec, "label": labels},
            model_fields={
                "image_size": self.image_size, "num_channels": self.channels, "num_classes": len(names)
            },
            check=lambda module: check_module(module, codec, len(names)),
            identity={"dataset": f"images:{fingerprint({split: one.fingerprint for split, one in sets.items()})}"},
        )  # fmt: skip

    def _sets(self, cache_dir: pathlib.Path) -> dict[str, ImageSet]:
        folders = split_folders(pathlib.Path(self.source).expanduser())
        found = {}
        for split, folder in folders.items():
            files = labelled_files(folder)
            paths = [file.path for file in files]
            keys = [content_hash(path, cache_dir) for path in paths]
            found[split] = ImageSet(
                str(folder), [file.name for file in files], keys, paths.__getitem__, [file.label for file in files]
            )
        return found

    def _divided(self, sets: Mapping[str, ImageSet]) -> tuple[ImageSet, ImageSet]:
        """Images to train on, and those held out: equal ones are on one side."""
        whole = sets["train"]
        if "heldout" in sets:
            if self.heldout_fraction is not None:
                raise ConfigError(f"data.heldout_fraction is never read: {self.source} has a folder of held-out images")
            return whole, sets["heldout"]
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
