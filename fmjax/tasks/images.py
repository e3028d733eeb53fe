"""Classification of images, asked of models that classify values: no text, no prompt."""

import gzip
import hashlib
import json
import pathlib

import numpy as np

from fmjax.data.codecs.media import Media
from fmjax.data.image_files import labelled_files, split_folders
from fmjax.errors import DataError, InputError
from fmjax.tasks.protocol import Apply, Task


class ImageClassification(Task):
    """Share of the images whose likeliest class is theirs; a document is {"image": `Media`, "label": its name}."""

    metrics, uses = ("acc",), ("classify",)

    def requests(self, document):
        return [Apply("classify", document["image"])]

    def statistics(self, document, answers):
        known = [str(label) for label, _ in answers[0]]
        if document["label"] not in known:
            raise InputError(
                f"{document['image'].name} is of the class {document['label']!r}, which the model does not know; it "
                f"knows {', '.join(sorted(known)[:20])}. Evaluate a model that was trained on these classes"
            )
        return {"acc": float(known[0] == document["label"])}


class Digits(ImageClassification):
    """`digits` and `digits_test` are the images that no training on them sees, `digits_train` the others, unmoved."""

    name, version, subsets = "digits", "1", ("test", "train")
    description = "accuracy on the handwritten digits that training holds out (digits_train: on the others), 8x8 pixels"
    needs = "scikit-learn's digits (CC BY 4.0), which are installed with it"

    def __init__(self, subset: str = ""):
        self.name, self.subset = f"digits_{subset}" if subset else "digits", subset

    def documents(self, context):
        from fmjax.data.digits import CODEC, read_digits

        images, labels, test = read_digits()
        return [
            {"image": Media("image", CODEC.decode({CODEC.array: images[i]}), f"digits/{i}"), "label": str(labels[i])}
            for i in np.flatnonzero(~test if self.subset == "train" else test)
        ]


class MNIST(ImageClassification):
    """The 10,000 test images of MNIST (LeCun et al. 1998)."""

    name, version = "mnist", "1"
    description = "accuracy on MNIST's test images, 28x28 pixels, of a model that reads such"
    needs = "vision_mnist/t10k-{images-idx3,labels-idx1}-ubyte(.gz), licence not stated"

    def documents(self, context):
        images, labels = (
            read_idx(context.file("vision_mnist", f"t10k-{kind}-ubyte.gz", f"t10k-{kind}-ubyte"))
            for kind in ("images-idx3", "labels-idx1")
        )
        return [
            {"image": Media("image", image[..., None], f"mnist/{i}"), "label": str(label)}
            for i, (image, label) in enumerate(zip(images, labels, strict=True))
        ]


class ImageFolder(ImageClassification):
    """`images:FOLDER`: files are read, and scaled, by the codec of the model's run."""

    name, version = "images", "2"
    description = "images:FOLDER, accuracy on images in class subfolders, or named by FOLDER/metadata.jsonl"
    needs = "FOLDER, looked for in --data_dir where that is given"

    def __init__(self, path: str):
        self.path, self.name = path, f"images:{path}"

    def documents(self, context):
        folder = (context.data_dir or pathlib.Path()) / pathlib.Path(self.path).expanduser()
        if (splits := split_folders(folder)) != {"train": folder}:
            names = " or ".join(f"images:{self.path.rstrip('/')}/{split.name}" for split in splits.values())
            raise DataError(f"folder {str(folder)!r} has splits, which are no classes; choose {names}")
        files = labelled_files(folder)
        documents = [{"image": Media("image", one.path, one.name), "label": one.label} for one in files]
        content = json.dumps([[one["image"].name, one["image"].fingerprint, one["label"]] for one in documents])
        context.read[self.path] = {"files": len(files), "sha256": hashlib.sha256(content.encode()).hexdigest()}
        return documents


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
