"""The scenes of a split with their pictures, captions and labels, made when they are asked for."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from fmjax.data.shapes.boxes import written
from fmjax.data.shapes.captions import wordings
from fmjax.data.shapes.drawing import draw
from fmjax.data.shapes.scenes import NUM_CLAIMS, Claim, Scene, World
from fmjax.data.shuffle import Draws


@dataclasses.dataclass(frozen=True)
class Scenes:
    """Scenes as `fmjax.data.image_text.Captioned` examples.

    Attributes:
      world: that they are of.
      image_size: side of the pictures in pixels.
      split: "train", "heldout", "templates" or "combinations".
      count: how many.
      templates: numbers of those by which claims are put into words.
      all_wordings: an example has a caption by each of them; else one, which is drawn for it.
    """

    world: World
    image_size: int
    split: str
    count: int
    templates: Sequence[int]
    all_wordings: bool = False

    def __len__(self) -> int:
        return self.count

    def scene(self, index: int) -> tuple[Scene, Claim]:
        return self.world.example(self.split, int(index))

    def image(self, index: int) -> np.ndarray:
        return draw(self.scene(index)[0], self.image_size)

    def captions(self, index: int) -> Sequence[str]:
        found = wordings(self.scene(index)[1], self.templates)
        if self.all_wordings:
            return found
        return [Draws("wording", self.world.seed, self.split, int(index)).one_of(found)]

    def all_captions(self) -> Iterator[str]:
        """Every caption that training on these scenes may show, in all wordings, each once."""
        claims = self.world.claims()
        if len(self) < NUM_CLAIMS:
            claims = {claim.number: claim for claim in (self.scene(i)[1] for i in range(len(self)))}.values()
        return itertools.chain.from_iterable(wordings(claim, self.templates) for claim in claims)

    def written(self, index: int, caption: str, draws: Draws) -> str:
        """What a decoder is to write of a scene that this caption tells of (`fmjax.data.shapes.boxes`)."""
        return written(self.scene(index)[0], caption, draws, self.world.says_size)

    def label(self, index: int) -> int:
        """The number of the claim."""
        return self.scene(index)[1].number
