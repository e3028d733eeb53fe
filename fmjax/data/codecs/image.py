"""Images of one size: uint8 [H, W, C] outside, normalised float32 inside."""

import dataclasses
import math
import pathlib
import re
import struct
from collections.abc import Mapping, Sequence
from typing import BinaryIO, ClassVar

import numpy as np

from fmjax.data.codecs.media import described
from fmjax.errors import ConfigError, DataError, RunError, is_unreachable
from fmjax.layers.checks import check_choice, check_positive
from fmjax.small_files import replacing

FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""Pillow's, by their numbers."""


@dataclasses.dataclass(frozen=True)
class ImageCodec:
    """Images as `images` float32 [height, width, channels]: (value / 255 - mean) / std.

    An image is given as an array uint8 [H, W, C], as a Pillow image or in a file, and what becomes of it is the same:
    it is scaled to this codec's size, a grey one has equal channels where there are three, and one in colour is refused
    where there is one.

    Attributes:
      height, width, channels: of every array; 1 channel is grey, 3 are red, green and blue.
      mean, std: of the values between 0 and 1, a number a channel or one for all.
      array: the name of the array.
    """

    suffix: ClassVar[str] = ".png"
    shown: ClassVar[str] = "image"
    scales: ClassVar[bool] = True  # images of another size
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
        if not all(number > 0 for number in self.std):
            raise ConfigError(f"image codec: std = {self.std} must be above 0")

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.height, self.width, self.channels

    @property
    def decoding(self) -> list:
        """All that decides which files `pixels` can read: equal for codecs that read the same ones."""
        return [self.channels, None if self.scales else [self.height, self.width]]

    def encode(self, value) -> dict[str, np.ndarray]:
        """{array: float32 [height, width, C]} of an image that `fitted` takes."""
        return self.normalised(self.fitted(value))

    def fitted(self, value) -> np.ndarray:
        """The image as the model sees it, uint8 [height, width, C].

        value: a Pillow image, or uint8 [H, W, C] of 1 or 3 channels, [H, W] where it is grey.

        Raises DataError for another one, and for one that this codec cannot hold (`pixels`).
        """
        if hasattr(value, "getbands"):
            return self.scaled(self._held(value, "a Pillow image"))
        image = np.asarray(value)
        image = image[..., None] if image.ndim == 2 else image
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (1, 3) or not image.size:
            hint = ", numbers from 0 to 255" if image.dtype != np.uint8 else ""
            raise DataError(f"an image is uint8{hint} [height, width, 1 or 3 channels], got {described(value)}")
        self._check_size(image.shape[1::-1], "an image")
        return self.scaled(self._with_channels(image, "an image"))

    def normalised(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """{array: float32 [height, width, C]} of an image that `fitted` or `scaled` made, and that may have been
        changed since."""
        return {self.array: (image.astype(np.float32) / 255 - self._row(self.mean)) / self._row(self.std)}

    def decode(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """The image uint8 [H, W, C]; what lies beyond black and white is cut off."""
        image = np.asarray(arrays[self.array], np.float32) * self._row(self.std) + self._row(self.mean)
        return np.clip(np.rint(image * 255), 0, 255).astype(np.uint8)

    def read(self, path: pathlib.Path) -> np.ndarray:
        """The image in a file, scaled to this size; errors and the rest as of `pixels`."""
        return self.scaled(self.pixels(path, str(path)))

    def pixels(self, file: pathlib.Path | BinaryIO, name: str) -> np.ndarray:
        """The image uint8 [H, W, channels] in a file of any format that Pillow reads, in the file's own size.

        A grey one has equal channels; of an animated one it is the first frame.

        It is turned as its EXIF orientation says, which is how cameras store a picture taken upright.

        name: of the file, for messages.

        Raises DataError for a file that is no image, or whose image this codec cannot hold: one that is too large, or
        of another size where none is scaled, one with more than 8 bits, a transparent one, and one in colour where
        images are grey; RunError where a reason outside the file keeps it from being read.
        """
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(file) as picture:
                return self._held(picture, repr(name))
        except DataError:  # a ValueError too
            raise
        except Image.DecompressionBombError as error:
            raise DataError(f"{name!r} is too large an image ({error}); make it smaller") from None
        except UnidentifiedImageError:
            raise DataError(f"{name!r} cannot be read as an image: it is of no known format") from None
        except (OSError, EOFError, SyntaxError, ValueError, struct.error) as error:  # all but the first: broken parts
            if isinstance(error, OSError) and is_unreachable(error):
                raise RunError(f"{name!r} cannot be read at present: {error.strerror}") from None
            raise DataError(f"{name!r} cannot be read as an image: {error}") from None

    def _held(self, picture, what: str) -> np.ndarray:
        """The pixels of an open Pillow image, which messages call `what`; see `pixels`."""
        from PIL import ImageOps

        if _is_deep(picture):
            raise DataError(f"{what} has more than 8 bits a channel (mode {picture.mode}); convert it to 8")
        can_be_clear = "A" in picture.getbands() or "transparency" in picture.info
        if can_be_clear and picture.convert("RGBA").getextrema()[3][0] < 255:
            raise DataError(f"{what} is transparent in places; put it on a background")
        upright = ImageOps.exif_transpose(picture)
        self._check_size(upright.size, what)
        return self._with_channels(np.asarray(upright.convert("RGB")), what)

    def _check_size(self, size: tuple[int, int], what: str) -> None:
        """Raises DataError for (width, height) that is none of this codec's, where none is scaled."""
        if not self.scales and tuple(size) != (self.width, self.height):
            found, expected = (f"{width}x{height}" for width, height in (size, (self.width, self.height)))
            raise DataError(f"{what} is {found} pixels, and images here are {expected}; scale it")

    def _with_channels(self, pixels: np.ndarray, what: str) -> np.ndarray:
        """An image uint8 [H, W, 1 or 3] with this codec's channels."""
        if pixels.shape[-1] < self.channels:
            return np.repeat(pixels, self.channels, axis=-1)
        if self.channels == 1 and (pixels != pixels[..., :1]).any():
            raise DataError(f"{what} is in colour, and images here are grey (1 channel); convert it to grey")
        return pixels[..., : self.channels]

    def scaled(self, pixels: np.ndarray, box: tuple[int, int, int, int] | None = None) -> np.ndarray:
        """An image uint8 [H, W, channels], or its part within (left, top, right, bottom), in this codec's size."""
        from PIL import Image

        size = self.width, self.height
        if box is None and pixels.shape[1::-1] == size:
            return pixels
        picture = Image.fromarray(pixels[..., 0] if self.channels == 1 else pixels)
        return np.asarray(picture.resize(size, Image.Resampling[self.resample.upper()], box)).reshape(self.shape)

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
    """As `ImageCodec`, by another filter.

    Attributes:
      resample: the filter, in Pillow's words, such as "bilinear".
    """

    resample: str = "bilinear"

    def __post_init__(self):
        super().__post_init__()
        check_choice("image codec: resample", self.resample, FILTERS)


@dataclasses.dataclass(frozen=True)
class CroppedImageCodec(ResizedImageCodec):
    """As `ResizedImageCodec`, keeping proportions: an image is scaled by its shorter side, and its middle is cut out.

    What an image that is then too small lacks is black. `read` gives images in the size that their files have.

    Attributes:
      shortest_edge: what the shorter side is scaled to, in pixels.
    """

    shortest_edge: int = 0

    def __post_init__(self):
        super().__post_init__()
        check_positive(**{"image codec: shortest_edge": self.shortest_edge})

    def read(self, path: pathlib.Path) -> np.ndarray:
        """The image in a file, of its own size; errors and the rest as of `pixels`."""
        return self.pixels(path, str(path))

    def scaled(self, pixels: np.ndarray, box: tuple[int, int, int, int] | None = None) -> np.ndarray:
        """The middle of an image uint8 [H, W, channels], or of its part within (left, top, right, bottom)."""
        from PIL import Image

        left, top, right, bottom = (0, 0, *pixels.shape[1::-1]) if box is None else box
        sides, edge = (right - left, bottom - top), self.shortest_edge
        size = tuple(edge if side == min(sides) else int(edge * side / min(sides)) for side in sides)
        if box is not None or pixels.shape[1::-1] != size:
            picture = Image.fromarray(pixels[..., 0] if self.channels == 1 else pixels)
            picture = picture.resize(size, Image.Resampling[self.resample.upper()], box)
            pixels = np.asarray(picture).reshape(*size[::-1], self.channels)
        for axis, wanted in enumerate((self.height, self.width)):
            missing = max(0, wanted - pixels.shape[axis])
            before = -(-missing // 2)
            pads = [(before, missing - before) if i == axis else (0, 0) for i in range(3)]
            first = (pixels.shape[axis] + missing - wanted) // 2
            pixels = np.pad(pixels, pads).take(range(first, first + wanted), axis=axis)
        return pixels


@dataclasses.dataclass(frozen=True)
class UnscaledImageCodec(ImageCodec):
    """As `ImageCodec`, of images of this size alone: no other is scaled, but refused."""

    scales: ClassVar[bool] = False


def _is_deep(picture) -> bool:
    """Whether an open Pillow image has more than 8 bits a channel. Colours are cut to 8 when they are decoded, which
    only the name of the decoder's mode tells, such as "RGB;16B"."""
    parts = [tile.args for tile in getattr(picture, "tile", ()) if tile.args]
    modes = [args if isinstance(args, str) else args[0] for args in parts]
    return picture.mode.startswith(("I", "F")) or any(re.search(r";16[BLN]S?$", str(mode)) for mode in modes)


def grid(images: Sequence[np.ndarray], columns: int | None = None, background: int = 0) -> np.ndarray:
    """Images uint8 [H, W, C] side by side, uint8 [rows (H + 1) - 1, columns (W + 1) - 1, C].

    Args:
      columns: None is as near to a square as their number allows.
      background: what is between images, and where there is none: 0 is black.
    """
    height, width, channels = images[0].shape
    columns = columns or math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    whole = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1, channels), background, np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * (height + 1), index % columns * (width + 1)
        whole[top : top + height, left : left + width] = image
    return whole
