"""The augmentation that most image models are trained with, each part by its fields."""

import dataclasses
from collections.abc import Callable

import numpy as np

from fmjax.data.augmentation.geometry import Flip, RandomResizedCrop
from fmjax.data.augmentation.mixing import Mixing
from fmjax.data.augmentation.rand_augment import MAX_MAGNITUDE, RandAugment
from fmjax.data.shuffle import Draws
from fmjax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Standard:
    """Crops, flips, RandAugment, mixup and CutMix, in this order; the default does nothing.

    Attributes:
      min_area: a random part of the image, from this share of its area on, is scaled to the model's size
        (`RandomResizedCrop`); 1 is the whole image.
      max_ratio: of that part's sides.
      flip: the probability with which left and right change places.
      rand_augment: how many changes of `RandAugment` an image has.
      magnitude: of those, from 0 to 10; None is 9. Not read without rand_augment.
      mixup: alpha of mixup; 0 is none. It needs data with classes, and an objective that takes soft labels.
      cutmix: alpha of CutMix; 0 is none. Likewise. With both, each row has one of them.
    """

    min_area: float = 1.0
    max_ratio: float = 4 / 3
    flip: float = 0.0
    rand_augment: int = 0
    magnitude: float | None = None
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self):
        limits = {"min_area": (0.001, 1), "flip": (0, 1), "max_ratio": (1, 100), "rand_augment": (0, 100)}
        limits |= {"magnitude": (0, MAX_MAGNITUDE), "mixup": (0, 100), "cutmix": (0, 100)}
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ConfigError(f"data.augmentation.{name} = {value} must be from {low} to {high}")
        if self.magnitude is not None and not self.rand_augment:
            raise ConfigError("data.augmentation.magnitude is never read without data.augmentation.rand_augment")

    @property
    def mixing(self) -> Mixing | None:
        return Mixing(self.mixup, self.cutmix) if self.mixup or self.cutmix else None

    def __call__(self, image: np.ndarray, scale: Callable[..., np.ndarray], draws: Draws) -> np.ndarray:
        """An image uint8 [H, W, C] scaled, as a whole or a part of it, and changed."""
        crop = RandomResizedCrop(self.min_area, 1.0, self.max_ratio) if self.min_area < 1 else None
        image = scale(image, crop.box(*image.shape[:2], draws)) if crop else scale(image)
        if self.flip:
            image = Flip(self.flip)(image, draws)
        if self.rand_augment:
            magnitude = 9.0 if self.magnitude is None else self.magnitude
            image = RandAugment(self.rand_augment, magnitude)(image, draws)
        return image
