"""Whether made pictures of the world of shapes are as they were asked for, by a program that looks at them."""

from collections.abc import Sequence

import numpy as np

from fmjax.config import build
from fmjax.data import DATASETS
from fmjax.data.kept import made_of
from fmjax.data.shapes.captions import NUM_TEMPLATES, is_true_of, singular
from fmjax.data.shapes.data import Shapes
from fmjax.data.shapes.drawing import draw
from fmjax.data.shapes.examples import Scenes
from fmjax.data.shapes.scenes import Look
from fmjax.data.shapes.seeing import see
from fmjax.errors import DataError, InputError
from fmjax.layers.checks import check_choice
from fmjax.tasks.made.base import MadeImages

PARTS = ("heldout", "templates", "combinations")


class MadeCaptions(MadeImages):
    """`true`: whether the caption that a picture was asked for by is true of what a program sees in it
    (`fmjax.data.shapes.seeing`). `true_wrong`, the control: whether another scene's caption is, one that is not true of
    the scene that its own was made of. `true_real`: of that scene's drawn picture, which is what the program can see.
    `unread`: cells of a made picture that hold what is like no thing.

    The captions are those of the world that the model's run was trained on, also of one whose rows were kept, or else
    of the default one; a model of classes of colour and shape is asked for these, and the caption names both.
    """

    name, version = "made_captions", "1"
    description = (
        "made_captions[:heldout|templates|combinations][:copies=N][:OPTION=VALUE...], whether made pictures of the "
        "world of shapes are as their captions say, by a program; wrong captions and drawn pictures beside them"
    )
    needs = "nothing: the world of shapes is drawn"
    metrics = ("true", "true_wrong", "true_real", "unread")

    def __init__(self, argument: str = ""):
        super().__init__(argument)

    def open_reference(self, words: Sequence[str]):
        if len(words) > 1:
            raise InputError(f"{':'.join(words)!r}: expected one part, or none; known: {', '.join(PARTS)}")
        part = words[0] if words else PARTS[0]
        check_choice("the part", part, PARTS)
        return _Captioned(part)

    def measure(self, made, documents):
        self.card["data"] = f"the world of shapes, {self.data.part}"
        size = made.shape[1]
        drawn = see([draw(self.data.scenes.scene(document["scene"])[0], size) for document in documents])
        seen = see(made)
        of = lambda name, found, copies: np.array(
            [is_true_of(documents[i // copies][name], one.scene) for i, one in enumerate(found)], np.float64
        )
        real = of("caption", drawn, 1)
        self.card["program"] = {"true_real": round(float(real.mean()), 4)}
        return {
            "true": self.by_document(of("caption", seen, self.copies)),
            "true_wrong": self.by_document(of("wrong", seen, self.copies)),
            "true_real": real,
            "unread": self.by_document(np.array([one.unread for one in seen])),
        }


class _Captioned:
    """Scenes of a part that is not trained on, with what is said of them."""

    def __init__(self, part: str):
        self.part = part

    def documents(self, context) -> list[dict]:
        """{"scene", "prompt", "caption", "wrong"}."""
        section = dict(made_of(context.run_data))
        shapes = build(section, DATASETS) if section.get("name") == "shapes" else Shapes()
        self.scenes = _scenes(shapes, self.part)
        told = [_told(shapes.rows, self.scenes, index) for index in range(len(self.scenes))]
        captions = [caption for _, caption in told]
        return [
            {"scene": index, "prompt": prompt, "caption": caption, "wrong": _wrong(captions, index, self.scenes)}
            for index, (prompt, caption) in enumerate(told)
        ]


def _scenes(shapes: Shapes, part: str) -> Scenes:
    """Those of a part. Raises DataError where the world has none."""
    known = range(NUM_TEMPLATES - shapes.heldout_templates)
    templates = range(known.stop, NUM_TEMPLATES) if part == "templates" else known
    if not templates or (part == "combinations" and not shapes.world.heldout):
        raise DataError(f"the world that the model's run was trained on holds out no {part}; take another part")
    return Scenes(shapes.world, shapes.image_size, part, shapes.eval_examples, templates)


def _told(rows: str, scenes: Scenes, index: int) -> tuple[str, str]:
    """(what a model is asked for, the caption that is to be true of its picture)."""
    if rows == "caption":
        return (scenes.captions(index)[0],) * 2
    if rows != "combination":
        raise InputError(
            f"the model's run was trained with data.rows = {rows!r}, which no caption tells; train with 'caption' or "
            "'combination'"
        )
    look = scenes.scene(index)[0][0].look
    return f"{look.colour} {look.shape}", singular(Look(None, look.colour, look.shape))


def _wrong(captions: Sequence[str], index: int, scenes: Scenes) -> str:
    """The next caption, from a scene's place on and around, that is not true of it."""
    scene, count = scenes.scene(index)[0], len(captions)
    around = (captions[(index + step) % count] for step in range(1, count))
    found = next((caption for caption in around if not is_true_of(caption, scene)), None)
    if found is None:
        raise DataError(f"no caption of the {count} is wrong of scene {index}; raise data.eval_examples")
    return found
