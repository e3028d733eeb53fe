"""Images made harder to recognise: noise, blur, a covered square. Each is a pure function of the image and a seed.

They are made of what the model reads, after its codec has scaled a file to the model's size, as ImageNet-C's are
(Hendrycks and Dietterich 2019, https://arxiv.org/abs/1903.12261); noise has the strength of its third severity of five.
"""

import dataclasses

import numpy as np

from fmjax.errors import DataError

NOISE = 0.18
"""Standard deviation, where black is 0 and white 1."""
BLUR, LEAST_BLUR = 1 / 64, 0.7
"""Standard deviation in sides of the image, the mean of both; and in pixels at least."""
COVER = 0.4
"""Sides of the covered rectangle in those of the image."""


def noise(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise, drawn for each pixel and channel, is added; what lies beyond black and white is cut off."""
    return _bytes(image + 255 * NOISE * rng.normal(size=image.shape))


def blur(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each channel is convolved with a Gaussian; beyond its edge an image goes on as its edge."""
    from scipy.ndimage import gaussian_filter

    sigma = max(BLUR * (image.shape[0] + image.shape[1]) / 2, LEAST_BLUR)
    return _bytes(gaussian_filter(image.astype(np.float64), (sigma, sigma, 0), mode="nearest"))


def occlusion(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A rectangle somewhere inside is grey (Zeiler and Fergus 2014, https://arxiv.org/abs/1311.2901, section 4.2)."""
    sizes = [max(1, round(COVER * side)) for side in image.shape[:2]]
    top, left = (int(rng.integers(0, side - size, endpoint=True)) for side, size in zip(image.shape, sizes))
    covered = image.copy()
    covered[top : top + sizes[0], left : left + sizes[1]] = 128
    return covered


CHANGES = {"noise": noise, "blur": blur, "occlusion": occlusion}


@dataclasses.dataclass(frozen=True)
class ImageChange:
    """One of `CHANGES`, by name, with what it draws: for `fmjax.data.codecs.media.Media.change`."""

    name: str
    seed: int

    def __call__(self, image: np.ndarray) -> np.ndarray:
        image = np.asarray(image)
        image = image[..., None] if image.ndim == 2 else image
        if image.dtype != np.uint8 or image.ndim != 3:
            raise DataError(f"{self.name} changes images uint8 [H, W, C], got {image.dtype} {image.shape}")
        return CHANGES[self.name](image, np.random.default_rng(self.seed))


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
