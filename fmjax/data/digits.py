"""The handwritten digits that scikit-learn ships: 1,797 images of 8x8 pixels, no download."""

import dataclasses
import hashlib
import pathlib

import numpy as np

from fmjax.data.base import OpenData
from fmjax.data.codecs.image import ImageCodec
from fmjax.data.codecs.label import LabelCodec
from fmjax.data.image_rows import check_module, shifted
from fmjax.errors import ConfigError

CODEC = ImageCodec(height=8, width=8, channels=1)
"""Black is -1 and white 1; the 17 shades of the digits lie between them."""


@dataclasses.dataclass(frozen=True)
class Digits:
    """Rows of one image each.

    A row has `images` float32 [8, 8, 1] in [-1, 1], `labels` int32 [] and `loss_weights` float32 []. A fifth of the
    images, chosen by a hash of their pixels, is the test set, so that equal images are never on both sides.

    Attributes:
      max_shift: training images are moved by up to this many pixels along each axis, at random for each row.
    """

    max_shift: int = 1

    def __post_init__(self):
        if not 0 <= self.max_shift < 8:
            raise ConfigError(f"data.max_shift = {self.max_shift} must be between 0 and 7 pixels")

    def open(
        self, *, seed: int, cache_dir: pathlib.Path, workdir: pathlib.Path | None = None, progress: bool = False
    ) -> OpenData:
        """The digits, shuffled anew each epoch by `seed`."""
        import grain

        images, labels, test = read_digits()

        def row(index: int) -> dict[str, np.ndarray]:
            return {
                "images": images[index],
                "labels": np.asarray(labels[index], np.int32),
                "loss_weights": np.ones((), np.float32),
            }

        def moved(index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
            example = row(index)
            down, right = rng.integers(-self.max_shift, self.max_shift, size=2, endpoint=True)
            return example | {"images": shifted(example["images"], down, right, background=-1.0)}

        train = grain.MapDataset.source(np.flatnonzero(~test)).seed(seed).shuffle().repeat().random_map(moved)
        held_out = grain.MapDataset.source(np.flatnonzero(test)).map(row)
        content = hashlib.blake2b(images.tobytes() + labels.tobytes(), digest_size=16).hexdigest()
        return OpenData(
            train=train,
            evaluation={"test": held_out},
            codecs={"image": CODEC, "label": LabelCodec(10)},
            model_fields={"image_size": 8, "num_channels": 1, "num_classes": 10},
            check=lambda module: check_module(module, CODEC, 10),
            identity={"dataset": f"digits:{content}"},
            num_train=int((~test).sum()),
            drawn_anew=self.max_shift > 0,
        )


def read_digits() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(images float32 [N, 8, 8, 1] as CODEC has them, labels int [N], whether each belongs to the test set)."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = (pixels.reshape(-1, 8, 8, 1) / 8.0 - 1.0).astype(np.float32)
    test = np.array([hashlib.blake2b(image.tobytes()).digest()[0] < 51 for image in images])
    return images, labels, test
