"""Retrieval over captioned images, both ways: the image of a caption, and the captions of an image."""

import dataclasses
import pathlib

from fmjax.data.codecs.media import Media
from fmjax.data.image_sources.caption_files import NAMES, caption_lines
from fmjax.data.image_sources.places import image_place
from fmjax.errors import DataError
from fmjax.inference.pairs import caption_rows
from fmjax.tasks.protocol import TaskContext
from fmjax.tasks.retrieval import Retrieval
from fmjax.tasks.trained_on import without_trained_on


@dataclasses.dataclass(frozen=True)
class Captioned:
    """Images with their captions.

    Attributes:
      images: `Media`, each once, in the order in which captions name them.
      captions: (text, number of its image).
    """

    images: list[Media]
    captions: list[tuple[str, int]]

    def images_of(self) -> dict[str, list[int]]:
        """By caption the images that it describes: equal captions may be of several."""
        found: dict[str, list[int]] = {}
        for text, image in self.captions:
            if image not in found.setdefault(text, []):
                found[text].append(image)
        return found


def read_captioned(context: TaskContext, folder: str) -> Captioned:
    """A folder of `--data_dir` with a file of captions (`fmjax.data.image_sources.caption_files`) and images, in it, in
    its `images`, or in its one zip. Those that the model's run trained on are left out.

    Raises DataError for a file or image that is not there, and for a line that is none.
    """
    path = context.file(folder, *NAMES)
    pairs = [(name, text) for name, texts in caption_lines(path) for text in texts]
    if not pairs:
        raise DataError(f"{path} has no caption")
    names = list(dict.fromkeys(name for name, _ in pairs))
    images = without_trained_on(context, path.parent, _images(path.parent, names), lambda image: image, folder)
    numbers = {image.name: number for number, image in enumerate(images)}
    return Captioned(images, [(text, numbers[name]) for name, text in pairs if name in numbers])


def _images(folder: pathlib.Path, names: list[str]) -> list[Media]:
    """The images of these names, beside the captions. Raises DataError where one is not there."""
    place = image_place(folder, names)
    return [Media("image", place.content(name), name) for name in names]


class ImageRetrieval(Retrieval):
    """`image_retrieval:FOLDER`: among all images those that a caption describes. Standard errors resample images."""

    name = "image_retrieval"
    uses = ("adapt", "embed", "two_towers")
    description = "image_retrieval:FOLDER, the image of a caption among all: recall@1, @5, @10"
    needs = "FOLDER in --data_dir: captions.csv (image,caption) or captions.jsonl, and the images or a zip of them"

    def __init__(self, folder: str):
        self.folder, self.name = folder, f"{self.name}:{folder}"

    def documents(self, context):
        found = read_captioned(context, self.folder)
        right = found.images_of()
        return [
            {"query": text, "gold": right[text], "image": found.images[image].name} for text, image in found.captions
        ]

    def candidates(self, context):
        return read_captioned(context, self.folder).images

    def adapt(self, model, context):
        """See `Retrieval`. Captions that are too long are cut, or refused before anything is computed, by the rule of
        the model's run, and counted."""
        captions = [text for text, _ in read_captioned(context, self.folder).captions]
        caption_rows(model).check_lengths(captions, f"task {self.name}")
        return super().adapt(model, context)

    def cluster(self, document):
        return document["image"]


class CaptionRetrieval(ImageRetrieval):
    """`caption_retrieval:FOLDER`: among all captions those of an image."""

    name = "caption_retrieval"
    description = "caption_retrieval:FOLDER, a caption of an image among all: recall@1, @5, @10"

    def documents(self, context):
        found = read_captioned(context, self.folder)
        right = found.images_of()
        gold = [[] for _ in found.images]
        for number, (text, _) in enumerate(found.captions):
            for image in right[text]:
                gold[image].append(number)
        return [{"query": image, "gold": numbers} for image, numbers in zip(found.images, gold)]

    def candidates(self, context):
        return [text for text, _ in read_captioned(context, self.folder).captions]

    def cluster(self, document):
        return None


FLICKR8K = "vision_flickr8k_sample"
FLICKR8K_NEEDS = "vision_flickr8k_sample/captions.csv, images400.zip (Flickr8k: non-commercial research use)"


class Flickr8kImageRetrieval(ImageRetrieval):
    """Flickr8k (Hodosh et al. 2013, https://doi.org/10.1613/jair.3994): 400 photographs with five captions each."""

    name, needs = "flickr8k_image_retrieval", FLICKR8K_NEEDS
    description = "the photograph of a caption among 400 of Flickr8k: recall@1, @5, @10"

    def __init__(self):
        self.folder = FLICKR8K


class Flickr8kCaptionRetrieval(CaptionRetrieval):
    """The captions of a photograph."""

    name, needs = "flickr8k_caption_retrieval", FLICKR8K_NEEDS
    description = "a caption of a photograph among 2,000 of Flickr8k: recall@1, @5, @10"

    def __init__(self):
        self.folder = FLICKR8K
