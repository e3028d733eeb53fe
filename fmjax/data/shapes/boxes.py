"""What a decoder of captions is to write of scenes: a caption, the box of a thing that is told, or what is in a box
(LocCa, Wan et al. 2024: captioning, referring expression, grounded captioning)."""

import re

from fmjax.data.shapes.captions import singular
from fmjax.data.shapes.drawing import RADII
from fmjax.data.shapes.scenes import Scene, Thing
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


def written(scene: Scene, caption: str, draws: Draws) -> str:
    """One of, as `draws` say: "cap: CAPTION"; "aref: a red circle: TOP LEFT BOTTOM RIGHT"; "gcap: TOP LEFT BOTTOM
    RIGHT: a red circle". A scene of things that look alike, of which no words tell one, has the first alone."""
    apart = [thing for thing in scene if [other.look for other in scene].count(thing.look) == 1]
    task = draws.one_of(TASKS) if apart else CAPTION
    if task == CAPTION:
        return f"{CAPTION}: {caption}"
    thing = draws.one_of(apart)
    words, numbers = singular(thing.look), " ".join(map(str, box(thing)))
    return f"{REFER}: {words}: {numbers}" if task == REFER else f"{GROUND}: {numbers}: {words}"


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
