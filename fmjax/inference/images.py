"""Images and masks that a generator begins with: arrays, or files."""

import pathlib
from typing import Any

import numpy as np

from fmjax.errors import DataError, InputError


def values_of(codec, value: Any, name: str) -> np.ndarray:
    """float32 of the codec's shape, of a value that it encodes or of a file that it reads.

    Raises InputError, with `name`, for another one.
    """
    try:
        value = codec.read(pathlib.Path(value).expanduser()) if isinstance(value, str | pathlib.Path) else value
        return codec.encode(value)[codec.array]
    except DataError as error:
        raise InputError(f"{name}: {error}") from None


def mask_of(codec, value: Any) -> np.ndarray:
    """bool [height, width, 1], true where a mask is white: an array [height, width], bool or uint8, or a file of any
    size. Raises InputError for another one, or a mask that is white nowhere."""
    height, width = codec.shape[:2]
    if isinstance(value, str | pathlib.Path):
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(pathlib.Path(value).expanduser()) as picture:
                value = np.asarray(picture.convert("L").resize((width, height), Image.Resampling.NEAREST))
        except (OSError, UnidentifiedImageError) as error:
            raise InputError(f"mask: {str(value)!r} cannot be read as an image: {error}") from None
    value = np.asarray(value)
    if value.ndim == 3 and value.shape[-1] == 1:
        value = value[..., 0]
    if value.shape != (height, width):
        raise InputError(f"mask: an array of {height} x {width} was expected, got shape {value.shape}")
    found = value if value.dtype == bool else value > 127
    if not found.any():
        raise InputError("mask: it is white nowhere, so nothing would be made anew; white is what is made")
    return found[..., None]
