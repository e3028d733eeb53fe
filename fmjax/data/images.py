"""Images with classes, read when a step needs them: rows are a pure function of (config, seed, index)."""

import collections
import dataclasses
import pathlib
from collections.abc import Collection

from fmjax.data.base import OpenData
from fmjax.data.codecs.label import LabelCodec
from fmjax.data.image_rows import EvaluationImages, TrainingImages, View, check_module
from fmjax.data.image_set import ImageSet
from fmjax.data.image_settings import ImageSettings
from fmjax.data.image_sources.records import Fields
from fmjax.data.prepared import fingerprint
from fmjax.errors import ConfigError, DataError


@dataclasses.dataclass(frozen=True)
class ImageData(ImageSettings):
    """Rows of one image each, with its class.

    A row has `images` float32 [image_size, image_size, channels], `labels` int32 [] (soft ones, float32 [num_classes],
    where the augmentation mixes images) and `loss_weights` float32 []. Classes are numbered in the order of their
    names, or of their numbers where they have only those.

    Attributes:
      label_field: the field of a record with the class, in Parquet, TFDS and the JSON files of tars; None is "label",
        or another usual name.
      class_names: names of the classes 0, 1, ... of files that tell numbers alone, as IDX files do; None keeps the
        numbers.
      max_shift: training images are moved by up to this many pixels along each axis, at random for each row; the gap is
        black.
      train_images: how many images to train on, to see what few labels do: as many of each class as of any other, as
        far as there are, drawn by the run's seed. Those of a smaller number are among those of a larger one. None is
        all.
    """

    label_field: str | None = None
    class_names: tuple[str, ...] | None = None
    max_shift: int = 0
    train_images: int | None = None

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.max_shift < self.image_size:
            raise ConfigError(f"data.max_shift = {self.max_shift} must be from 0 to {self.image_size - 1} pixels")
        if self.class_names is not None:
            object.__setattr__(self, "class_names", tuple(self.class_names))
            if wrong := [name for name in self.class_names if not name or name.isdecimal()]:
                raise ConfigError(f"data.class_names has {wrong[0]!r}; a name must not be empty, nor a number")
            if len(set(self.class_names)) != len(self.class_names):
                raise ConfigError(f"data.class_names = {self.class_names} has a name twice")
        if self.train_images is not None and self.train_images < 1:
            raise ConfigError(f"data.train_images = {self.train_images} must be at least 1, or None for all")

    @property
    def view(self) -> View:
        return dataclasses.replace(super().view, max_shift=self.max_shift)

    @property
    def fields(self) -> Fields:
        return dataclasses.replace(super().fields, label=self.label_field)

    def open(
        self, *, seed: int, cache_dir: pathlib.Path, workdir: pathlib.Path | None = None, progress: bool = False
    ) -> OpenData:
        """The images, shuffled anew each epoch by `seed`. Each is read once before, so that a bad one is found now.

        Raises as `ImageSettings.read_sets`, and DataError for images without classes, a class only held out, or fewer
        images to train on than `train_images`.
        """
        found = self.read_sets(cache_dir, progress)
        train, heldout = found.train, found.heldout
        if not train.labels:
            raise DataError(f"{train.where}: its images have no classes; name their field with data.label_field")
        names = class_names(train.labels)
        for index, label in enumerate(heldout.labels):
            if label not in names:
                raise DataError(
                    f"{heldout.place(index)!r}: no image to train on has its class {label!r}; {found.remedy}"
                )
        if self.train_images is not None:
            train = few_of_each(train, self.train_images, seed)
        codec, labels, view = self.codec, LabelCodec(len(names), self._named(names)), self.view
        return OpenData(
            train=TrainingImages(train, labels, view, seed),
            evaluation={"heldout": EvaluationImages(heldout, labels, view)} if len(heldout) else {},
            codecs={"image": codec, "label": labels},
            model_fields=self.foreseen | {"num_classes": len(names)},
            check=lambda module: check_module(module, codec, len(names)),
            identity={"dataset": f"images:{found.content}"},
            trained_on=train.keys,
            num_train=len(train),
            drawn_anew=view.draws,
        )  # fmt: skip

    def _named(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """The classes' names, those given where there are. Raises ConfigError where these do not fit."""
        if self.class_names is None:
            return names
        expected = tuple(map(str, range(len(self.class_names))))
        if names != expected:
            raise ConfigError(
                f"data.class_names has {len(self.class_names)} names, for classes 0 to {len(self.class_names) - 1}; "
                f"the images' classes are {', '.join(names[:12])}{' ...' if len(names) > 12 else ''}"
            )
        return self.class_names


def few_of_each(images: ImageSet, count: int, seed: object) -> ImageSet:
    """`count` images that `seed` draws class by class in turn; which of a class come first depends on their content.

    Raises DataError where there are fewer.
    """
    if count > len(images):
        raise DataError(f"data.train_images = {count}, but {images.where!r} has {len(images)} images to train on")
    places = [fingerprint("few of each", seed, key) for key in images.keys]
    drawn = sorted(range(len(images)), key=places.__getitem__)
    ranks, seen = [0] * len(images), collections.Counter()
    for index in drawn:
        ranks[index] = seen[images.labels[index]]
        seen[images.labels[index]] += 1
    return images.subset(sorted(drawn, key=ranks.__getitem__)[:count])


def class_names(labels: Collection[str]) -> tuple[str, ...]:
    """The classes of labels, in the order that they are numbered in."""
    names = set(labels)
    are_numbers = all(name.isdecimal() for name in names)
    return tuple(sorted(names, key=lambda name: (int(name), name) if are_numbers else name))
