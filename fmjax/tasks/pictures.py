"""Pictures of what a model's answers about images come from: covered patches that matter, and attention."""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np

from fmjax.data.codecs.contact_sheet import contact_sheet, write_sheet
from fmjax.data.codecs.media import Media
from fmjax.errors import InputError
from fmjax.inference import values
from fmjax.inference.patches import attention_maps, attends_to_patches, overlaid, patch_attribution, read_pixels
from fmjax.tasks.protocol import Apply, Request, Task
from fmjax.tasks.sample_log import samples_file

PATCHES = 8
"""Along a side, of images that have so many pixels."""


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Writes pictures of the first `count` documents of each task (`fmjax.tasks.runner.Inspect`).

    Attributes:
      folder: that they are written to; None on other processes than the first, which compute all the same.
    """

    folder: pathlib.Path | None
    count: int

    def check(self, task: Task, requests: Sequence[Sequence[Request]]) -> None:
        """Raises InputError for a task that does not ask what one image shows."""
        for group in requests[:1]:
            (one, *others) = group
            asks = isinstance(one, Apply) and one.function == "classify" and isinstance(one.inputs, Media)
            if others or not asks or one.inputs.modality != "image":
                raise InputError(
                    f"task {task.name} does not ask what an image shows, of which pictures could be made; leave it out"
                )

    def look(self, task: Task, model, requests: Sequence[Sequence[Request]], answers: Sequence) -> None:
        sheet = pictures(model, [group[0].inputs for group in requests[: self.count]], answers[: self.count])
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_sheet(sheet, self.folder / samples_file(task.name).replace(".jsonl", ".png"))


def pictures(model, images: Sequence[Media], answers: Sequence[Sequence[tuple[str, float]]]) -> np.ndarray:
    """A sheet uint8 [H, W, 3] with a row an image, as the model sees it; by how much the likeliest class becomes less
    likely when a patch is covered (`patch_attribution`); and, of a stack over patches, the last layer's attention, the
    mean over heads (`attention_maps`). Yellow is the most of an image, blue the least.

    Args:
      model: that answered.
      answers: of each image its classes, likeliest first, with probabilities.
    """
    best = [(str(answer[0][0]), float(answer[0][1])) for answer in answers]
    codec = values.reads(model)["image"]
    count = min(PATCHES, codec.height, codec.width)
    columns = [patch_attribution(model, images, [label for label, _ in best], patches=count)]
    told = [[f"covering it: up to {heat.max():.2g} nats" for heat in columns[0]]]
    if attends_to_patches(model.module):
        columns.append(attention_maps(model, images)[:, -1].mean(axis=1))
        told.append([f"attention, up to {heat.max():.2g}" for heat in columns[1]])
    cells, captions = [], []
    for number, image in enumerate(images):
        pixels = read_pixels(image, codec)
        label, probability = best[number]
        cells.append(pixels)
        captions.append(f"{label} {probability:.2f}: {image.name}")
        for heat, words in zip(columns, told):
            cells.append(overlaid(pixels, heat[number], heat[number].min(), heat[number].max()))
            captions.append(words[number])
    return contact_sheet(cells, captions, columns=1 + len(columns))
