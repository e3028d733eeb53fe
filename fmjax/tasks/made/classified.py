"""Made images and classes: read by a classifier that knows real ones alone, and taught to one that knows none."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import numpy as np

from fmjax.errors import InputError
from fmjax.models.conv_encoder import ConvEncoder
from fmjax.tasks import adaptation
from fmjax.tasks.heads import Classifier
from fmjax.tasks.made.base import MadeImages
from fmjax.tasks.made.other_models import OtherModel
from fmjax.tasks.made.references import fitted

TAUGHT = adaptation.Recipe(epochs=20, min_steps=400, batch_size=64, learning_rate=3e-3)
"""How the small classifier of `made_training` is trained."""
WIDTH = 32
"""Its channels."""


class MadeAccuracy(MadeImages):
    """`acc`: whether a classifier takes a made image for what was asked for; `acc_real`: the real image beside it,
    which is what `acc` can reach; `acc_wrong`, the control: the made image for the next document's other class."""

    name, version, keys, required = "made_accuracy", "1", ("classifier",), ("classifier",)
    description = (
        "made_accuracy:DATA:classifier=PATH[:copies=N][:OPTION=VALUE...], whether a classifier, a run of one, reads "
        "made images as the classes that were asked for"
    )
    metrics = ("acc", "acc_real", "acc_wrong")

    def __init__(self, argument: str):
        super().__init__(argument)
        self.classifier = OtherModel(self.settings.own["classifier"])

    def check(self):
        self.classifier.check("classifier")

    def measure(self, made, documents):
        labels = labels_of(documents)
        read = np.array(self.classifier.classes(made)).reshape(len(documents), self.copies)
        real = np.array(self.classifier.classes(self.real(documents)))
        self.card["classifier"] = self.classifier.card() | {"acc_real": round(float(np.mean(real == labels)), 4)}
        return {
            "acc": np.mean(read == labels[:, None], axis=1),
            "acc_real": real == labels,
            "acc_wrong": np.mean(read == _others(labels)[:, None], axis=1),
        }


def labels_of(documents: Sequence[dict]) -> np.ndarray:
    """Their classes by name. Raises InputError where the data have none."""
    if any(document["label"] is None for document in documents):
        raise InputError("the data say no classes of their images; take data with classes, such as digits")
    return np.array([document["label"] for document in documents])


def _others(labels: np.ndarray) -> np.ndarray:
    """For each label the next one, from its place on and around, that is another; "" where there is none."""
    count = len(labels)
    after = lambda place: (labels[(place + step) % count] for step in range(1, count))
    return np.array([next((one for one in after(place) if one != labels[place]), "") for place in range(count)])


class MadeTraining(MadeImages):
    """Test accuracy of a small classifier that has seen made images alone (`acc`; Ravuri & Vinyals 2019,
    https://arxiv.org/abs/1905.10887), and of the same trained in the same way on as many real ones (`acc_train`).
    Errors are those of the test images, not of the training's seed."""

    name, version = "made_training", "1"
    description = (
        "made_training:DATA[:copies=N][:OPTION=VALUE...], accuracy on real images of a small classifier trained on "
        "made ones alone, beside the same trained on as many real ones"
    )
    metrics = ("acc", "acc_train")

    def documents(self, context):
        found = super().documents(context)
        labels_of(found)
        return found

    def measure(self, made, documents):
        test, labels = self.real(documents), labels_of(documents)
        training = self.training(len(made))
        names = sorted({*labels.tolist(), *labels_of(training).tolist()})
        self.card["classifier"] = {"name": "conv_encoder", "width": WIDTH, **dataclasses.asdict(TAUGHT)}
        taught = functools.partial(_taught, names=names, seed=self.context.seed, test=test)
        return {
            "acc": taught(made, np.repeat(labels, self.copies)) == labels,
            "acc_train": taught(fitted(self.codec, training), labels_of(training)) == labels,
        }


def _taught(images: np.ndarray, labels: np.ndarray, *, names: list[str], seed: int, test) -> np.ndarray:
    """What a classifier of `names`, trained on images uint8 [N, H, W, C], takes `test` for."""
    height, width, channels = images.shape[1:]
    if height != width:
        raise InputError(f"images of {height}x{width} pixels: the classifier that is trained reads square ones")
    halvings = next(n for n in (2, 1, 0) if height % 2**n == 0 and height >= 8 * n)
    backbone = ConvEncoder(
        image_size=height, num_channels=channels, hidden_size=WIDTH, num_halvings=halvings, projection_size=0
    )
    module = Classifier(backbone, len(names), "none", "pooled")
    normal = lambda part: part.astype(np.float32) / 127.5 - 1
    arrays = {
        "images": normal(images),
        "labels": np.array([names.index(label) for label in labels], np.int32),
        "loss_weights": np.ones(len(images), np.float32),
    }
    objective = {"name": "fmjax.tasks.heads:LabelLoss", "input_names": ["images"]}
    params, _ = adaptation.train(module, arrays, objective, seed, TAUGHT)
    logits = jax.jit(lambda part: module.apply({"params": params}, images=part))
    parts = [np.asarray(logits(normal(test[i : i + 256]))) for i in range(0, len(test), 256)]
    return np.array(names)[np.concatenate(parts).argmax(axis=1)]
