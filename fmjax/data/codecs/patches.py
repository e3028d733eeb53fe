"""Images of any proportions as rows of patches: uint8 [H, W, C] outside, float32 patches and their grid inside."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from fmjax.data.codecs.image import ResizedImageCodec
from fmjax.layers.checks import check_positive

PRECISION = 1e-5
"""To which the scale of an image is searched, between PRECISION / 10 and LARGEST, as published processors do."""
LARGEST = 100.0


@dataclasses.dataclass(frozen=True)
class PatchCodec:
    """Images as NaFlex's processor prepares them (`Siglip2ImageProcessor` of transformers): scaled, with nearly their
    proportions, to as many whole patches as there may be, and cut into these.

    `encode` gives `images` float32 [max_num_patches, p * p * C], the patches row by row, and zeros behind them;
    `image_ids` int32 [max_num_patches], 1 for patches and 0 behind them; `image_grids` int32 [2], rows and columns.

    Attributes:
      patch_size: side of a patch, p, in pixels.
      max_num_patches: of an image.
      channels, mean, std, resample: as of `ResizedImageCodec`.
    """

    suffix: ClassVar[str] = ".png"
    shown: ClassVar[str] = "image"
    array: ClassVar[str] = "images"

    patch_size: int = 16
    max_num_patches: int = 256
    channels: int = 3
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    resample: str = "bilinear"

    def __post_init__(self):
        sizes = ("patch_size", "max_num_patches")
        check_positive(**{f"image codec: {name}": getattr(self, name) for name in sizes})
        self._of(1, 1)  # checks the rest

    @property
    def shape(self) -> tuple[int, int]:
        return self.max_num_patches, self.patch_size**2 * self.channels

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of patches of an image of so many pixels: those of the largest scale that fits, each side
        rounded up to whole patches."""

        def at(scale: float) -> tuple[int, int]:
            return tuple(max(1, math.ceil(side * scale / self.patch_size)) for side in (height, width))

        low, high = PRECISION / 10, LARGEST
        while high - low >= PRECISION:
            middle = (low + high) / 2
            if math.prod(at(middle)) <= self.max_num_patches:
                low = middle
            else:
                high = middle
        return at(low)

    def encode(self, value) -> dict[str, np.ndarray]:
        """The arrays of an image uint8 [H, W, C], or [H, W] where it is grey. Raises DataError for another value."""
        return self.normalised(self.fitted(value))

    def fitted(self, value) -> np.ndarray:
        """The image as the model sees it, uint8 [rows * p, columns * p, C]."""
        height, width = (np.asarray(value).shape + (1, 1))[:2]
        rows, columns = self.grid(max(height, 1), max(width, 1))
        return self._of(rows, columns).fitted(value)

    def normalised(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """The arrays of an image that `fitted` made."""
        p = self.patch_size
        rows, columns = image.shape[0] // p, image.shape[1] // p
        pixels = self._of(rows, columns).normalised(image)[self.array]
        patches = pixels.reshape(rows, p, columns, p, -1).transpose(0, 2, 1, 3, 4).reshape(rows * columns, -1)
        missing = self.max_num_patches - len(patches)
        return {
            self.array: np.pad(patches, [(0, missing), (0, 0)]),
            "image_ids": (np.arange(self.max_num_patches) < len(patches)).astype(np.int32),
            "image_grids": np.array([rows, columns], np.int32),
        }

    def decode(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """The image uint8 [rows * p, columns * p, C]; what lies beyond black and white is cut off."""
        p, (rows, columns) = self.patch_size, map(int, arrays["image_grids"])
        patches = np.asarray(arrays[self.array])[: rows * columns].reshape(rows, columns, p, p, -1)
        pixels = patches.transpose(0, 2, 1, 3, 4).reshape(rows * p, columns * p, -1)
        return self._of(rows, columns).decode({self.array: pixels})

    def read(self, path: pathlib.Path) -> np.ndarray:
        """The image in a file, of its own size; errors as of `ImageCodec.pixels`."""
        return self._of(1, 1).pixels(path, str(path))

    def write(self, value: np.ndarray, path: pathlib.Path) -> None:
        """Writes an image uint8 [H, W, C] as PNG."""
        self._of(1, 1).write(value, path)

    def write_all(self, values: Sequence[np.ndarray], path: pathlib.Path) -> None:
        """Writes a grid of images, each in a square of the largest side."""
        side = max(max(value.shape[:2]) for value in values)
        padded = [np.pad(v, [(0, side - v.shape[0]), (0, side - v.shape[1]), (0, 0)]) for v in values]
        self._of(1, 1).write_all(padded, path)

    def _of(self, rows: int, columns: int) -> ResizedImageCodec:
        sides = rows * self.patch_size, columns * self.patch_size
        return ResizedImageCodec(*sides, self.channels, self.mean, self.std, resample=self.resample)
