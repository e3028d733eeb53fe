"""Two images and their labels in one: mixup (Zhang et al. 2017) and CutMix (Yun et al. 2019)."""

import dataclasses

import numpy as np

from fmjax.data.shuffle import Draws


@dataclasses.dataclass(frozen=True)
class Mixing:
    """Images of pairs mixed, each row with a partner of its own.

    Attributes:
      mixup: alpha of the Beta(alpha, alpha) that the first image's share is drawn from; 0 is no mixup.
      cutmix: alpha likewise, of the share of the area; 0 is no CutMix. Where both are above 0, a row has one of them.
    """

    mixup: float = 0.0
    cutmix: float = 0.0

    def __call__(
        self, first: np.ndarray, second: np.ndarray, labels: tuple[np.ndarray, np.ndarray], draws: Draws
    ) -> tuple[np.ndarray, np.ndarray]:
        """The image and the labels mixed: (1) l x1 + (1 - l) x2, or a box of the second within the first, with l the
        share of the first's area that is left; (2) l y1 + (1 - l) y2.

        Args:
          first, second: float32 [H, W, C].
          labels: of them, float32 [num_classes] each.
        """
        cuts = draws.one_of([kind for kind, alpha in ((False, self.mixup), (True, self.cutmix)) if alpha])
        share = beta(self.cutmix if cuts else self.mixup, draws)
        if cuts:
            top, bottom, left, right = box(*first.shape[:2], 1 - share, draws)
            mixed = first.copy()
            mixed[top:bottom, left:right] = second[top:bottom, left:right]
            share = 1 - (bottom - top) * (right - left) / (first.shape[0] * first.shape[1])
        else:
            mixed = np.float32(share) * first + np.float32(1 - share) * second
        return mixed, np.float32(share) * labels[0] + np.float32(1 - share) * labels[1]


def beta(alpha: float, draws: Draws) -> float:
    """A number from Beta(alpha, alpha), by the inverse of its distribution function."""
    from scipy.special import betaincinv

    return float(betaincinv(alpha, alpha, draws.uniform()))


def box(height: int, width: int, area: float, draws: Draws) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of a box of that share of the area and the image's proportions, around a point of the
    image, cut off at its borders (equation 2 of the paper of CutMix)."""
    edges = []
    for side in (height, width):
        half, middle = int(side * np.sqrt(area)) // 2, draws.below(side)
        edges += [max(middle - half, 0), min(middle + half, side)]
    return tuple(edges)
