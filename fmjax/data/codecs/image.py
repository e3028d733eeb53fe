"""Images of one size: uint8 [H, W, C] outside, normalised float32 inside."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from fmjax.data.codecs.media import described
from fmjax.errors import ConfigError, DataError
from fmjax.layers.checks import check_choice
from fmjax.small_files import replacing

FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""Pillow's, by their numbers."""


@dataclasses.dataclass(frozen=True)
class ImageCodec:
    """Images uint8 [height, width, channels] as `images` float32 of that shape: (value / 255 - mean) / std.

    Attributes:
      height, width, channels: of every image; 1 channel is grey, 3 are red, green and blue.
      mean, std: of the values between 0 and 1, a number a channel or one for all.
      array: the name of the array.
    """

    suffix: ClassVar[str] = ".png"
    shown: ClassVar[str] = "image"
    scales: ClassVar[bool] = True  # files of another size
    resample = "bilinear"  # no field: runs of this codec have it as it is

    height: int
    width: int
    channels: int = 3
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    array: str = "images"

    def __post_init__(self):
        if self.channels not in (1, 3):
            raise ConfigError(f"image codec: channels = {self.channels} must be 1 or 3")
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (1, self.channels):
                raise ConfigError(f"image codec: {name} = {getattr(self, name)} has not 1 or {self.channels} numbers")

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.height, self.width, self.channels

    def encode(self, value) -> dict[str, np.ndarray]:
        """{array: float32 [H, W, C]} of an image uint8 [H, W, C], or [H, W] where it is grey."""
        image = np.asarray(value)
        if image.ndim == 2:
            image = image[..., None]
        if image.dtype != np.uint8 or image.shape != self.shape:
            raise DataError(f"an image is uint8 of shape {self.shape}, got {described(value)}")
        return {self.array: (image.astype(np.float32) / 255 - self._row(self.mean)) / self._row(self.std)}

    def decode(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """The image uint8 [H, W, C]; what lies beyond black and white is cut off."""
        image = np.asarray(arrays[self.array], np.float32) * self._row(self.std) + self._row(self.mean)
        return np.clip(np.rint(image * 255), 0, 255).astype(np.uint8)

    def read(self, path: pathlib.Path) -> np.ndarray:
        """The image in a file of any format that Pillow reads, scaled to this size; a grey one has equal channels.

        It is turned as its EXIF orientation says, which is how cameras store a picture taken upright.

        Raises DataError for a file that is no image, or whose image this codec cannot hold: one that is too large, or
        of another size where none is scaled, one with more than 8 bits, a transparent one, and one in colour where
        images are grey.
        """
        from PIL import Image, ImageOps, UnidentifiedImageError

        try:
            with Image.open(path) as file:
                if file.mode.startswith(("I", "F")):
                    raise DataError(f"{str(path)!r} has more than 8 bits a pixel (mode {file.mode}); convert it to 8")
                can_be_clear = "A" in file.getbands() or "transparency" in file.info
                if can_be_clear and file.convert("RGBA").getextrema()[3][0] < 255:
                    raise DataError(f"{str(path)!r} is transparent in places; put it on a background")
                upright = ImageOps.exif_transpose(file)
                if not self.scales and upright.size != (self.width, self.height):
                    found, expected = (f"{width}x{height}" for width, height in (upright.size, self.shape[1::-1]))
                    raise DataError(f"{str(path)!r} is {found} pixels, and images here are {expected}; scale it")
                pixels = self._scaled(upright.convert("RGB"))
        except Image.DecompressionBombError as error:
            raise DataError(f"{str(path)!r} is too large an image ({error}); make it smaller") from None
        except (OSError, SyntaxError, UnidentifiedImageError) as error:  # SyntaxError: a PNG whose parts are broken
            raise DataError(f"{str(path)!r} cannot be read as an image: {error}") from None
        if self.channels == 3:
            return pixels
        if (pixels != pixels[..., :1]).any():
            raise DataError(f"{str(path)!r} is in colour, and images here are grey (1 channel); convert it to grey")
        return pixels[..., :1]

    def _scaled(self, image) -> np.ndarray:
        """A Pillow image as uint8 [height, width, its channels]; one of one channel has no axis for it."""
        from PIL import Image

        size = self.width, self.height
        return np.asarray(image if image.size == size else image.resize(size, Image.Resampling[self.resample.upper()]))

    def write(self, value: np.ndarray, path: pathlib.Path) -> None:
        """Writes an image uint8 [H, W, C] as PNG."""
        from PIL import Image

        with replacing(pathlib.Path(path)) as partial:
            Image.fromarray(value[..., 0] if value.shape[-1] == 1 else value).save(partial, format="PNG")

    def write_all(self, values: Sequence[np.ndarray], path: pathlib.Path) -> None:
        """Writes a grid of images, row by row, a pixel apart, as near to a square as their number allows."""
        self.write(grid(values), path)

    def _row(self, numbers: tuple[float, ...]) -> np.ndarray:
        return np.asarray(numbers, np.float32)


@dataclasses.dataclass(frozen=True)
class ResizedImageCodec(ImageCodec):
    """As `ImageCodec`, of images of any size, which are scaled to this one.

    Attributes:
      resample: the filter, in Pillow's words, such as "bilinear".
    """

    resample: str = "bilinear"

    def __post_init__(self):
        super().__post_init__()
        check_choice("image codec: resample", self.resample, FILTERS)

    def encode(self, value) -> dict[str, np.ndarray]:
        """{array: float32 [height, width, C]} of an image uint8 [H, W, C], or [H, W] where it is grey."""
        from PIL import Image

        image = np.asarray(value)
        if image.ndim == 2:
            image = image[..., None]
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != self.channels or not image.size:
            raise DataError(f"an image is uint8 of shape (height, width, {self.channels}), got {described(value)}")
        if image.shape != self.shape:
            image = self._scaled(Image.fromarray(image[..., 0] if self.channels == 1 else image)).reshape(self.shape)
        return super().encode(image)


@dataclasses.dataclass(frozen=True)
class UnscaledImageCodec(ImageCodec):
    """As `ImageCodec`, of files of this size alone: no other is scaled, but refused."""

    scales: ClassVar[bool] = False


def grid(images: Sequence[np.ndarray], columns: int | None = None) -> np.ndarray:
    """Images uint8 [H, W, C] side by side, uint8 [rows (H + 1) - 1, columns (W + 1) - 1, C]; black where there is none.

    columns: None is as near to a square as their number allows.
    """
    height, width, channels = images[0].shape
    columns = columns or math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    whole = np.zeros((rows * (height + 1) - 1, columns * (width + 1) - 1, channels), np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * (height + 1), index % columns * (width + 1)
        whole[top : top + height, left : left + width] = image
    return whole
