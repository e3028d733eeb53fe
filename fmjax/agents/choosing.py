"""Tools by the names that commands and tasks give them."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from fmjax.agents.calculator import Calculator
from fmjax.agents.documents import Search, passages
from fmjax.agents.files import file_tools
from fmjax.agents.notes import note_tools
from fmjax.agents.python_code import PythonCode
from fmjax.agents.tools import Tool
from fmjax.errors import InputError
from fmjax.registry import import_object, nearest

NAMES = ("calculator", "python", "search", "notes", "files")


@dataclasses.dataclass(frozen=True)
class Places:
    """What tools work on.

    Attributes:
      documents: folder that `search` reads.
      files: folder of the file tools.
      notes: file of the notes; None keeps them in the run.
    """

    documents: str | None = None
    files: str | None = None
    notes: str | pathlib.Path | None = None


def usual(places: Places) -> list[str]:
    """Names of the tools where none are named: the calculator, notes, and those whose folders are given."""
    found = ["calculator", "notes"]
    return [*found, *["search"] * (places.documents is not None), *["files"] * (places.files is not None)]


def check(names: Sequence[str], places: Places) -> None:
    """Raises InputError for a tool that is not known, or whose folder is missing, before a model is loaded."""
    for name in names:
        if ":" not in name and name not in NAMES:
            known = f"{', '.join(NAMES)}, and import paths package.module:Class"
            raise InputError(f"there is no tool {name!r}{nearest(name, NAMES)} Known: {known}")
        if ":" in name:
            import_object(name, "tool")
    for name, folder in (("search", "documents"), ("files", "files")):
        if name in names and getattr(places, folder) is None:
            raise InputError(f"the tool {name} needs --{folder}=DIR")
        if name not in names and getattr(places, folder) is not None:
            raise InputError(f"--{folder} is for the tool {name}, which --tools leaves out")
    if "notes" not in names and places.notes is not None:
        raise InputError("--notes is for the tool notes, which --tools leaves out")


def made(names: Sequence[str], places: Places, embed: Callable[[list[str]], np.ndarray] | None = None) -> list[Tool]:
    """The tools of these names: some names stand for several.

    embed: texts to vectors, for `search`. Raises InputError as `check`, and as the tools do.
    """
    check(names, places)
    make = {
        "calculator": lambda: [Calculator()],
        "python": lambda: [PythonCode()],
        "search": lambda: [Search(passages(places.documents), embed)],
        "notes": lambda: note_tools(places.notes),
        "files": lambda: file_tools(places.files),
    }
    return [tool for name in names for tool in (make[name]() if name in make else [import_object(name, "tool")()])]
