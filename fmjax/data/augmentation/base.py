"""The protocol of an augmentation."""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from fmjax.data.shuffle import Draws


class Augmentation(Protocol):
    """A frozen dataclass whose fields are the keys of the config's section `data.augmentation`.

    One whose `mixing` is not None makes labels soft: `labels` float32 [num_classes] in place of int32 [].
    """

    mixing: Any

    def __call__(self, image: np.ndarray, scale: Callable[..., np.ndarray], draws: Draws) -> np.ndarray:
        """An image changed as `draws` say: uint8 [h, w, C] as the model reads it.

        Args:
          image: uint8 [H, W, C], of any size.
          scale: the codec's: `scale(image)` gives it in the model's size, `scale(image, box)` so its part within
            (left, top, right, bottom).
        """
