"""Small files in one folder, which nothing leads out of."""

import contextlib
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from fmjax.agents.tools import Tool, ToolError
from fmjax.errors import InputError
from fmjax.small_files import replacing

LARGEST = 100_000
"""Bytes of a file that is read or written."""

MOST_FILES = 100
"""Files that the folder may have."""


class Folder:
    """A folder that names are looked up in. Raises InputError where it is none."""

    def __init__(self, path: str | pathlib.Path):
        self.path = pathlib.Path(path).expanduser().resolve()
        if not self.path.is_dir():
            raise InputError(f"{str(path)!r} is not a folder; make it, or name another")

    def names(self) -> list[str]:
        """Names of its files, those of folders in it with /, in order."""
        files = (path for path in self.path.rglob("*") if path.is_file() and not path.is_symlink())
        return sorted(path.relative_to(self.path).as_posix() for path in files)

    def find(self, name: str) -> pathlib.Path:
        """Where a name lies. Raises ToolError for one that leads out of the folder, links included."""
        if not name.strip() or "\0" in name:
            raise ToolError(f"{name!r} is no name of a file")
        path = (self.path / name).resolve()
        if not path.is_relative_to(self.path) or path == self.path:
            raise ToolError(f"{name!r} is not in the folder; give a name alone, such as notes.txt")
        return path

    def read(self, name: str) -> str:
        """The text of a file. Raises ToolError."""
        with _naming(name):
            path = self.find(name)
            if not path.is_file():
                raise ToolError(f"there is no file {name!r}; there are {', '.join(self.names()[:20]) or 'none'}")
            if (size := path.stat().st_size) > LARGEST:
                raise ToolError(f"{name!r} has {size} bytes, more than {LARGEST}")
            data = path.read_bytes()
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise ToolError(f"{name!r} is no text in UTF-8") from None

    def write(self, name: str, text: str) -> None:
        """Writes a file whole, in place of what it had. Raises ToolError."""
        data = text.encode("utf-8", errors="replace")
        if len(data) > LARGEST:
            raise ToolError(f"{len(data)} bytes are more than a file may have, {LARGEST}")
        with _naming(name):
            path = self.find(name)
            if path.is_dir():
                raise ToolError(f"{name!r} is a folder")
            if not path.exists() and len(self.names()) >= MOST_FILES:
                raise ToolError(f"the folder has {MOST_FILES} files already; write to one of them")
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as partial:
                partial.write_bytes(data)


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    """What the system refuses as a ToolError of the name that was given: a model is told no paths of the machine."""
    try:
        yield
    except OSError as error:
        raise ToolError(f"{name[:100]!r}: {error.strerror or 'it cannot be used'}") from None


class ListFiles:
    name = "list_files"
    description = "Lists the names of the files."
    parameters: Mapping[str, Mapping[str, Any]] = {}

    def __init__(self, folder: Folder):
        self._folder = folder

    def call(self, arguments: Mapping[str, Any]) -> str:
        return "\n".join(self._folder.names()) or "there are no files"


class ReadFile:
    name = "read_file"
    description = "Gives the text of a file."
    parameters = {"name": {"type": "string"}}

    def __init__(self, folder: Folder):
        self._folder = folder

    def call(self, arguments: Mapping[str, Any]) -> str:
        return self._folder.read(arguments["name"])


class WriteFile:
    name = "write_file"
    description = "Writes a text to a file, in place of what it had."
    parameters = {"name": {"type": "string"}, "text": {"type": "string"}}

    def __init__(self, folder: Folder):
        self._folder = folder

    def call(self, arguments: Mapping[str, Any]) -> str:
        self._folder.write(arguments["name"], arguments["text"])
        return f"wrote {len(arguments['text'])} characters to {arguments['name']}"


def file_tools(path: str | pathlib.Path) -> list[Tool]:
    """The three tools of a folder."""
    folder = Folder(path)
    return [ListFiles(folder), ReadFile(folder), WriteFile(folder)]
