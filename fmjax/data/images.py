"""Images in files, read when a step needs them: rows are a pure function of (config, seed, index)."""

import dataclasses
import logging
import pathlib
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from tqdm import tqdm

from fmjax.data.base import OpenData
from fmjax.data.codecs.base import fingerprint as codec_fingerprint
from fmjax.data.codecs.image import ImageCodec
from fmjax.data.codecs.label import LabelCodec
from fmjax.data.image_files import LabelledFile, labelled_files, split_folders
from fmjax.data.prepared import build_once, content_hash, fingerprint
from fmjax.data.splits import is_heldout
from fmjax.errors import ConfigError, DataError

log = logging.getLogger("fmjax")

READING = "oriented"  # how files become pixels; another word for another way: what was made of the same files differs


@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """Rows of one image each, with its class.

    A row has `images` float32 [image_size, image_size, channels], in [-1, 1], `labels` int32 [] and `loss_weights`
    float32 []. Classes are numbered in the order of their names.

    Attributes:
      source: a folder with a subfolder of images for each class, or with a `metadata.jsonl` that names files and
        labels, {"file_name": "a.png", "label": "cat"}; or one of such folders train and validation (or test) alone.
      image_size: side that images are scaled to, in pixels.
      channels: 1 for grey images, 3 for colour.
      max_shift: training images are moved by up to this many pixels along each axis, at random for each row; the gap is
        black.
      heldout_fraction: the share of images held out, by a hash of their files, where the source has no folder for that;
        None is 0.1.
    """

    RESUME_FREE: ClassVar[tuple[str, ...]] = ("source",)  # compared by content, through `OpenData.identity`

    source: str = ""
    image_size: int = 0
    channels: int = 3
    max_shift: int = 0
    heldout_fraction: float | None = None

    def __post_init__(self):
        if not self.source:
            raise ConfigError("data.source is empty: give the folder of the images")
        if self.image_size < 1:
            raise ConfigError(
                f"data.image_size = {self.image_size} must be at least 1: the side of the images in pixels"
            )
        if not 0 <= self.max_shift < self.image_size:
            raise ConfigError(f"data.max_shift = {self.max_shift} must be from 0 to {self.image_size - 1} pixels")
        if self.heldout_fraction is not None and not 0 <= self.heldout_fraction < 1:
            raise ConfigError(f"data.heldout_fraction = {self.heldout_fraction} must be at least 0 and below 1")
        self.codec  # checks the channels

    @property
    def codec(self) -> ImageCodec:
        return ImageCodec(self.image_size, self.image_size, self.channels)

    def open(
        self, *, seed: int, cache_dir: pathlib.Path, workdir: pathlib.Path | None = None, progress: bool = False
    ) -> OpenData:
        """The images, shuffled anew each epoch by `seed`. Each is read once before, so that a bad file is an error now.

        Raises:
          DataError: a folder or file that is not there or cannot be read.
          ConfigError: a held-out fraction of a source that has a folder for that.
        """
        import grain

        folders = split_folders(pathlib.Path(self.source).expanduser())
        files = {split: labelled_files(folder) for split, folder in folders.items()}
        hashes = {split: [content_hash(one.path, cache_dir) for one in found] for split, found in files.items()}
        found = {s: [(one.name, one.label, h) for one, h in zip(files[s], hashes[s])] for s in files}
        content = fingerprint(READING, found)
        train, heldout = self._divided(files, hashes)
        names = tuple(sorted({one.label for one in train}))
        for one in heldout:
            if one.label not in names:
                remedy = "lower data.heldout_fraction, or make folders train and validation"
                if "heldout" in files:
                    remedy = f"put some into {str(folders['train'])!r}"
                raise DataError(f"{str(one.path)!r}: no image to train on has its class {one.label!r}; {remedy}")
        _check_all([*train, *heldout], self.codec, cache_dir / "images" / content, progress)
        codec, labels = self.codec, LabelCodec(len(names), names)
        background = codec.encode(np.zeros(codec.shape, np.uint8))[codec.array][0, 0]

        def row(file: LabelledFile) -> dict[str, np.ndarray]:
            weight = {"loss_weights": np.ones((), np.float32)}
            return codec.encode(codec.read(file.path)) | labels.encode(file.label) | weight

        def moved(index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
            example = row(train[index])
            down, right = rng.integers(-self.max_shift, self.max_shift, size=2, endpoint=True)
            return example | {codec.array: shifted(example[codec.array], down, right, background)}

        return OpenData(
            train=grain.MapDataset.range(len(train)).seed(seed).shuffle().repeat().random_map(moved),
            evaluation={"heldout": grain.MapDataset.source(heldout).map(row)} if heldout else {},
            codecs={"image": codec, "label": labels},
            model_fields={
                "image_size": self.image_size, "num_channels": self.channels, "num_classes": len(names)
            },
            check=lambda module: check_module(module, codec, len(names)),
            identity={"dataset": f"images:{content}"},
        )  # fmt: skip

    def _divided(self, files, hashes) -> tuple[list[LabelledFile], list[LabelledFile]]:
        """Files to train on, and those held out: equal ones are on one side."""
        if "heldout" in files:
            if self.heldout_fraction is not None:
                raise ConfigError(f"data.heldout_fraction is never read: {self.source} has a folder of held-out images")
            return files["train"], files["heldout"]
        fraction = 0.1 if self.heldout_fraction is None else self.heldout_fraction
        sides: tuple[list, list] = ([], [])
        for file, content in zip(files["train"], hashes["train"]):
            sides[is_heldout(content, fraction)].append(file)
        if not sides[0]:
            raise DataError(
                f"data.source {self.source!r}: all {len(sides[1])} images are held out; lower heldout_fraction"
            )
        if fraction and not sides[1]:
            log.warning(
                "data.source %r: none of its %d images is held out at data.heldout_fraction = %s, so nothing is "
                "evaluated; raise it, or make folders train and validation",
                self.source, len(sides[0]), fraction,
            )  # fmt: skip
        return sides


def _check_all(files: Sequence[LabelledFile], codec: ImageCodec, kept: pathlib.Path, progress: bool) -> None:
    """Reads every file once, whatever is left of them in the cache being that they could be."""

    def check(folder: pathlib.Path) -> None:
        for file in tqdm(files, desc="checking images", disable=not progress, unit=" images", dynamic_ncols=True):
            codec.read(file.path)

    build_once(kept / codec_fingerprint(codec), check)


def shifted(image: np.ndarray, down: int, right: int, background) -> np.ndarray:
    """`image` [H, W, C] moved by whole pixels, the gap filled with `background`, a number or [C]."""
    height, width, _ = image.shape
    moved = np.empty_like(image)
    moved[:] = background
    moved[max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)] = image[
        max(-down, 0) : height + min(-down, 0), max(-right, 0) : width + min(-right, 0)
    ]
    return moved


def check_module(module, codec: ImageCodec, num_classes: int = 0) -> None:
    """Raises ConfigError for a module of other images, or fewer classes than there are."""
    for field, expected in (("image_size", codec.height), ("num_channels", codec.channels)):
        found = getattr(module, field, expected)
        if found != expected:
            raise ConfigError(f"model.{field} = {found}, but the images have {expected}")
    if num_classes and getattr(module, "num_classes", num_classes) < num_classes:
        raise ConfigError(f"model.num_classes = {module.num_classes}, but there are {num_classes} classes")
