"""What the objectives of autoencoders of images share: images in, and held-out ones beside what is made of them."""

import dataclasses
from typing import ClassVar

import numpy as np

from fmjax.layers.checks import check_positive


@dataclasses.dataclass(frozen=True)
class Reconstructing:
    """Base of them; `reconstruct(model, arrays)`, float32 [B, H, W, C], is the objective's own.

    Attributes:
      num_samples: held-out images that are written beside their reconstructions.
    """

    makes: ClassVar[str] = "image"
    generator: ClassVar[str] = "reconstruction"
    ROWS_APART: ClassVar[bool] = True

    num_samples: int = 32

    def __post_init__(self):
        check_positive(num_samples=self.num_samples)

    def inputs(self, batch) -> dict:
        """What the module is called with."""
        return {"images": batch["images"]}

    def can_sample(self, module, data) -> bool:
        """Whether the data have images to show."""
        return self.makes in data.codecs and bool(data.evaluation)

    def num_shown(self) -> int:
        """Of the rows that `sample` takes."""
        return self.num_samples

    def sample(self, model, key, rows) -> list[np.ndarray]:
        """Each image of `rows` followed by its reconstruction."""
        made = self.reconstruct(model, rows)
        pairs = [image for pair in zip(rows["images"], np.asarray(made)) for image in pair]
        return [model.codec.decode({model.codec.array: image}) for image in pairs]
