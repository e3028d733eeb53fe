"""RandAugment (Cubuk et al. 2019): some of fourteen changes, each as strong as the others."""

import dataclasses

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from fmjax.data.augmentation.geometry import picture_of, pixels_of
from fmjax.data.shuffle import Draws

MAX_MAGNITUDE = 10.0


def _moved(image: Image.Image, *rows: float) -> Image.Image:
    """Each pixel (x, y) taken from (a x + b y + c, d x + e y + f) of the image, black where that is outside."""
    return image.transform(image.size, Image.Transform.AFFINE, rows, Image.Resampling.NEAREST)


# Each takes an image and a strength from -1 to 1; those after `_UNSIGNED` one from 0 to 1.
_SIGNED = {
    "shear_x": lambda image, s: _moved(image, 1, 0.3 * s, 0, 0, 1, 0),
    "shear_y": lambda image, s: _moved(image, 1, 0, 0, 0.3 * s, 1, 0),
    "translate_x": lambda image, s: _moved(image, 1, 0, 0.45 * s * image.width, 0, 1, 0),
    "translate_y": lambda image, s: _moved(image, 1, 0, 0, 0, 1, 0.45 * s * image.height),
    "rotate": lambda image, s: image.rotate(30 * s, Image.Resampling.NEAREST),
    "brightness": lambda image, s: ImageEnhance.Brightness(image).enhance(1 + 0.9 * s),
    "colour": lambda image, s: ImageEnhance.Color(image).enhance(1 + 0.9 * s),
    "contrast": lambda image, s: ImageEnhance.Contrast(image).enhance(1 + 0.9 * s),
    "sharpness": lambda image, s: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * s),
}
_UNSIGNED = {
    "identity": lambda image, s: image,
    "posterize": lambda image, s: ImageOps.posterize(image, 8 - round(4 * s)),
    "solarize": lambda image, s: ImageOps.solarize(image, round(256 * (1 - s))),
    "autocontrast": lambda image, s: ImageOps.autocontrast(image),
    "equalize": lambda image, s: ImageOps.equalize(image),
}
OPERATIONS = tuple(_SIGNED | _UNSIGNED)


def apply(operation: str, image: np.ndarray, strength: float) -> np.ndarray:
    """One change of an image uint8 [H, W, C]; C is 1 or 3.

    strength: from -1 to 1 for those that have two directions (shear, translation, rotation, brightness, colour,
      contrast, sharpness), from 0 to 1 for the others. 1 is a shear by 0.3, a translation by 0.45 of the side, 30
      degrees, a factor of 1.9 (0.1 for -1), 4 of 8 bits, and all solarised.
    """
    return pixels_of((_SIGNED | _UNSIGNED)[operation](picture_of(image), strength))


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """`num_ops` changes one after another, drawn with replacement; directions are drawn too.

    Attributes:
      num_ops: N of the paper.
      magnitude: M of the paper, from 0 to 10.
    """

    num_ops: int = 2
    magnitude: float = 9.0

    def __call__(self, image: np.ndarray, draws: Draws) -> np.ndarray:
        for _ in range(self.num_ops):
            operation, sign = draws.one_of(OPERATIONS), draws.one_of((-1, 1))
            strength = self.magnitude / MAX_MAGNITUDE
            image = apply(operation, image, strength * sign if operation in _SIGNED else strength)
        return image
