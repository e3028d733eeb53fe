"""Rows of images with classes: changed at random for training, as they are for evaluation."""

import dataclasses
import sys
from collections.abc import Sequence

import numpy as np

from fmjax.data.augmentation.base import Augmentation
from fmjax.data.base import Row
from fmjax.data.codecs.image import ImageCodec
from fmjax.data.codecs.label import LabelCodec
from fmjax.data.image_set import ImageSet
from fmjax.data.shuffle import Draws, shuffled_indices
from fmjax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class View:
    """What a model is shown of an image.

    Attributes:
      codec: scales and normalises.
      augmentation: changes it before it is normalised; None does not.
      max_shift: it is moved by up to this many pixels along each axis; the gap is black.
    """

    codec: ImageCodec
    augmentation: Augmentation | None = None
    max_shift: int = 0

    def __call__(self, pixels: np.ndarray, draws: Draws) -> dict[str, np.ndarray]:
        """The codec's array of an image uint8 [H, W, C], changed as `draws` say."""
        if self.augmentation is None:
            pixels = self.codec.scaled(pixels)
        else:
            pixels = self.augmentation(pixels, self.codec.scaled, draws)
        if self.max_shift:
            down, right = (draws.below(2 * self.max_shift + 1) - self.max_shift for _ in range(2))
            pixels = shifted(pixels, down, right, background=0)
        return self.codec.normalised(pixels)

    def unchanged(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """The array of an image to evaluate on."""
        return self.codec.normalised(self.codec.scaled(pixels))

    @property
    def draws(self) -> bool:
        """Whether an image is shown in another form each time."""
        return self.augmentation is not None or self.max_shift > 0

    @property
    def mixing(self):
        return None if self.augmentation is None else self.augmentation.mixing


class TrainingImages:
    """Endless rows: every epoch has each image once, in an order that `seed` draws. Row i is a pure function of
    (seed, i)."""

    def __init__(self, images: ImageSet, classes: LabelCodec, view: View, seed: object):
        self._images, self._classes, self._view, self._seed = images, classes, view, seed
        self._order = shuffled_indices(len(images), [seed, "images"])

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> Row:
        draws = Draws("image", self._seed, int(index))
        arrays, label = self._example(int(self._order[index]), draws)
        if mixing := self._view.mixing:
            others, other = self._example(draws.below(len(self._images)), draws)
            name, labels = self._view.codec.array, (one_hot(self._classes, label), one_hot(self._classes, other))
            image, label = mixing(arrays[name], others[name], labels, draws)
            arrays = arrays | {name: image}
        return arrays | {"labels": label, "loss_weights": np.ones((), np.float32)}

    def _example(self, number: int, draws: Draws) -> tuple[dict[str, np.ndarray], np.ndarray]:
        pixels = self._images.pixels(number, self._view.codec)
        return self._view(pixels, draws), self._classes.encode(self._images.labels[number])["labels"]


class EvaluationImages(Sequence):
    """Finite rows, in order. Labels are soft where those of training are, one of them 1."""

    def __init__(self, images: ImageSet, classes: LabelCodec, view: View):
        self._images, self._classes, self._view = images, classes, view

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Row:
        index = range(len(self))[index]
        label = self._classes.encode(self._images.labels[index])["labels"]
        arrays = self._view.unchanged(self._images.pixels(index, self._view.codec))
        label = one_hot(self._classes, label) if self._view.mixing else label
        return arrays | {"labels": label, "loss_weights": np.ones((), np.float32)}


def one_hot(classes: LabelCodec, label) -> np.ndarray:
    """float32 [num_classes], 1 for the label."""
    return np.eye(classes.num_classes, dtype=np.float32)[int(label)]


def shifted(image: np.ndarray, down: int, right: int, background) -> np.ndarray:
    """`image` [H, W, C] moved by whole pixels, the gap filled with `background`, a number or [C]."""
    height, width, _ = image.shape
    moved = np.empty_like(image)
    moved[:] = background
    moved[max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)] = image[
        max(-down, 0) : height + min(-down, 0), max(-right, 0) : width + min(-right, 0)
    ]
    return moved


def check_module(module, codec: ImageCodec, num_classes: int = 0) -> None:
    """Raises ConfigError for a module of other images, or fewer classes than there are."""
    for field, expected in (("image_size", codec.height), ("num_channels", codec.channels)):
        found = getattr(module, field, expected)
        if found != expected:
            raise ConfigError(f"model.{field} = {found}, but the images have {expected}")
    if num_classes and getattr(module, "num_classes", num_classes) < num_classes:
        raise ConfigError(f"model.num_classes = {module.num_classes}, but there are {num_classes} classes")
