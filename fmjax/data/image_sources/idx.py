"""IDX files, as MNIST and Fashion-MNIST come: an array of images in one, their labels in another."""

import gzip
import pathlib
import re
from collections.abc import Mapping

import numpy as np

from fmjax.data.image_set import ImageSet
from fmjax.data.image_sources.spans import key_of
from fmjax.errors import DataError

_IMAGES = re.compile(r"(.*)images[-.]idx3[-.]ubyte(\.gz)?")


def read_idx(path: pathlib.Path) -> np.ndarray:
    """The array uint8 in an IDX file, perhaps compressed. Raises DataError for a file that is none, or torn."""
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError) as error:
        raise DataError(f"{str(path)!r} cannot be read: {error}") from None
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise DataError(f"{str(path)!r} is no IDX file of bytes: it begins with {content[:4].hex()}, expected 000008")
    start = 4 + 4 * content[3]
    shape = tuple(np.frombuffer(content[4:start], ">u4").tolist())
    if len(content) - start != np.prod(shape):
        raise DataError(
            f"{str(path)!r} says that its shape is {shape}, but has {len(content) - start} numbers: it is torn"
        )
    return np.frombuffer(content[start:], np.uint8).reshape(shape)


def is_images(path: pathlib.Path) -> bool:
    """Whether a file is one of images, by its name."""
    return _IMAGES.fullmatch(path.name) is not None


def idx_sets(files: list[pathlib.Path]) -> Mapping[str, ImageSet]:
    """The images of IDX files by split: those named train... to train on, t10k... or test... held out; a single file
    is "train", whatever its name.

    Raises DataError for a file without one of labels beside it, for other numbers of labels than of images, and for
    two files of one split.
    """
    found: dict[str, pathlib.Path] = {}
    for path in files:
        split = "train" if path.name.startswith("train") or len(files) == 1 else "heldout"
        if split in found:
            raise DataError(f"{str(found[split])!r} and {str(path)!r} are one split, {split}; choose one of them")
        found[split] = path
    if "train" not in found:
        raise DataError(f"no {str(files[0].parent / 'train-images-idx3-ubyte')!r} to train on; name the file to use")
    return {split: _idx_set(path) for split, path in found.items()}


def _idx_set(path: pathlib.Path) -> ImageSet:
    pixels = read_idx(path)
    names = [path.name.replace("images", "labels").replace("idx3", "idx1"), path.name.replace("images", "labels")]
    beside = [path.with_name(name) for name in names for name in (name, f"{name}.gz", name.removesuffix(".gz"))]
    labels_file = next((other for other in beside if other.is_file()), None)
    if labels_file is None:
        raise DataError(f"{str(path)!r} has no file of labels beside it; expected {str(beside[0])!r}")
    labels = read_idx(labels_file)
    if pixels.ndim != 3 or labels.shape != pixels.shape[:1]:
        raise DataError(
            f"{str(path)!r} has images of shape {pixels.shape}, and {str(labels_file)!r} labels of shape "
            f"{labels.shape}: they do not belong together"
        )
    return ImageSet(
        where=str(path),
        names=[str(number) for number in range(len(pixels))],
        keys=[key_of(image.tobytes()) for image in pixels],
        content=lambda index: pixels[index][..., None],
        labels=[str(label) for label in labels],
    )
