"""Models besides the one that is judged: what reads its images, and what stands for them in a protocol's card."""

import functools
import hashlib
import pathlib
import re
from typing import Any

import numpy as np

from fmjax import load
from fmjax.errors import InputError
from fmjax.inference.fingerprint import array_fingerprints

PIXELS = "pixels"


def name_of(path: str) -> str:
    """For metrics and cards: the last word of a model's path, and the run's of a checkpoint's."""
    parts = pathlib.PurePath(path).parts
    named = [parts[-3], parts[-1]] if parts[-2:-1] == ("checkpoints",) and len(parts) > 2 else parts[-1:]
    return re.sub(r"[^A-Za-z0-9_]+", "_", "_".join(named))


def weights_of(model) -> str:
    """16 hexadecimal digits of a model's parameters and what its run carried."""
    with model.inference():
        lines = array_fingerprints((model.params, model.carry))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


class OtherModel:
    """A model by its path, loaded when it is used first.

    Attributes:
      path: of a run, one of its checkpoints, or a published model.
      name: `name_of` the path.
    """

    def __init__(self, path: str):
        self.path = path
        self.name = name_of(path)

    def check(self, ability: str) -> None:
        """Raises InputError where there is no model."""
        try:
            load.find(self.path)
        except InputError as error:
            raise InputError(f"{ability}={self.path}: {error}") from None

    @functools.cached_property
    def model(self):
        return load.load(self.path)

    def card(self) -> dict[str, Any]:
        """{"name", "weights"}: a digest of the weights, which a path may name others of elsewhere."""
        return {"name": self.name, "weights": weights_of(self.model)}

    def classes(self, images: np.ndarray) -> list[str]:
        """The likeliest class of each of images uint8 [N, H, W, C]. Raises InputError for a model without classes."""
        return [str(found[0][0]) for found in self.model.can("classify")(list(images), top_k=1)]

    def vectors(self, images: np.ndarray) -> np.ndarray:
        """float32 [N, D], as `Model.embed`. Raises InputError for a model that has none of images."""
        self.model.can("embed")
        return self.model.embed(list(images))


class Pixels:
    """The numbers of an image themselves, from 0 to 1."""

    name = PIXELS

    def check(self, ability: str) -> None:
        pass

    def card(self) -> dict[str, Any]:
        return {"name": PIXELS}

    def vectors(self, images: np.ndarray) -> np.ndarray:
        """float32 [N, H * W * C] of uint8 [N, H, W, C]."""
        return images.reshape(len(images), -1).astype(np.float32) / 255


def extractor(path: str) -> OtherModel | Pixels:
    """What makes vectors of images: "pixels", or a model's path."""
    return Pixels() if path == PIXELS else OtherModel(path)
