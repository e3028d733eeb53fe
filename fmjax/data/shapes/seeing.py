"""The scene that a picture shows, found by a program: what is in each cell is compared with every thing that may be."""

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fmjax.data.shapes.drawing import draw
from fmjax.data.shapes.scenes import CELLS, COLOURS, MAX_JITTER, SHAPES, SIZES, Look, Scene, Thing, light
from fmjax.errors import DataError

STEPS = 9
"""Places of a thing that are tried along each axis of its cell, from end to end of where it may be."""
LIKE = 0.5
"""Of the light in a cell, in squares, a thing must leave less than this unexplained."""
_WHITE = "white"


class Seen(NamedTuple):
    """What is in a picture.

    Attributes:
      scene: the things that were found, from the top left.
      unread: how many cells have light in them that is like no thing.
    """

    scene: Scene
    unread: int


def see(pictures: Sequence[np.ndarray]) -> list[Seen]:
    """What is in pictures uint8 [S, S, 3], which may be as blurred and noisy as made ones are.

    A cell holds the thing, in its colour and at its place there, that is nearest by the sum of squares, where it
    explains the light at least half (`LIKE`); light that is less than a quarter of the least thing's counts as none.

    Raises DataError for a picture that is not square and in colour.
    """
    pictures = np.stack([_checked(picture) for picture in pictures]).astype(np.float32) / 255
    found: list[list[Thing]] = [[] for _ in pictures]
    unread = np.zeros(len(pictures), int)
    lights = np.stack([light(colour) for colour in COLOURS])
    for cell in itertools.product(range(CELLS), repeat=2):
        masks, energies = _masks(cell, pictures.shape[1])
        here = _window(pictures, cell)
        total = np.square(here).sum(axis=(1, 2, 3))
        # |picture|^2 - |picture - light mask|^2, [pictures, colours, things].
        shared = np.einsum("km,nmc->nkc", masks, here.reshape(len(here), -1, 3), optimize=True)
        explained = 2 * np.einsum("nkc,lc->nlk", shared, lights, optimize=True)
        explained -= np.square(lights).sum(axis=1)[:, None] * energies
        best = explained.reshape(len(here), -1).argmax(axis=1)
        least = 0.25 * np.square(lights).sum(axis=1).min() * energies.min()
        for number, (place, light_here) in enumerate(zip(best, total)):
            if light_here < least:
                continue
            colour, thing = divmod(int(place), len(energies))
            if explained[number, colour, thing] > (1 - LIKE) * light_here:
                shape, size, offset = _things()[thing]
                found[number].append(Thing(Look(size, COLOURS[colour], shape), cell, offset))
            else:
                unread[number] += 1
    return [Seen(tuple(scene), int(count)) for scene, count in zip(found, unread)]


def _checked(picture: np.ndarray) -> np.ndarray:
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.shape[0] != picture.shape[1]:
        raise DataError(f"a picture of the world of shapes is [S, S, 3], got an array of shape {picture.shape}")
    return picture


@functools.cache
def _things() -> list[tuple[str, str, tuple[float, float]]]:
    """(shape, size, offset) of all things that a cell may hold, whatever their colour."""
    steps = np.linspace(-MAX_JITTER, MAX_JITTER, STEPS).tolist()
    return list(itertools.product(SHAPES, SIZES, itertools.product(steps, repeat=2)))


@functools.lru_cache(maxsize=2 * CELLS**2)
def _masks(cell: tuple[int, int], size: int) -> tuple[np.ndarray, np.ndarray]:
    """(shares that things cover of the cell's pixels, float32 [things, pixels]; sums of their squares [things])."""
    looks = ((Thing(Look(kind, _WHITE, shape), cell, offset),) for shape, kind, offset in _things())
    masks = np.stack([_window(draw(scene, size)[None], cell)[0, ..., 0].ravel() for scene in looks])
    masks = masks.astype(np.float32) / 255
    return masks, np.square(masks).sum(axis=1)


def _window(pictures: np.ndarray, cell: tuple[int, int]) -> np.ndarray:
    """The pixels of a cell, [N, h, w, C]."""
    size = pictures.shape[1]
    down, right = (slice(round(size * place / CELLS), round(size * (place + 1) / CELLS)) for place in cell)
    return pictures[:, down, right]
