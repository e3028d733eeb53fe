"""Made images beside real ones as distributions: distances, precision and recall, nearest training images."""

import logging
from collections.abc import Callable

import numpy as np

from fmjax.errors import InputError
from fmjax.tasks.capabilities import naming
from fmjax.tasks.made.base import MadeImages
from fmjax.tasks.made.other_models import PIXELS, extractor
from fmjax.tasks.metrics.distributions import Distance, frechet, kernel_distance
from fmjax.tasks.metrics.neighbourhoods import inside, nearest

log = logging.getLogger("fmjax")


class _Extracted(MadeImages):
    """Of vectors of images: `extractor=PATH` is a model whose vectors they are, otherwise they are the pixels."""

    keys = ("extractor", "prompts")

    def __init__(self, argument: str):
        super().__init__(argument)
        self.extractor = extractor(self.settings.own.get("extractor", PIXELS))

    def check(self):
        self.extractor.check("extractor")

    def vectors(self, images: np.ndarray) -> np.ndarray:
        self.card["extractor"] = self.extractor.card()
        return self.extractor.vectors(images)


class MadeDistance(_Extracted):
    """Fréchet and kernel distance of made images from real ones that nothing was trained on: `fd_EXTRACTOR` and
    `kd_EXTRACTOR`, never FID and KID, which are of one extractor alone.

    `..._train`: of as many training images instead of made ones, which a model can hope for; `..._noise`: of noise.
    Errors are those of the draw of documents, made and real, to first order (`metrics.distributions.Distance`).
    """

    name, version = "made_distance", "1"
    description = (
        "made_distance:DATA[:extractor=PATH][:copies=N][:OPTION=VALUE...], Fréchet and kernel distance of made images "
        "from real ones, of training images (_train) and noise (_noise) beside them"
    )
    metrics = ("fd_EXTRACTOR", "kd_EXTRACTOR")

    def __init__(self, argument: str):
        super().__init__(argument)
        of = [f"{kind}_{self.extractor.name}" for kind in ("fd", "kd")]
        self.metrics = tuple(f"{name}{side}" for side in ("", "_train", "_noise") for name in of)

    def measure(self, made, documents):
        real = self.vectors(self.real(documents))
        if len(real) <= real.shape[1]:
            log.warning(
                "%s: %d images for vectors of %d numbers: their Fréchet distance is mostly that of too few; compare it "
                "with its _train, and take more images or an extractor with fewer",
                self.name, len(real), real.shape[1],
            )  # fmt: skip
        train = self.real(self.training(len(made)))
        sides = {"": made, "_train": train, "_noise": _noise(made.shape, self.context.seed)}
        columns = {}
        for side, images in sides.items():
            vectors = self.vectors(images)
            for kind, distance in (("fd", frechet), ("kd", kernel_distance)):
                of_made = self.by_document if side == "" else lambda influence: 0.0
                columns[f"{kind}_{self.extractor.name}{side}"] = _linear(distance(vectors, real), of_made)
        return columns


def _linear(distance: Distance, of_first: Callable) -> np.ndarray:
    """A number for each document whose mean is the distance, and whose spread is that of what it depends on. Of the
    first set's influences what `of_first` makes of them."""
    return distance.value + of_first(distance.of_first) + distance.of_second


def _noise(shape, seed: int) -> np.ndarray:
    """Images that are normal noise where images are from -1 to 1, uint8: what a model of diffusion begins with."""
    noise = np.random.default_rng(seed).normal(size=shape)
    return np.clip(np.rint((noise + 1) * 127.5), 0, 255).astype(np.uint8)


class MadeCoverage(_Extracted):
    """Precision and recall (Kynkäänniemi et al. 2019): the share of made images in the manifold of the real ones, and
    of real images in that of the made ones; `_train`: of training images in the place of made ones."""

    name, version, keys = "made_coverage", "1", ("extractor", "prompts", "k")
    description = (
        "made_coverage:DATA[:extractor=PATH][:k=3][:OPTION=VALUE...], precision and recall of as many made images as "
        "real ones, and of training images (_train)"
    )
    metrics = ("precision", "recall", "precision_train", "recall_train")

    def __init__(self, argument: str):
        super().__init__(argument)
        with naming(self):
            self.k = self.settings.count("k", 3)
            if self.copies != 1:
                raise InputError(f"copies={self.copies}: precision and recall are of as many made images as real ones")

    def measure(self, made, documents):
        self.card["k"] = self.k
        if len(documents) <= self.k:
            raise InputError(f"{len(documents)} images have no {self.k} nearest others; take more, or give k")
        real, found = self.vectors(self.real(documents)), {}
        train = self.real(self.training(len(made)))
        if len(train) <= self.k:
            raise InputError(f"{len(train)} training images have no {self.k} nearest others; give a smaller k")
        for side, images in {"": made, "_train": train}.items():
            vectors = self.vectors(images)
            found[f"precision{side}"] = inside(vectors, real, self.k)
            found[f"recall{side}"] = inside(real, vectors, self.k)
        return found


class MadeNearest(_Extracted):
    """How near made images are to training images: `distance`, root of the mean squared difference to the nearest one;
    `distance_test`, that of real images that nothing was trained on. `closer` is the share of made images that are
    nearer than the real image that they were made beside (half a share each where both are as near): about .5 of a
    model that draws new images, above it of one that repeats what it was trained on (as Meehan et al. 2020,
    https://arxiv.org/abs/2004.05675, compare the two). `equal`: of those that are a training image, to 1/1000."""

    name, version = "made_nearest", "1"
    description = (
        "made_nearest:DATA[:extractor=PATH][:copies=N][:OPTION=VALUE...], distance of made images to the nearest "
        "training image, and of real ones"
    )
    metrics = ("distance", "distance_test", "closer", "equal")

    def measure(self, made, documents):
        train = self.vectors(self.real(self.training()))
        mine = nearest(self.vectors(made), train)
        real = nearest(self.vectors(self.real(documents)), train)
        beside = np.repeat(real, self.copies)
        return {
            "distance": self.by_document(mine),
            "distance_test": real,
            "closer": self.by_document((mine < beside) + 0.5 * (mine == beside)),
            "equal": self.by_document(mine < 1e-3),
        }
