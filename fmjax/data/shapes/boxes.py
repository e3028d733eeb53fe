"""What a decoder of captions is to write of scenes: a caption, the box of a thing that is told, or what is in a box
(LocCa, Wan et al. 2024: captioning, referring expression, grounded captioning)."""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Iterator

from fmjax.data.shapes.captions import singular
from fmjax.data.shapes.drawing import RADII
from fmjax.data.shapes.scenes import COLOURS, SHAPES, SIZES, Look, Scene, Thing
from fmjax.data.shuffle import Draws

CAPTION, REFER, GROUND = TASKS = ("cap", "aref", "gcap")
"""What a text begins with: which of the three it is."""
PLACES = 100
"""Coordinates are whole numbers below this: places along a side."""

_BOX = re.compile(r"(\d+) (\d+) (\d+) (\d+)")


def box(thing: Thing) -> tuple[int, int, int, int]:
    """(top, left, bottom, right) of the circle that a thing lies in, in places."""
    (down, right), radius = thing.centre, RADII[thing.look.size]
    edges = (down - radius, right - radius, down + radius, right + radius)
    return tuple(min(max(round(edge * PLACES), 0), PLACES - 1) for edge in edges)


def written(scene: Scene, caption: str, draws: Draws, says_size: bool = True) -> str:
    """One of, as `draws` say: "cap: CAPTION"; "aref: a red circle: TOP LEFT BOTTOM RIGHT"; "gcap: TOP LEFT BOTTOM
    RIGHT: a red circle". A scene of things that are told alike, of which no words tell one, has the first alone.

    says_size: whether words tell the size of things.
    """
    said = [thing.look if says_size else dataclasses.replace(thing.look, size=None) for thing in scene]
    apart = [(thing, look) for thing, look in zip(scene, said) if said.count(look) == 1]
    task = draws.one_of(TASKS) if apart else CAPTION
    if task == CAPTION:
        return f"{CAPTION}: {caption}"
    thing, look = draws.one_of(apart)
    return _told(task, look, box(thing))


def _told(task: str, look: Look, edges: Iterable[int]) -> str:
    words, numbers = singular(look), " ".join(map(str, edges))
    return f"{REFER}: {words}: {numbers}" if task == REFER else f"{GROUND}: {numbers}: {words}"


def every_length(captions: Iterable[str], says_size: bool = True) -> Iterator[str]:
    """Texts among which is one as long as any that `written` may give of these captions' scenes: all captions, and each
    look with each place as all four edges of its box."""
    yield from (f"{CAPTION}: {caption}" for caption in captions)
    looks = itertools.product(SIZES if says_size else (None,), COLOURS, SHAPES)
    for look, place, task in itertools.product(looks, range(PLACES), (REFER, GROUND)):
        yield _told(task, Look(*look), [place] * 4)


def read_box(text: str) -> tuple[int, int, int, int] | None:
    """The first box in a text; None without one."""
    found = _BOX.search(text)
    return tuple(map(int, found.groups())) if found else None


def overlap(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> float:
    """Intersection over union of two boxes (top, left, bottom, right), from 0 to 1."""
    inside = [max(0, min(one[i + 2], other[i + 2]) - max(one[i], other[i])) for i in range(2)]
    area = lambda edges: (edges[2] - edges[0]) * (edges[3] - edges[1])
    shared = inside[0] * inside[1]
    whole = area(one) + area(other) - shared
    return shared / whole if whole > 0 else 0.0
