"""Sparse masks of images whose places follow a text in one causal row (Ramesh et al. 2021,
https://arxiv.org/abs/2102.12092, appendix B.1, figure 11)."""

import dataclasses

from fmjax.errors import ConfigError
from fmjax.layers.checks import check_choice, check_positive

KINDS = ("row", "column", "convolution")


@dataclasses.dataclass(frozen=True)
class ImageMask:
    """A place of the image attends all of the text, and of the places up to its own in the order of the rows

    - row: itself and the `side` ones before it, the last of which is the one above it;
    - column: those above it;
    - convolution: those at most kernel // 2 rows above and kernel // 2 places to a side, where a row goes on with the
      next.

    Attributes:
      kind: one of KINDS.
      begin: how many tokens stand before the image.
      side: of the square grid of places.
      kernel: side of the convolution, odd.
    """

    kind: str
    begin: int
    side: int
    kernel: int = 11

    def __post_init__(self):
        check_choice("image mask", self.kind, KINDS)
        check_positive(begin=self.begin, side=self.side, kernel=self.kernel)
        if self.kind == "convolution" and (self.kernel % 2 == 0 or self.kernel > self.side):
            raise ConfigError(
                f"a convolution's mask has kernel={self.kernel}: expected an odd number up to {self.side}, the side of "
                "the grid"
            )

    def allowed(self, query, key):
        """bool: which keys the queries may attend, by indices in the row, NumPy's or JAX's, broadcast together."""
        behind, reach = query - key, self.kernel // 2
        if self.kind == "row":
            near = behind <= self.side
        elif self.kind == "column":
            near = behind % self.side == 0
        else:
            near = ((behind + reach) % self.side <= 2 * reach) & ((behind + reach) // self.side <= reach)
        return (key < self.begin) | (query < self.begin) | (near & (behind >= 0))
