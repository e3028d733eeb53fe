"""Captions of scenes: claims in words by templates, and the claim that words make."""

import functools
import itertools
import re
from collections.abc import Sequence

from fmjax.data.shapes.scenes import CELLS, COLOURS, COUNTS, SHAPES, SIZES, Claim, Look, Scene, is_true
from fmjax.errors import DataError

TEMPLATES = {
    "one": (
        "{thing} {place}",
        "there is {thing} {place}",
        "a picture of {thing} {place}",
        "this shows {thing} {place}",
        "this is a picture where you see {thing} {place}",
    ),
    "many": (
        "{things}",
        "there are {things}",
        "a picture of {things}",
        "this shows {things}",
        "this is a picture where you see {things}",
    ),
    "relation": (
        "{first} {relation} {second}",
        "there is {first} {relation} {second}",
        "a picture of {first} {relation} {second}",
        "{relation} {second} you see {first}",
        "this is a picture where {first} is {relation} {second}",
    ),
}
"""The words of each kind of claim. The last ones are held out; all their words but "where" occur in others."""

NUM_TEMPLATES = len(TEMPLATES["one"])
PLACES = (
    ("at the top left", "at the top", "at the top right"),
    ("on the left", "in the centre", "on the right"),
    ("at the bottom left", "at the bottom", "at the bottom right"),
)
_NUMBERS = {2: "two", 3: "three", 4: "four"}
_WORDS = {"above": ("above", "below"), "left": ("to the left of", "to the right of")}  # and from the other's side


def wordings(claim: Claim, templates: Sequence[int] = range(NUM_TEMPLATES)) -> list[str]:
    """All captions of a claim by the templates of these numbers: one of each, two of each of a relation."""
    if claim.kind != "relation":
        look = claim.looks[0]
        slots = {"thing": singular(look), "things": _plural(look, claim.count)}
        slots["place"] = "" if claim.cell is None else PLACES[claim.cell[0]][claim.cell[1]]
        sides = [slots]
    else:
        first, second = map(singular, claim.looks)
        here, there = _WORDS[claim.relation]
        sides = [
            {"first": first, "relation": here, "second": second},
            {"first": second, "relation": there, "second": first},
        ]
    return [" ".join(TEMPLATES[claim.kind][t].format(**side).split()) for t in templates for side in sides]


def _name(look: Look) -> str:
    return " ".join(word for word in (look.size, look.colour, look.shape) if word)


def singular(look: Look) -> str:
    """A thing in words, such as "a small red circle"."""
    name = _name(look)
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _plural(look: Look, count: int) -> str:
    return f"{_NUMBERS.get(count, '')} {_name(look)}{'es' if look.shape.endswith('s') else 's'}"


def claim_of(caption: str) -> Claim:
    """What a caption means. Raises DataError for one that is no wording of any claim."""
    for kind, templates in TEMPLATES.items():
        for template in templates:
            if parts := _pattern(template).fullmatch(caption):
                return _claim(kind, parts.groupdict())
    raise DataError(f"no caption of the world of shapes: {caption!r}; one is 'a small red circle at the top left'")


def is_true_of(caption: str, scene: Scene) -> bool:
    """Whether a caption is true of a scene. Raises DataError for one that is no wording of any claim."""
    return is_true(claim_of(caption), scene)


def _claim(kind: str, words: dict[str, str | None]) -> Claim:
    """The claim that the words in the slots of a template make."""
    if kind == "one":
        return Claim(kind, (_singulars()[words["thing"]],), cell=_cells().get(words["place"]))
    if kind == "many":
        look, count = _plurals()[words["things"]]
        return Claim(kind, (look,), count)
    looks = [_singulars()[words["first"]], _singulars()[words["second"]]]
    said = words["relation"]
    relation, order = next((name, sides.index(said)) for name, sides in _WORDS.items() if said in sides)
    return Claim(kind, tuple(reversed(looks) if order else looks), relation=relation)


@functools.cache
def _looks() -> list[Look]:
    return [Look(*chosen) for chosen in itertools.product((None, *SIZES), COLOURS, SHAPES)]


@functools.cache
def _singulars() -> dict[str, Look]:
    return {singular(look): look for look in _looks()}


@functools.cache
def _plurals() -> dict[str, tuple[Look, int]]:
    return {_plural(look, count): (look, count) for look in _looks() for count in COUNTS}


@functools.cache
def _cells() -> dict[str, tuple[int, int]]:
    return {PLACES[row][column]: (row, column) for row in range(CELLS) for column in range(CELLS)}


@functools.cache
def _pattern(template: str) -> re.Pattern:
    known = {
        "thing": _singulars(), "first": _singulars(), "second": _singulars(), "things": _plurals(), "place": _cells(),
        "relation": [words for sides in _WORDS.values() for words in sides],
    }  # fmt: skip
    pattern = template  # of plain words and slots
    for slot, values in known.items():
        words = f"(?P<{slot}>{'|'.join(values)})"
        if slot == "place":  # which may not be said
            pattern = pattern.replace(" {place}", f"(?: {words})?")
        pattern = pattern.replace(f"{{{slot}}}", words)
    return re.compile(pattern)
