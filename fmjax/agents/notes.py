"""Notes as memory: lines that are written down and found again, in the run alone or in a file beyond it."""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

from fmjax.agents.tools import Tool, ToolError, sound
from fmjax.errors import DataError
from fmjax.small_files import write_whole

MOST, SHOWN = 200, 5
"""Notes that are kept, and that are found at once."""


class Notes:
    """The notes, oldest first.

    Args:
      path: a file with a note a line, which is read and kept up to date; None keeps them in memory. Raises DataError
        for one that cannot be read.
    """

    def __init__(self, path: str | pathlib.Path | None = None):
        self._path = None if path is None else pathlib.Path(path).expanduser()
        known = self._path is not None and self._path.exists()
        try:
            self.lines = self._path.read_text(encoding="utf-8").splitlines() if known else []
        except OSError as error:
            raise DataError(f"the notes {path} cannot be read: {error.strerror}; name a file") from None
        except UnicodeDecodeError as error:
            raise DataError(f"the notes {path} are not UTF-8: {error}; convert them, or name another file") from None

    def add(self, text: str) -> None:
        """Writes a note down, as one line. Raises ToolError where there are too many, or it is empty."""
        line = " ".join(sound(text).split())
        if not line:
            raise ToolError("an empty note; say what to remember")
        if len(self.lines) >= MOST:
            raise ToolError(f"there are {MOST} notes already")
        if self._path is not None:
            write_whole(self._path, "".join(f"{one}\n" for one in [*self.lines, line]))
        self.lines.append(line)

    def found(self, about: str) -> list[str]:
        """The notes with most of the words of a text, newest first among equals; all of the newest where none has."""
        words = set(re.findall(r"\w+", about.lower()))
        shared = [len(words & set(re.findall(r"\w+", line.lower()))) for line in self.lines]
        order = sorted(range(len(self.lines)), key=lambda i: (-shared[i], -i))
        fitting = [i for i in order if shared[i]] or order
        return [self.lines[i] for i in fitting[:SHOWN]]


class Remember:
    name = "remember"
    description = "Writes a note down, to be found later with recall."
    parameters = {"note": {"type": "string"}}

    def __init__(self, notes: Notes):
        self._notes = notes

    def call(self, arguments: Mapping[str, Any]) -> str:
        self._notes.add(arguments["note"])
        return "noted"


class Recall:
    name = "recall"
    description = "Finds notes that were written down, by their words."
    parameters = {"about": {"type": "string"}}

    def __init__(self, notes: Notes):
        self._notes = notes

    def call(self, arguments: Mapping[str, Any]) -> str:
        return "\n".join(self._notes.found(arguments["about"])) or "there are no notes"


def note_tools(path: str | pathlib.Path | None = None) -> list[Tool]:
    """The two tools of one set of notes."""
    notes = Notes(path)
    return [Remember(notes), Recall(notes)]
