"""Tools by the names that commands and tasks give them."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from fmjax.agents.calculator import Calculator
from fmjax.agents.documents import Search, passages
from fmjax.agents.files import Folder, file_tools
from fmjax.agents.notes import Notes, note_tools
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


def check(names: Sequence[str], places: Places, transcript: str | None = None) -> None:
    """What can be known before a model is loaded: that tools are there, and that what they work on can be used.

    Raises InputError for a tool that is not known, or whose folder or sandbox is missing, for a transcript that is
    there already or has no folder, and for notes or a transcript inside the folder that the file tools write;
    DataError for documents and notes that cannot be read.
    """
    _check_names(names, places)
    if transcript is not None and pathlib.Path(transcript).expanduser().exists():
        raise InputError(f"--transcript={transcript} is there already; name another, or take it away")
    folder = Folder(places.files).path if "files" in names else None
    for flag, file in (("transcript", transcript), ("notes", places.notes)):
        if file is None:
            continue
        path = pathlib.Path(file).expanduser().resolve()
        if folder is not None and path.is_relative_to(folder):
            raise InputError(f"--{flag}={file} lies in --files={places.files}, which the model may write; name another")
        if not path.parent.is_dir():
            raise InputError(f"--{flag}={file}: there is no folder {str(path.parent)!r}; make it")
    if "search" in names:
        passages(places.documents)
    if "notes" in names:
        Notes(places.notes)
    if "python" in names:
        PythonCode()


def _check_names(names: Sequence[str], places: Places) -> None:
    """Raises InputError for a tool that is not known, or whose folder is not given."""
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

    embed: texts to vectors, for `search`. Raises InputError for a tool that is not known, and as the tools do.
    """
    _check_names(names, places)
    make = {
        "calculator": lambda: [Calculator()],
        "python": lambda: [PythonCode()],
        "search": lambda: [Search(passages(places.documents), embed)],
        "notes": lambda: note_tools(places.notes),
        "files": lambda: file_tools(places.files),
    }
    return [tool for name in names for tool in (make[name]() if name in make else [import_object(name, "tool")()])]
