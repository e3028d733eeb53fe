"""Images of no data set: those that a model's own run held out, and those of which nobody says what they are."""

import math
import pathlib
from collections.abc import Sequence

import numpy as np

from fmjax.cache_folder import cache_dir
from fmjax.data.codecs.image import ImageCodec
from fmjax.data.codecs.media import Media
from fmjax.data.image_files import LabelledFile, image_files
from fmjax.data.image_set import ImageSet, readable
from fmjax.data.prepared import content_hash
from fmjax.errors import DataError
from fmjax.tasks.image_classification import Classified
from fmjax.tasks.images import read_files

_ANY = ImageCodec(1, 1, 3)
"""Reads what models of colours read."""


class HeldOutRows(Sequence):
    """Documents of rows of images with classes, made when they are asked for.

    Args:
      rows: with the arrays of `codecs`, "image" and "label"; labels may be soft.
      name: of the rows, for logs.
    """

    def __init__(self, rows: Sequence, codecs, name: str):
        self._rows, self._codecs, self._name = rows, codecs, name

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict:
        row, label = self._rows[index], self._codecs["label"]
        number = np.asarray(row[label.array])
        number = number.argmax(-1) if number.dtype.kind == "f" else number
        image = Media("image", self._codecs["image"].decode(row), f"{self._name}/{index}")
        return {"image": image, "label": str(label.decode({label.array: number}))}


class HeldOutImages(Classified):
    """`images_heldout`: what the model's run evaluated on, of whatever source; `images_heldout:PART` is one of several
    parts, such as "combinations" of the world of shapes."""

    name, version = "images_heldout", "1"
    description = f"images_heldout[:PART], the held-out images of the model's own run, {Classified.how}"
    needs = "the data the model was trained on"

    def __init__(self, part: str = ""):
        self.part, self.name = part, f"{self.name}:{part}" if part else self.name

    def documents(self, context):
        opened = context.open_data()
        if missing := {"image", "label"} - set(opened.codecs):
            raise DataError(
                f"the data of the model's run have no codec {min(missing)!r}: their rows are no images with classes; "
                "the run's log has what was evaluated on them (eval/...)"
            )
        part = self.part or next(iter(opened.evaluation), "")
        if part not in opened.evaluation:
            known = ", ".join(opened.evaluation) or "nothing"
            raise DataError(f"the model's run held out no images {part!r}; it held out {known}".replace(" ''", ""))
        return HeldOutRows(opened.evaluation[part], opened.codecs, part)


class UnlabelledImages(Classified):
    """`images_unlabelled:FOLDER`: images of which nobody says what they are, for `--predictions`; with `:skip` behind
    it, without those that cannot be read."""

    name, version = "images_unlabelled", "1"
    metrics = ("confidence",)
    description = "images_unlabelled:FOLDER[:skip], images at any depth, for --predictions: mean confidence"
    needs = "FOLDER, looked for in --data_dir where that is given; with :skip, without files that cannot be read"

    def __init__(self, path: str):
        self.name, folder = f"images_unlabelled:{path}", path.removesuffix(":skip")
        self.path, self.bad_images = folder, "refuse" if folder == path else "skip"

    def documents(self, context):
        folder = (context.data_dir or pathlib.Path()) / pathlib.Path(self.path).expanduser()
        files, cache = image_files(folder), cache_dir()
        paths = list(files.values())
        images = ImageSet(str(folder), list(files), [content_hash(path, cache) for path in paths], paths.__getitem__)
        remedy = f"Mend or remove them, or leave them out: {self.name}:skip"
        kept = readable(images, _ANY, self.bad_images, cache, progress=False, remedy=remedy)
        return read_files(context, [LabelledFile(name, files[name], "") for name in kept.names], self.path)

    def statistics(self, document, answers):
        return {"confidence": float(answers[0][0][1])}

    def reduce_documents(self, statistics):
        return {"confidence": math.fsum(statistics["confidence"]) / math.fsum(statistics["documents"])}
