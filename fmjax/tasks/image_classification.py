"""Classification of images: by the model's own classes, by words, by a linear probe, by neighbours, fine-tuned."""

from fmjax.data.image_files import split_folders
from fmjax.errors import DataError, InputError
from fmjax.tasks import adaptation
from fmjax.tasks.calibration import Calibrated
from fmjax.tasks.images import (
    TOLD,
    DigitsData,
    DigitsSubsets,
    FashionMNISTData,
    FolderData,
    LabelledImages,
    MNISTData,
    MNISTHalfData,
)
from fmjax.tasks.named_classes import by_logits, by_words
from fmjax.tasks.neighbours import by_neighbours
from fmjax.tasks.protocol import Apply, Prediction
from fmjax.tasks.trained import Trained


class Classified(LabelledImages, Calibrated):
    """Asks for the classes of an image with their probabilities (`Apply("classify", image)`).

    `acc`: whether the likeliest is its own; `ece` and `ece_mass`: see `Calibrated`.
    """

    metrics, uses, version = ("acc", "ece", "ece_mass"), ("classify",), "3"
    how = "by the model's own classes: accuracy, calibration errors"

    def requests(self, document):
        return [Apply("classify", document["image"])]

    def statistics(self, document, answers):
        known = [str(label) for label, _ in answers[0]]
        if document["label"] not in known:
            raise InputError(
                f"{document['image'].name} is of the class {document['label']!r}, which the model does not know; it "
                f"knows {', '.join(sorted(known)[:20])}. Evaluate a model that was trained on these classes"
            )
        return {"acc": float(known[0] == document["label"]), "confidence": float(answers[0][0][1])}

    def prediction(self, document, answers):
        found = {str(label): float(probability) for label, probability in answers[0]}
        return Prediction(document["image"].name, next(iter(found)), found)


class ProbedImages(Trained, Classified):
    """Answers with a linear probe of frozen vectors."""

    suffix, how, version = "_probe", "by a linear probe of its vectors (DATASET_probe:COUNT training images)", "1"
    uses = ("adapt:image",)
    train = staticmethod(adaptation.probe)

    def adapt(self, model, context):
        # Of all training images: of those chosen, a class may have none.
        names = sorted({document["label"] for document in self.training(context)})
        chosen = self.chosen(context)
        images, labels = [d["image"] for d in chosen], [names.index(d["label"]) for d in chosen]
        return by_logits(self.train(model, images, labels, len(names), context.seed), names)


class NeighbouringImages(ProbedImages):
    """Answers with the nearest training images."""

    suffix, how = "_knn", "by its 20 nearest neighbours (DATASET_knn:COUNT training images)"
    train = staticmethod(by_neighbours)


class FineTunedImages(ProbedImages):
    """Answers with all weights and a head trained."""

    suffix, how = "_finetune", "fine-tuned (DATASET_finetune:COUNT training images)"
    train = staticmethod(adaptation.fine_tune)


class ZeroShotImages(Classified):
    """Answers with the class whose words are nearest, of a model of images and texts (Radford et al. 2021,
    https://arxiv.org/abs/2103.00020, section 3.1.4): `words` and `templates` of the data say what a class is."""

    suffix, how, version = "_zero_shot", "by the words for its class, in several templates", "1"
    uses = ("adapt:image", "two_towers")

    def adapt(self, model, context):
        labels = self.labels(context)
        words, templates = self.told(context)
        return by_words(model, labels, [words.get(label, label) for label in labels], templates)


class Digits(DigitsSubsets, Classified):
    """The digits by the model's own classes."""


class DigitsZeroShot(DigitsData, ZeroShotImages):
    """The digits by words."""


class DigitsProbe(DigitsData, ProbedImages):
    """The digits by a linear probe; `digits_probe:50` trains on 50 images."""


class DigitsNeighbours(DigitsData, NeighbouringImages):
    """The digits by their neighbours."""


class DigitsFineTune(DigitsData, FineTunedImages):
    """The digits with all weights trained."""


class MNIST(MNISTData, Classified):
    """MNIST by the model's own classes."""


class MNISTZeroShot(MNISTData, ZeroShotImages):
    """MNIST by words."""


class MNISTProbe(MNISTData, ProbedImages):
    """MNIST by a linear probe."""


class MNISTNeighbours(MNISTData, NeighbouringImages):
    """MNIST by neighbours."""


class MNISTFineTune(MNISTData, FineTunedImages):
    """MNIST with all weights trained."""


class MNISTHalfProbe(MNISTHalfData, ProbedImages):
    """Half of MNIST's test set by a linear probe of the other."""


class MNISTHalfNeighbours(MNISTHalfData, NeighbouringImages):
    """Half of MNIST's test set by neighbours in the other."""


class MNISTHalfFineTune(MNISTHalfData, FineTunedImages):
    """Half of MNIST's test set with all weights trained on the other."""


class FashionMNIST(FashionMNISTData, Classified):
    """Fashion-MNIST by the model's own classes."""


class FashionMNISTZeroShot(FashionMNISTData, ZeroShotImages):
    """Fashion-MNIST by words."""


class FashionMNISTProbe(FashionMNISTData, ProbedImages):
    """Fashion-MNIST by a linear probe."""


class FashionMNISTNeighbours(FashionMNISTData, NeighbouringImages):
    """Fashion-MNIST by neighbours."""


class FashionMNISTFineTune(FashionMNISTData, FineTunedImages):
    """Fashion-MNIST with all weights trained."""


class ImageFolder(FolderData, Classified):
    """`images:FOLDER`: all images of one folder of classes; files are read, and scaled, by the codec of the model."""

    def __init__(self, path: str):
        super().__init__(path)

    def documents(self, context):
        folder = self.folder(context)
        if (splits := split_folders(folder)) != {"train": folder}:
            names = " or ".join(f"images:{self.path}/{split.name}" for split in splits.values())
            raise DataError(f"folder {str(folder)!r} has splits, which are no classes; choose {names}")
        return self._new(context, self._documents(context, folder))


class _TrainedFolder(FolderData):
    """`WAY:FOLDER`, or `WAY:FOLDER:COUNT` for so many training images."""

    def __init__(self, path: str):
        folder, colon, count = path.rpartition(":")
        super().__init__(*((folder, count) if colon and count.isdigit() else (path,)))


class ImageFolderProbe(_TrainedFolder, ProbedImages):
    """A folder of images by a linear probe."""


class ImageFolderNeighbours(_TrainedFolder, NeighbouringImages):
    """A folder of images by neighbours."""


class ImageFolderFineTune(_TrainedFolder, FineTunedImages):
    """A folder of images with all weights trained."""


class ImageFolderZeroShot(FolderData, ZeroShotImages):
    """A folder of images by words: its held-out part where it has train and test, or else all of it."""

    def __init__(self, path: str):
        super().__init__(path)

    def documents(self, context):
        folders = split_folders(self.folder(context))
        context.note(f"{self.path}/{TOLD}", self.folder(context) / TOLD)
        return self._new(context, self._evaluated(context, folders))

    def labels(self, context):
        return sorted({one["label"] for one in self._evaluated(context, split_folders(self.folder(context)))})

    def _evaluated(self, context, folders) -> list[dict]:
        return self._documents(context, folders.get("heldout", folders["train"]))
