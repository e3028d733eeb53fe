"""The world of shapes as a TFDS dataset of any resolution: no download, no TensorFlow.

import fmjax.data.shapes.builder  # tfds knows it from here on
tfds.builder("shapes_world/64px", data_dir=FOLDER, file_format="array_record").download_and_prepare()
"""

import dataclasses
import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from fmjax.data.shapes.captions import NUM_TEMPLATES
from fmjax.data.shapes.examples import Scenes
from fmjax.data.shapes.scenes import World, diagonal

_KNOWN = range(NUM_TEMPLATES - 1)
_HELDOUT = range(NUM_TEMPLATES - 1, NUM_TEMPLATES)


@dataclasses.dataclass
class ShapesConfig(tfds.core.BuilderConfig):
    """A size of the pictures; another than the named ones is `ShapesConfig(name="80px", image_size=80)`.

    Attributes:
      image_size: side in pixels.
      num_examples: scenes to train on.
      eval_examples: scenes of each other split.
    """

    image_size: int = 64
    num_examples: int = 10_000
    eval_examples: int = 500


class ShapesWorld(tfds.core.GeneratorBasedBuilder):
    """Pictures, all wordings of their captions, and the number of what these mean (`fmjax.data.shapes`).

    The splits are those of `fmjax.data.shapes.data.Shapes` with one template and a diagonal of combinations held out,
    and have the same scenes as its default.
    """

    name = "shapes_world"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "One thing, several equal ones, or two in relation."}
    BUILDER_CONFIGS = [
        ShapesConfig(name=f"{size}px", description=f"{size} pixels a side", image_size=size)
        for size in (64, 32, 128, 224)
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        size = self.builder_config.image_size
        return tfds.core.DatasetInfo(
            builder=self,
            description="A generated world of coloured shapes: count, size, colour, place and relation.",
            features=tfds.features.FeaturesDict({
                "image": tfds.features.Image(shape=(size, size, 3), encoding_format="png"),
                "captions": tfds.features.Sequence(tfds.features.Text()),
                "label": tfds.features.Scalar(dtype=np.int64),
            }),
        )  # fmt: skip

    def _split_generators(self, dl_manager):
        counts = {"train": self.builder_config.num_examples}
        counts |= dict.fromkeys(("heldout", "templates", "combinations"), self.builder_config.eval_examples)
        return {split: self._generate_examples(split, count) for split, count in counts.items()}

    def _generate_examples(self, split: str, count: int):
        templates = _HELDOUT if split == "templates" else _KNOWN
        world = World(heldout=diagonal())
        scenes = Scenes(world, self.builder_config.image_size, split, count, templates, all_wordings=True)
        for index in range(count):
            png = io.BytesIO()
            Image.fromarray(scenes.image(index)).save(png, format="PNG")
            png.seek(0)
            yield index, {"image": png, "captions": scenes.captions(index), "label": scenes.label(index)}
