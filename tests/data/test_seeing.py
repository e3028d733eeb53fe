"""A program that looks at pictures of the world of shapes sees the scene that was drawn, and what it cannot read."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from fmjax.data.shapes.drawing import draw
from fmjax.data.shapes.scenes import Look, Thing, World
from fmjax.data.shapes.seeing import see
from fmjax.errors import DataError

SCENES = [World().example("heldout", index)[0] for index in range(150)]


def told(scene):
    return {(thing.look, thing.cell) for thing in scene}


@pytest.mark.parametrize(("size", "least"), [(64, 1.0), (32, 0.98)])
def test_what_was_drawn_is_seen(size, least):
    seen = see([draw(scene, size) for scene in SCENES])
    right = [told(found.scene) == told(scene) for found, scene in zip(seen, SCENES)]
    assert np.mean(right) >= least and not any(found.unread for found in seen)
    offsets = [(a.offset, b.offset) for found, scene in zip(seen, SCENES) for a, b in zip(found.scene, sorted_(scene))]
    assert np.abs(np.subtract(*np.moveaxis(np.array(offsets), 1, 0))).max() < 0.021  # to a pixel or so


def sorted_(scene):
    return sorted(scene, key=lambda thing: thing.cell)


def test_a_blurred_and_noisy_picture_is_read_and_a_blot_is_not():
    rng = np.random.default_rng(0)

    def spoilt(scene):
        picture = Image.fromarray(draw(scene, 64)).filter(ImageFilter.GaussianBlur(0.7))
        return np.clip(np.asarray(picture) + rng.normal(0, 10, (64, 64, 3)), 0, 255).astype(np.uint8)

    seen = see([spoilt(scene) for scene in SCENES])
    assert np.mean([told(found.scene) == told(scene) for found, scene in zip(seen, SCENES)]) > 0.95
    picture = draw((Thing(Look("small", "red", "cross"), (0, 0)),), 64)
    picture[43:64:3, 43:64] = 200  # stripes, like nothing there is
    (found,) = see([picture])
    assert told(found.scene) == {(Look("small", "red", "cross"), (0, 0))} and found.unread == 1
    (empty,) = see([np.full((64, 64, 3), 5, np.uint8)])
    assert empty == ((), 0)


def test_other_pictures_are_refused():
    with pytest.raises(DataError, match=r"is \[S, S, 3\], got an array of shape \(8, 8, 1\)"):
        see([np.zeros((8, 8, 1), np.uint8)])
