"""Changes of where a pixel lies: random crops that are scaled, and mirrored images."""

import dataclasses
import math

import numpy as np
from PIL import Image

from fmjax.data.shuffle import Draws

_TRIES = 10


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop:
    """A part of the image, to be scaled (Szegedy et al. 2014, section 6), as torchvision's class of the name draws it.

    Attributes:
      min_area, max_area: of the part, as shares of the image's.
      max_ratio: of the part's width to its height, and of its height to its width; the logarithm is uniform.
    """

    min_area: float = 0.08
    max_area: float = 1.0
    max_ratio: float = 4 / 3

    def box(self, height: int, width: int, draws: Draws) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) of the part. After ten that do not fit: the largest in the middle that does."""
        limit = math.log(self.max_ratio)
        for _ in range(_TRIES):
            area = height * width * draws.uniform(self.min_area, self.max_area)
            ratio = math.exp(draws.uniform(-limit, limit))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                left, top = draws.below(width - w + 1), draws.below(height - h + 1)
                return left, top, left + w, top + h
        w, h = min(width, round(height * self.max_ratio)), min(height, round(width * self.max_ratio))
        left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h


@dataclasses.dataclass(frozen=True)
class Flip:
    """The image mirrored, left for right, with a probability."""

    probability: float = 0.5

    def __call__(self, image: np.ndarray, draws: Draws) -> np.ndarray:
        return image[:, ::-1] if draws.uniform() < self.probability else image


def picture_of(image: np.ndarray) -> Image.Image:
    """Pixels uint8 [H, W, C] as Pillow has them; C is 1 or 3."""
    return Image.fromarray(np.ascontiguousarray(image[..., 0] if image.shape[-1] == 1 else image))


def pixels_of(picture: Image.Image) -> np.ndarray:
    """A Pillow image as uint8 [H, W, C]."""
    pixels = np.asarray(picture)
    return pixels[..., None] if pixels.ndim == 2 else pixels
