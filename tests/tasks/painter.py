"""A model that draws what it is told without computing anything, and counts what it drew."""

import collections
import dataclasses
from typing import Any

import flax.linen as nn
import numpy as np

from fmjax.data.codecs.image import ImageCodec
from fmjax.data.codecs.label import LabelCodec
from fmjax.data.digits import CODEC
from fmjax.data.shapes.captions import is_true_of
from fmjax.data.shapes.data import Shapes
from fmjax.data.shapes.drawing import draw
from fmjax.data.shapes.examples import Scenes
from fmjax.inference.checks import check_list
from fmjax.load import Model


@dataclasses.dataclass(frozen=True)
class Painting:
    """An objective whose models draw what they are told, by no model at all."""

    makes = "image"
    generator = "tests.tasks.painter:Painter"


@dataclasses.dataclass(frozen=True)
class Options:
    """Attributes:
    shade: what is added to a picture.
    """

    shade: int = 0
    seed: int = 0
    num_samples: int = 1
    batch_size: int = 8


class Painter:
    """Draws a scene that a caption is true of; of a digit, its number and that of the copy."""

    Options = Options
    made, stop = collections.Counter(), None

    def __init__(self, model):
        self.model = model

    @staticmethod
    def lacks(model):
        return None

    def default_prompts(self):
        return [None]

    def run(self, prompts, options, only=None):
        check_list("prompts", prompts)
        copies = collections.Counter()
        for index, prompt in enumerate(prompts):
            copies[prompt] += 1
            if only is None or index in only:
                self.made[prompt] += 1
                if self.stop is not None and self.made.total() > self.stop:
                    raise KeyboardInterrupt
                picture = self.picture(prompt, copies[prompt]).astype(int) + options.shade
                yield index, np.minimum(picture, 255).astype(np.uint8)

    def picture(self, prompt, copy):
        if str(prompt).isdigit():
            return np.full((8, 8, 1), 20 * int(prompt) + copy % 20, np.uint8)
        scene = next(scene for scene in SCENES if is_true_of(prompt, scene))
        return draw(scene, 64)


SHAPES = Scenes(Shapes().world, 64, "heldout", 60, range(4))
SCENES = [SHAPES.scene(index)[0] for index in range(len(SHAPES))]
PAINTER = Model(
    nn.Dense(1), {}, {"objective": {"name": "tests.tasks.painter:Painting"}},
    codecs={"image": ImageCodec(64, 64, 3)},
)  # fmt: skip
DIGIT_PAINTER = dataclasses.replace(PAINTER, codecs={"image": CODEC, "label": LabelCodec(10)})


@dataclasses.dataclass(frozen=True)
class StagedOptions(Options):
    """Attributes:
    prior: a model by its path, or none.
    """

    prior: Any = None


class StagedPainter(Painter):
    """A painter whose options may name another model, which it opens."""

    Options = StagedOptions

    def stages(self, options):
        return {} if options.prior is None else {"prior": self.model.open_path(options.prior)}


@dataclasses.dataclass(frozen=True)
class StagedPainting(Painting):
    generator = "tests.tasks.painter:StagedPainter"


STAGED = dataclasses.replace(DIGIT_PAINTER, config={"objective": {"name": "tests.tasks.painter:StagedPainting"}})
