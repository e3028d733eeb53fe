"""Images as sequences of colours: each pixel is the nearest colour of a palette."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from fmjax.data.codecs.image import ImageCodec, ResizedImageCodec
from fmjax.data.codecs.media import described
from fmjax.errors import ConfigError, DataError


@dataclasses.dataclass(frozen=True)
class PixelCodec:
    """Images uint8 [height, width, channels] as `targets` int32 [height * width], each pixel's number in the palette,
    row by row, and `tokens`: the same moved on by one, after the number that begins an image, `len(palette)`.

    Attributes:
      height, width, channels: of every image; 1 channel is grey, 3 are red, green and blue.
      palette: the colours, `channels` numbers each, between 0 (black) and 1.
      resample: the filter by which images of another size are scaled, in Pillow's words; None is "bilinear".
    """

    suffix: ClassVar[str] = ".png"
    shown: ClassVar[str] = "image"
    array: ClassVar[str] = "tokens"

    height: int
    width: int
    channels: int = 3
    palette: tuple[tuple[float, ...], ...] = ()
    resample: str | None = None

    def __post_init__(self):
        if len(self.palette) < 2 or any(len(colour) != self.channels for colour in self.palette):
            raise ConfigError(
                f"pixel codec: a palette is of two colours or more, {self.channels} numbers each; got "
                f"{len(self.palette)}: {str(self.palette)[:80]}"
            )
        self.image  # checks the channels

    @property
    def image(self) -> ImageCodec:
        """Of the images themselves."""
        sizes = self.height, self.width, self.channels
        return ImageCodec(*sizes) if self.resample is None else ResizedImageCodec(*sizes, resample=self.resample)

    @property
    def shape(self) -> tuple[int]:
        return (self.height * self.width,)

    @property
    def start(self) -> int:
        """The number that begins an image."""
        return len(self.palette)

    def encode(self, value) -> dict[str, np.ndarray]:
        """{"tokens", "targets"} of an image uint8 [H, W, C], or [H, W] where it is grey."""
        return self.normalised(self.fitted(value))

    def fitted(self, value) -> np.ndarray:
        """The image, as of `ImageCodec`."""
        return self.image.fitted(value)

    def normalised(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """{"tokens", "targets"} of an image that `fitted` made."""
        pixels = self.image.normalised(image)["images"].reshape(-1, self.channels) / 2 + 0.5
        targets = nearest_colours(pixels, np.asarray(self.palette))
        return {"tokens": np.concatenate([np.array([self.start], np.int32), targets[:-1]]), "targets": targets}

    def decode(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """The image uint8 [H, W, C] of `targets`, in the colours of the palette.

        Raises DataError for numbers that are not in it, or not as many as pixels.
        """
        targets = np.asarray(arrays["targets"])
        if targets.shape != self.shape or targets.min() < 0 or targets.max() >= len(self.palette):
            raise DataError(
                f"an image of {self.height} x {self.width} pixels is {self.shape[0]} numbers from 0 to "
                f"{len(self.palette) - 1}, got {described(targets)} from {targets.min()} to {targets.max()}"
            )
        colours = np.clip(np.rint(np.asarray(self.palette) * 255), 0, 255).astype(np.uint8)
        return colours[targets].reshape(self.image.shape)

    def read(self, path: pathlib.Path) -> np.ndarray:
        """The image in a file, as `ImageCodec.read`."""
        return self.image.read(path)

    def write(self, value: np.ndarray, path: pathlib.Path) -> None:
        """Writes an image uint8 [H, W, C] as PNG."""
        self.image.write(value, path)

    def write_all(self, values: Sequence[np.ndarray], path: pathlib.Path) -> None:
        """Writes a grid of images, as `ImageCodec.write_all`."""
        self.image.write_all(values, path)


def nearest_colours(pixels: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """int32 [N]: which row of `palette` [K, C] is nearest to each row of `pixels` [N, C]; of equally near the first."""
    return ((pixels[:, None, :] - palette) ** 2).sum(-1).argmin(-1).astype(np.int32)


def grey_levels(count: int) -> tuple[tuple[float, ...], ...]:
    """A palette of `count` greys from black to white, equally far apart."""
    return tuple((i / (count - 1),) for i in range(count))
