"""Labelled images: what tasks of classification read. How they are answered is in `image_classification`."""

import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from fmjax.data.codecs.media import Media
from fmjax.data.image_files import LabelledFile, labelled_files, split_folders
from fmjax.data.image_sources.idx import read_idx
from fmjax.data.splits import is_heldout
from fmjax.errors import DataError
from fmjax.small_files import read_json
from fmjax.tasks.composed import Composed
from fmjax.tasks.protocol import TaskContext
from fmjax.tasks.trained_on import without_trained_on

HELDOUT = 0.1
"""The share of a folder's images that is held out where it has no splits, as training holds it out."""
TOLD = "zero_shot.json"
"""Where a folder says how its classes are told in texts."""


class LabelledImages(Composed):
    """Data whose documents are {"image": `Media`, "label": the name of its class}.

    Attributes:
      words: what a class is called in a text, by its label; one that is missing is called by its label.
      templates: texts with one {} for those words, whose vectors together say what a class is.
    """

    words: dict[str, str] = {}
    templates: tuple[str, ...] = ("a photo of a {}.", "a photo of the {}.", "a picture of a {}.", "an image of a {}.")

    def training(self, context: TaskContext) -> list[dict]:
        """Training documents, none of them among those of the evaluation."""
        raise NotImplementedError

    def labels(self, context: TaskContext) -> list[str]:
        """The names of all classes."""
        return sorted({document["label"] for document in self.documents(context)})

    def told(self, context: TaskContext) -> tuple[Mapping[str, str], Sequence[str]]:
        """`words` and `templates`."""
        return self.words, self.templates


DIGIT_WORDS = dict(zip("0123456789", "zero one two three four five six seven eight nine".split()))
DIGIT_TEMPLATES = ("the digit {}", "a handwritten {}", "a picture of the number {}", "an image of a {}")


class DigitsData(LabelledImages):
    """The digits of scikit-learn: those that no training on them sees, and the others."""

    dataset, about = "digits", "handwritten digits that training holds out, 8x8 pixels"
    needs = "scikit-learn's digits (CC BY 4.0), which are installed with it"
    words, templates = DIGIT_WORDS, DIGIT_TEMPLATES

    def documents(self, context):
        return self._read(of_test=True)

    def training(self, context):
        return self._read(of_test=False)

    def _read(self, of_test: bool) -> list[dict]:
        from fmjax.data.digits import CODEC, read_digits

        images, labels, test = read_digits()
        return [
            {"image": Media("image", CODEC.decode({CODEC.array: images[i]}), f"digits/{i}"), "label": str(labels[i])}
            for i in np.flatnonzero(test == of_test)
        ]


class DigitsSubsets(DigitsData):
    """`NAME` and `NAME_test` are the images that no training on them sees, `NAME_train` the others, unmoved."""

    subsets = ("test", "train")

    def __init__(self, subset: str = ""):
        self.name, self.subset = f"{self.name}_{subset}" if subset else self.name, subset

    def documents(self, context):
        return self.training(context) if self.subset == "train" else super().documents(context)


class IdxData(LabelledImages):
    """Data in IDX files, as MNIST's.

    Attributes:
      folder: in `--data_dir`.
      train_stems: what the training files' names may begin with.
    """

    folder: str
    train_stems: tuple[str, ...] = ("train",)
    names: tuple[str, ...] = tuple("0123456789")

    def documents(self, context):
        return self._read(context, "t10k")

    def training(self, context):
        return self._read(context, *self.train_stems)

    def _read(self, context, *stems: str) -> list[dict]:
        images, labels = (
            read_idx(context.file(self.folder, *(f"{s}-{kind}-ubyte{end}" for s in stems for end in (".gz", ""))))
            for kind in ("images-idx3", "labels-idx1")
        )
        return [
            {"image": Media("image", image[..., None], f"{self.dataset}/{i}"), "label": self.names[label]}
            for i, (image, label) in enumerate(zip(images, labels, strict=True))
        ]


class MNISTData(IdxData):
    """MNIST (LeCun et al. 1998): 10,000 test images, 60,000 to train on."""

    dataset, about, folder = "mnist", "MNIST's test images, 28x28 pixels", "vision_mnist"
    needs = "vision_mnist/{t10k,train}-{images-idx3,labels-idx1}-ubyte(.gz), licence not stated"
    words, templates = DIGIT_WORDS, DIGIT_TEMPLATES


class MNISTHalfData(MNISTData):
    """Where MNIST's training set is missing: half of its test set, and the other half for training.

    Images are halved in the order of their digests, so that the order of the file does not matter.
    """

    dataset, about = "mnist_half", "half of MNIST's test images"
    needs = "vision_mnist/t10k-{images-idx3,labels-idx1}-ubyte(.gz), licence not stated"

    def documents(self, context):
        return self._sorted(context)[::2]

    def training(self, context):
        return self._sorted(context)[1::2]

    def _sorted(self, context) -> list[dict]:
        return sorted(self._read(context, "t10k"), key=self.key)


class FashionMNISTData(IdxData):
    """Fashion-MNIST (Xiao et al. 2017, https://arxiv.org/abs/1708.07747)."""

    dataset, about, folder = "fashion_mnist", "Fashion-MNIST's test images, 28x28 pixels", "vision_fashion_mnist"
    needs = "vision_fashion_mnist/{t10k,train}-{images-idx3,labels-idx1}-ubyte(.gz) (MIT); train10k: a part of train"
    train_stems = ("train", "train10k")
    names = (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    )  # fmt: skip
    words = {name: name.lower() for name in names} | {"T-shirt/top": "T-shirt", "Trouser": "pair of trousers"}


class FolderData(LabelledImages):
    """A folder of image files: its splits where its subfolders are some, or else, by a hash, a tenth and the rest.

    Its `zero_shot.json`, {"words": {LABEL: WORDS}, "templates": ["a photo of a {}."]}, says how classes are told in
    texts; both are optional.

    Args:
      path: of the folder, looked for in `--data_dir` where that is given.
    """

    dataset, about, argument = (
        "images",
        "images in FOLDER's class subfolders, or named by its metadata.jsonl",
        "FOLDER:COUNT",
    )
    needs = "FOLDER, looked for in --data_dir where that is given; its train and test, where it has those"

    def __init__(self, path: str, *arguments):
        self.path = path.rstrip("/") or path
        self.name = f"{self.name}:{self.path}"
        self._known: dict[pathlib.Path, tuple[list[dict], dict]] = {}
        super().__init__(*arguments)

    def documents(self, context):
        return self._new(context, self._read(context)[0])

    def training(self, context):
        return self._read(context)[1]

    def labels(self, context):
        return sorted({document["label"] for part in self._read(context) for document in part})

    def told(self, context):
        path = self.folder(context) / TOLD
        if not path.is_file():
            return self.words, self.templates
        given = read_json(path, error=DataError)
        words, templates = given.get("words", {}), given.get("templates", self.templates)
        if (
            set(given) - {"words", "templates"}
            or not isinstance(words, dict)
            or not isinstance(templates, list | tuple)
        ):
            raise DataError(
                f'{path} holds {str(given)[:80]}; expected {{"words": {{LABEL: WORDS}}, "templates": ["a {{}}"]}}'
            )
        if unknown := sorted(set(words) - set(self.labels(context))):
            raise DataError(f"{path} has words for {unknown[0]!r}, which is no class of the folder")
        return words, templates

    def folder(self, context) -> pathlib.Path:
        return (context.data_dir or pathlib.Path()) / pathlib.Path(self.path).expanduser()

    def _new(self, context, documents: list[dict]) -> list[dict]:
        """The documents whose images the model's run did not train on."""
        return without_trained_on(context, self.folder(context), documents, lambda one: one["image"], self.path)

    def _read(self, context) -> tuple[list[dict], list[dict]]:
        """Documents to evaluate, and to train on."""
        folders = split_folders(self.folder(context))
        if len(folders) == 2:
            return tuple(self._documents(context, folders[split], split) for split in ("heldout", "train"))
        documents = self._documents(context, folders["train"])
        # The hash that the data of a training on this folder goes by.
        sides = [is_heldout(_digest(document["image"].value), HELDOUT) for document in documents]
        heldout, train = ([d for d, held in zip(documents, sides) if held == side] for side in (True, False))
        if not heldout or not train:
            raise DataError(
                f"folder {str(self.folder(context))!r} has {len(documents)} images, of which a tenth is to be held out "
                f"and {len(heldout)} are; make subfolders train and test"
            )
        return heldout, train

    def _documents(self, context, folder: pathlib.Path, split: str = "") -> list[dict]:
        """Documents of a folder's files, which are read once."""
        name = f"{self.path}/{split}".rstrip("/")
        if folder not in self._known:
            documents = read_files(context, labelled_files(folder), name)
            self._known[folder] = documents, context.read[name]
        documents, context.read[name] = self._known[folder]
        return documents


def read_files(context: TaskContext, files: list[LabelledFile], name: str) -> list[dict]:
    """Documents of files, whose content `results.json` states under `name`."""
    documents = [{"image": Media("image", one.path, one.name), "label": one.label} for one in files]
    content = json.dumps([[one["image"].name, one["image"].fingerprint, one["label"]] for one in documents])
    context.read[name] = {"files": len(files), "sha256": hashlib.sha256(content.encode()).hexdigest()}
    return documents


def _digest(path: pathlib.Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
