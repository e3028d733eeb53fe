"""Images of any sizes on one sheet, each with a line under it."""

import pathlib
from collections.abc import Sequence

import numpy as np

from fmjax.data.codecs.image import ImageCodec, grid
from fmjax.small_files import replacing

SIDE, LINE = 160, 16
"""Pixels: of the square that an image fits in, and of the height of the line under it."""
WHITE = 255
_COLOUR = ImageCodec(SIDE, SIDE, 3)  # reads files as those of models are read


def contact_sheet(
    pictures: Sequence[pathlib.Path | np.ndarray], captions: Sequence[str], columns: int | None = None
) -> np.ndarray:
    """uint8 [H, W, 3], images side by side, row by row, in squares of `SIDE` pixels with captions.

    Larger images are made smaller; small ones are enlarged by whole numbers, so that their pixels stay squares.

    Args:
      pictures: files, or uint8 [H, W, C].
      captions: one for each; a long one loses its beginning, and signs that are not ASCII become "?".
      columns: None is as near to a square as the number of images allows.

    Raises DataError for a file that is no image.
    """
    return grid([_cell(one, caption) for one, caption in zip(pictures, captions, strict=True)], columns, WHITE)


def write_sheet(sheet: np.ndarray, path: pathlib.Path) -> None:
    """Writes a sheet as PNG, whole or not at all."""
    from PIL import Image

    with replacing(path) as partial:
        Image.fromarray(sheet).save(partial, format="PNG")


def _opened(picture: pathlib.Path | np.ndarray):
    """A Pillow image in colour. Raises DataError for a file that is none."""
    from PIL import Image

    if isinstance(picture, np.ndarray):
        return Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).convert("RGB")
    return Image.fromarray(_COLOUR.pixels(picture, str(picture)))


def _cell(one: pathlib.Path | np.ndarray, caption: str) -> np.ndarray:
    from PIL import Image, ImageDraw

    picture = _opened(one)
    if (times := SIDE // max(picture.size)) > 1:
        picture = picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
    else:
        picture.thumbnail((SIDE, SIDE))
    cell = Image.new("RGB", (SIDE, SIDE + LINE), "white")
    cell.paste(picture, ((SIDE - picture.width) // 2, (SIDE - picture.height) // 2))
    draw = ImageDraw.Draw(cell)
    caption = caption.encode("ascii", "replace").decode()  # what every font of Pillow's has
    shown = caption
    while draw.textlength(shown) > SIDE - 4 and len(shown) > 4:
        caption = caption[1:]
        shown = f"...{caption}"
    draw.text((2, SIDE + 2), shown, fill="black")
    return np.asarray(cell)
