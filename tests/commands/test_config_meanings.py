"""A key's meaning is what the source of its dataclass says."""

import dataclasses
from typing import Annotated, Literal

from fmjax.commands.config_meanings import Key, keys_of, meanings
from fmjax.registry import Registry

KINDS = Registry("kind", {"round": "a:b", "square": "a:c"})


@dataclasses.dataclass(frozen=True)
class Base:
    """A base.

    Attributes:
      width: how wide it is, told
        on two lines.
      low, high: a bound.

    What stands below is no entry: it ends the block.
    """

    width: int
    low: float = 0.0
    high: float = 1.0
    depth: int | None = None  # how deep it is
    # how it is
    # called
    title: str = "x"


@dataclasses.dataclass(frozen=True)
class Derived(Base):
    """Derived.

    Attributes:
      length: as in measured.
      low: another bound.
      high: as in Base; of both.
    """

    length: int = 1
    untold: bool = True
    kind: Annotated[dict, KINDS] | None = None
    parts: dict[str, Base] | None = None
    mode: Literal["a", "b"] = "a"


def measured(length):
    """Measured.

    Args:
      length: how long it is.
    """


def test_docstrings_comments_references_and_bases():
    assert meanings(Derived) == {
        "width": "how wide it is, told on two lines.",
        "low": "another bound.",
        "high": "a bound; of both.",
        "depth": "how deep it is",
        "title": "how it is called",
        "length": "how long it is.",
    }


def test_keys_say_what_they_may_be():
    keys = {key.name: key for key in keys_of(Derived)}
    assert keys["width"] == Key("width", "int", None, "how wide it is, told on two lines.")
    assert (keys["depth"].type, keys["depth"].default) == ("int or None", "None")
    assert keys["untold"].meaning == ""
    assert keys["kind"].type == "None, or a section with the name round, square"
    assert keys["parts"].type.endswith("sections with names of your choice and the keys width, low, high, depth, title")
    assert keys["mode"].type == "'a' or 'b'"
