"""The real images that made ones are judged by: those that nothing was trained on, and those to train on."""

import itertools
from collections.abc import Sequence

import numpy as np

from fmjax.data.codecs.media import Media
from fmjax.errors import DataError, InputError
from fmjax.registry import nearest
from fmjax.tasks.images import DigitsData, FashionMNISTData, FolderData, MNISTData, MNISTHalfData
from fmjax.tasks.protocol import TaskContext

TRAINING_ROWS = 10_000
"""Rows that `own` takes for the training images of a run, whose rows do not end: of data that have more, or do not
tell, the first; equal ones count once."""


class _Folder(FolderData):
    name = "images"


class OwnImages:
    """`own[:PART]`: the images of the model's own run, by the part that is evaluated there.

    Attributes:
      left_out: what a card says where `training` is not all that the run trained on; "" where it is.
    """

    def __init__(self, part: str = ""):
        self.part, self.left_out = part, ""

    def documents(self, context: TaskContext) -> list[dict]:
        opened = self._opened(context)
        part = self.part or next(iter(opened.evaluation), "")
        if part not in opened.evaluation:
            raise DataError(f"the model's run held out no images {part!r}; it has {', '.join(opened.evaluation)}")
        rows = opened.evaluation[part]
        return [_document(opened, rows[i], f"{part}/{i}") for i in range(len(rows))]

    def training(self, context: TaskContext) -> list[dict]:
        opened = self._opened(context)
        if opened.num_train is None or opened.num_train > TRAINING_ROWS:
            self.left_out = f"the first {TRAINING_ROWS} of {opened.num_train or 'more, or not: the data do not tell'}"
        found = {}
        for index in range(TRAINING_ROWS):
            document = _document(opened, opened.train[index], f"train/{index}")
            found.setdefault(document["image"].fingerprint, document)
        return list(found.values())

    def _opened(self, context):
        opened = context.open_data()
        codec = opened.codecs.get("image")
        if codec is None or codec.array not in opened.train[0]:
            raise DataError("the data of the model's run hold no images; name others, such as digits")
        return opened


def _document(opened, row, name: str) -> dict:
    """{"image", "label", "prompt"} of a row: its class, or its caption, is what an image is asked for by."""
    image = Media("image", opened.codecs["image"].decode(row), name)
    label = opened.codecs.get("label")
    if label is not None and label.array in row:
        number = np.asarray(row[label.array])
        number = number.argmax(-1) if number.dtype.kind == "f" else number
        told = str(label.decode({label.array: number}))
        return {"image": image, "label": told, "prompt": told}
    if opened.tokenizer is not None and "tokens" in row:
        special = {getattr(opened.tokenizer, f"{name}_id", None) for name in ("bos", "eos", "cls", "sep", "pad")}
        tokens = [int(t) for t, inside in zip(row["tokens"], row["segment_ids"]) if inside and int(t) not in special]
        return {"image": image, "label": None, "prompt": opened.tokenizer.decode(tokens)}
    return {"image": image, "label": None, "prompt": None}


SETS = {
    "digits": DigitsData,
    "mnist": MNISTData,
    "mnist_half": MNISTHalfData,
    "fashion_mnist": FashionMNISTData,
    "images": _Folder,
    "own": OwnImages,
}


def reference(words: Sequence[str]):
    """Data by name, `images:FOLDER` and `own[:PART]` with a word more: `documents` and `training` of a `TaskContext`.

    Raises InputError for data that are not known.
    """
    name, *more = words or ("",)
    if name not in SETS:
        raise InputError(
            f"it needs data to judge images by, got {name!r}{nearest(name, SETS)} Known: {', '.join(SETS)} "
            "(images:FOLDER, own:PART)"
        )
    limits = {"images": (1, 1), "own": (0, 1)}.get(name, (0, 0))
    if not limits[0] <= len(more) <= limits[1]:
        raise InputError(f"data {':'.join(words)!r}: expected {name}{':FOLDER' if limits[0] else ''}")
    return SETS[name](*more)


def fitted(codec, documents: Sequence[dict]) -> np.ndarray:
    """Images as the model makes them, uint8 [N, H, W, C]. Raises DataError for one that its codec cannot hold."""
    return np.stack([_fitted(codec, document["image"]) for document in documents])


def _fitted(codec, image: Media) -> np.ndarray:
    codec = getattr(codec, "image", codec)  # of pixels' colours: that of the images themselves
    return codec.fitted(codec.read(image.value) if hasattr(image.value, "open") else image.value)


def stacked(groups: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Images of documents one after the other, uint8 [N, H, W, C]."""
    return np.stack(list(itertools.chain.from_iterable(groups)))
