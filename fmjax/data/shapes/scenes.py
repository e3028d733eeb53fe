"""Scenes of coloured shapes, what can be said of them, and whether it is true.

A scene is one thing at a place, several equal things, or two things one above or beside the other. All are drawn from
raw bits named by (seed, split, index), so that scene i is the same on every machine and whatever else is read.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from fmjax.data.shuffle import Draws

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "cyan", "white")
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
SIZES = ("small", "large")
COUNTS = (2, 3, 4)
CELLS = 3  # places are the cells of a grid of this many rows and columns
RELATIONS = ("above", "left")
KINDS = ("one", "many", "relation")
MAX_JITTER = 0.04  # of the side; a thing's centre is up to this far from its cell's


@dataclasses.dataclass(frozen=True)
class Look:
    """What a thing looks like; the size is None where nothing is said of it."""

    size: str | None
    colour: str
    shape: str


@dataclasses.dataclass(frozen=True)
class Thing:
    """A shape in a picture: its look, its cell (row, column), and how far its centre is from the cell's (down, right),
    as shares of the picture's side."""

    look: Look
    cell: tuple[int, int]
    offset: tuple[float, float] = (0.0, 0.0)

    @property
    def centre(self) -> tuple[float, float]:
        """(down, right), from 0 to 1."""
        return tuple((place + 0.5) / CELLS + moved for place, moved in zip(self.cell, self.offset))


Scene = tuple[Thing, ...]


@dataclasses.dataclass(frozen=True)
class Claim:
    """What a caption says; equal for captions that mean the same.

    Attributes:
      kind: "one": there is such a thing; "many": there are exactly `count` such things; "relation": some first thing
        is above, or left of, some second thing: its row, or column, is the smaller one.
      looks: of the thing or things, two of a relation.
      count: of "many"; 1 of the others.
      cell: (row, column) of "one"; None where nothing is said of the place.
      relation: "above" or "left"; None of the other kinds. What is below or right is said the other way round.
    """

    kind: str
    looks: tuple[Look, ...]
    count: int = 1
    cell: tuple[int, int] | None = None
    relation: str | None = None

    @property
    def number(self) -> int:
        """A number of its own from 0 to `NUM_CLAIMS` - 1."""
        digits = lambda look: ((look.shape, SHAPES), (look.colour, COLOURS), (look.size, (None, *SIZES)))
        looks = [_digits(*digits(look)) for look in self.looks]
        if self.kind == "one":
            place = 0 if self.cell is None else 1 + self.cell[0] * CELLS + self.cell[1]
            return looks[0] * (CELLS**2 + 1) + place
        if self.kind == "many":
            return _ONE + looks[0] * len(COUNTS) + COUNTS.index(self.count)
        return _ONE + _MANY + (looks[0] * _LOOKS + looks[1]) * len(RELATIONS) + RELATIONS.index(self.relation)


def _digits(*chosen: tuple[object, Sequence]) -> int:
    number = 0
    for value, values in chosen:
        number = number * len(values) + values.index(value)
    return number


_LOOKS = len(SHAPES) * len(COLOURS) * (len(SIZES) + 1)
_ONE, _MANY = _LOOKS * (CELLS**2 + 1), _LOOKS * len(COUNTS)
NUM_CLAIMS = _ONE + _MANY + _LOOKS**2 * len(RELATIONS)


def is_true(claim: Claim, scene: Scene) -> bool:
    """Whether a scene is as a claim says."""
    found = [[thing for thing in scene if _looks(thing, look)] for look in claim.looks]
    if claim.kind == "one":
        return any(claim.cell in (None, thing.cell) for thing in found[0])
    if claim.kind == "many":
        return len(found[0]) == claim.count
    axis = RELATIONS.index(claim.relation)
    return any(first.cell[axis] < second.cell[axis] for first in found[0] for second in found[1])


def _looks(thing: Thing, look: Look) -> bool:
    seen = thing.look
    return (look.colour, look.shape) == (seen.colour, seen.shape) and look.size in (None, seen.size)


@dataclasses.dataclass(frozen=True)
class World:
    """Which scenes there are.

    Attributes:
      kinds: of scenes, among "one", "many" and "relation", equally often.
      heldout: (colour, shape) that only scenes of the split "combinations" show, each of them at least one.
      says_size, says_place: whether claims tell the size of things, and the place of a single one.
      seed: of the whole world.
    """

    kinds: tuple[str, ...] = KINDS
    heldout: tuple[tuple[str, str], ...] = ()
    says_size: bool = True
    says_place: bool = True
    seed: int = 0

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """(colour, shape) that are trained on."""
        return [(colour, shape) for shape in SHAPES for colour in COLOURS if (colour, shape) not in self.heldout]

    def claims(self) -> Iterator[Claim]:
        """All that may be said of a scene that is trained on, each once."""
        sizes = SIZES if self.says_size else (None,)
        looks = [Look(size, *pair) for size in sizes for pair in self.pairs]
        cells = itertools.product(range(CELLS), repeat=2) if self.says_place else [None]
        makers = {
            "one": lambda: (Claim("one", (look,), cell=cell) for cell in cells for look in looks),
            "many": lambda: (Claim("many", (look,), count) for count in COUNTS for look in looks),
            "relation": lambda: (
                Claim("relation", both, relation=relation)
                for relation in RELATIONS
                for both in itertools.product(looks, repeat=2)
            ),
        }
        return itertools.chain.from_iterable(makers[kind]() for kind in dict.fromkeys(self.kinds))

    def example(self, split: str, index: int) -> tuple[Scene, Claim]:
        """A scene and what is said of it, a pure function of (seed, split, index)."""
        draw = Draws("shapes", self.seed, split, index)
        kind, pairs = draw.one_of(self.kinds), self.pairs
        looks = [Look(draw.one_of(SIZES), *draw.one_of(pairs)) for _ in range(2)]
        if split == "combinations":
            looks[0] = Look(looks[0].size, *draw.one_of(self.heldout))
        said = [dataclasses.replace(look, size=look.size if self.says_size else None) for look in looks]
        if kind == "one":
            cell = _cells(draw, 1)[0]
            scene, claim = [(looks[0], cell)], Claim(kind, (said[0],), cell=cell if self.says_place else None)
        elif kind == "many":
            count = draw.one_of(COUNTS)
            scene, claim = [(looks[0], cell) for cell in _cells(draw, count)], Claim(kind, (said[0],), count)
        else:
            relation, line = draw.one_of(RELATIONS), draw.below(CELLS)
            places = sorted(draw.some(range(CELLS), 2))
            cells = [(place, line) if relation == "above" else (line, place) for place in places]
            if draw.below(2):
                looks, said = looks[::-1], said[::-1]
            scene, claim = list(zip(looks, cells)), Claim(kind, tuple(said), relation=relation)
        return tuple(Thing(look, cell, _offset(draw)) for look, cell in scene), claim


def _cells(draws: Draws, count: int) -> list[tuple[int, int]]:
    return [divmod(place, CELLS) for place in draws.some(range(CELLS**2), count)]


def _offset(draws: Draws) -> tuple[float, float]:
    return tuple(draws.uniform(-MAX_JITTER, MAX_JITTER) for _ in range(2))


def diagonal() -> tuple[tuple[str, str], ...]:
    """A colour of its own for each shape: held out, every colour and every shape is still seen with others."""
    return tuple(zip(COLOURS, SHAPES))


def combinations(scene: Scene) -> set[tuple[str, str]]:
    """(colour, shape) of the things of a scene."""
    return {(thing.look.colour, thing.look.shape) for thing in scene}


def light(colour: str) -> np.ndarray:
    """A colour as float32 [3], red, green and blue from 0 to 1."""
    return _LIGHT[COLOURS.index(colour)]


_LIGHT = np.array(
    [
        (0.9, 0.1, 0.1), (0.1, 0.7, 0.2), (0.2, 0.3, 1.0), (1.0, 0.9, 0.1),
        (0.6, 0.2, 0.8), (1.0, 0.5, 0.0), (0.1, 0.9, 0.9), (1.0, 1.0, 1.0),
    ],
    np.float32,
)  # fmt: skip
