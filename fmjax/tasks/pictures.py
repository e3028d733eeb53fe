"""Pictures of what a model's answers about images come from: covered patches that matter, attention, gradients."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fmjax.data.codecs.contact_sheet import contact_sheet, write_sheet
from fmjax.data.codecs.media import Media
from fmjax.errors import InputError
from fmjax.inference import values
from fmjax.inference.patches import attention_maps, attends_to_patches, overlaid, patch_attribution, read_pixels
from fmjax.inference.rollout import attention_rollout, gradient_times_input
from fmjax.registry import nearest
from fmjax.tasks.protocol import Apply, Request, Task
from fmjax.tasks.sample_log import samples_file

PATCHES = 8
"""Along a side at most, of images that have so many pixels."""


class Kind(NamedTuple):
    """A way to show what an answer comes from.

    Attributes:
      lacks: lacks(task, model) -> what is missing for it, or None.
      heat: heat(model, images, labels) -> float32 [N, rows, columns], by patch of each image.
      told: what the numbers are, for the line under a picture, with a {} for the largest of them.
    """

    lacks: Callable[[Task, Any], str | None]
    heat: Callable[[Any, Sequence[Media], Sequence[str]], np.ndarray]
    told: str


def _occlusion(model, images, labels) -> np.ndarray:
    return patch_attribution(model, images, labels, patches=min(PATCHES, *_sides(model)))


def _attention(model, images, labels) -> np.ndarray:
    return attention_maps(model, images)[:, -1].mean(axis=1)


def _gradient(model, images, labels) -> np.ndarray:
    patches = max(n for n in range(1, PATCHES + 1) if not any(side % n for side in _sides(model)))
    return gradient_times_input(model, images, labels, patches=patches)


def _sides(model) -> tuple[int, int]:
    codec = values.reads(model)["image"]
    if not hasattr(codec, "height"):
        raise InputError(f"pictures are of images of one size, and {model} reads them in their own proportions")
    return codec.height, codec.width


def _lacks_attention(task: Task, model) -> str | None:
    return None if attends_to_patches(model.module) else "the model attends to no patches of images"


def _lacks_gradients(task: Task, model) -> str | None:
    if task.adapts:
        return "the task answers by classes that are not the model's own, whose gradients these are"
    return values.lacks_classes(model)


KINDS = {
    "occlusion": Kind(lambda task, model: None, _occlusion, "covering it: up to {} nats"),
    "attention": Kind(_lacks_attention, _attention, "attention: up to {}"),
    "rollout": Kind(_lacks_attention, lambda model, images, _: attention_rollout(model, images), "rollout: up to {}"),
    "gradient": Kind(_lacks_gradients, _gradient, "gradient x input: up to {}"),
}
"""By name: `patch_attribution`, the last layer's attention (`attention_maps`, the mean over heads), `attention_rollout`
and `gradient_times_input`."""
USUAL = ("occlusion", "attention")
"""What is shown, as far as the model has it, where no kinds are asked for."""


def asked(pictures: int | str) -> tuple[int, tuple[str, ...]]:
    """(how many images, kinds of pictures) of what `--pictures` was given: 8, or "8:rollout,gradient"; no kinds are
    the usual ones. Raises InputError for anything else."""
    count, _, names = str(pictures).partition(":")
    kinds = tuple(name.strip() for name in names.split(",") if name.strip())
    if not count.isdecimal() or (":" in str(pictures) and not kinds):
        raise InputError(f"pictures = {pictures!r}: expected how many images, 8, or with kinds, '8:rollout,gradient'")
    for name in kinds:
        if name not in KINDS:
            known = ", ".join(KINDS)
            raise InputError(f"pictures = {pictures!r}: no kind {name!r}{nearest(name, KINDS)} Known: {known}")
    return int(count), kinds


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Writes pictures of the first `count` documents of each task (`fmjax.tasks.runner.Inspect`).

    Attributes:
      folder: that they are written to; None on other processes than the first, which compute all the same.
      kinds: names of `KINDS`; none are the `USUAL` ones that there are.
    """

    folder: pathlib.Path | None
    count: int
    kinds: tuple[str, ...] = ()

    def check(self, task: Task, model, requests: Sequence[Sequence[Request]]) -> None:
        """Raises InputError for a task that asks something else than what images show, and for a kind of picture that
        there is none of."""
        if not all(_asks(one) for one in requests[0]):
            raise InputError(
                f"task {task.name} does not ask what an image shows, of which pictures could be made; leave it out"
            )
        for name in self.kinds:
            if lack := KINDS[name].lacks(task, model):
                raise InputError(f"task {task.name}: there are no pictures {name!r}: {lack}; leave the kind out")

    def look(self, task: Task, model, requests: Sequence[Sequence[Request]], answers: Sequence) -> None:
        images = [one.inputs for group in requests[: self.count] for one in group]
        kinds = self.kinds or [name for name in USUAL if KINDS[name].lacks(task, model) is None]
        sheet = pictures(model, images, answers[: len(images)], kinds)
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_sheet(sheet, self.folder / samples_file(task.name).replace(".jsonl", ".png"))


def _asks(request: Request) -> bool:
    """Whether a request asks what one image shows."""
    asks = isinstance(request, Apply) and request.function == "classify" and isinstance(request.inputs, Media)
    return asks and request.inputs.modality == "image"


def pictures(
    model, images: Sequence[Media], answers: Sequence[Sequence[tuple[str, float]]], kinds: Sequence[str] = USUAL
) -> np.ndarray:
    """A sheet uint8 [H, W, 3] with a row an image, as the model sees it, and a column for each of `kinds` of what its
    likeliest class comes from. Yellow is the most of an image, blue the least.

    Args:
      model: that answered.
      answers: of each image its classes, likeliest first, with probabilities.
    """
    best = [(str(answer[0][0]), float(answer[0][1])) for answer in answers]
    codec = values.reads(model)["image"]
    columns = {name: KINDS[name].heat(model, images, [label for label, _ in best]) for name in kinds}
    cells, captions = [], []
    for number, image in enumerate(images):
        pixels = read_pixels(image, codec)
        label, probability = best[number]
        cells.append(pixels)
        captions.append(f"{label} {probability:.2f}: {image.name}")
        for name, heats in columns.items():
            heat = heats[number]
            cells.append(overlaid(pixels, heat, heat.min(), heat.max()))
            captions.append(KINDS[name].told.format(f"{heat.max():.2g}"))
    return contact_sheet(cells, captions, columns=1 + len(columns))
