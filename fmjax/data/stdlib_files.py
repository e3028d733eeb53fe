"""The Python standard library's own files as documents: which they are, their text, and which are held out.

Documents are the source files (`.py`) and documentation texts (`.txt`, `.rst`) that the running interpreter came
with. About 2% of them, chosen by a hash of the file's name, are held out; a file whose text is an exact copy of
another is left out, so no held-out document is in the training split.
"""

import contextlib
import hashlib
import io
import os
import pathlib
import sys
import sysconfig
import tokenize
from collections.abc import Iterator

from fmjax.data.cache import fingerprint
from fmjax.errors import DataError

SUFFIXES = (".py", ".rst", ".txt")
SKIPPED_FOLDERS = ("site-packages", "dist-packages", "__pycache__")
HELDOUT_FRACTION = 0.02
PYTHON_VERSION = "{}.{}.{}".format(*sys.version_info[:3])


def stdlib_folder() -> pathlib.Path:
    """Where the running interpreter keeps its library. Raises DataError where there are no source files."""
    folder = pathlib.Path(sysconfig.get_paths()["stdlib"])
    if not (folder / "os.py").is_file():
        raise DataError(
            f"the Python standard library has no source files at {folder}; give data.source a path to text instead"
        )
    return folder


def list_files(folder: pathlib.Path) -> list[tuple[str, int]]:
    """(name, size in bytes) of every document file under `folder`, sorted; names are relative, with forward slashes."""
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in SKIPPED_FOLDERS]
        for file in files:
            if file.endswith(SUFFIXES):
                path = pathlib.Path(parent, file)
                found.append((path.relative_to(folder).as_posix(), path.stat().st_size))
    return sorted(found)


def decode(name: str, raw: bytes) -> str | None:
    """The text of a file, line ends kept; None where the library's own tests hold bytes in no declared encoding.

    Python source is decoded as its PEP 263 cookie or byte-order mark says, any other text as UTF-8.
    """
    with contextlib.suppress(SyntaxError, UnicodeDecodeError):
        encoding = tokenize.detect_encoding(io.BytesIO(raw).readline)[0] if name.endswith(".py") else "utf-8"
        return raw.decode(encoding)
    return None


def read_documents(folder: pathlib.Path) -> Iterator[tuple[str, str]]:
    """(name, text) of the documents under `folder`: no empty ones, and of exact copies only the first by name."""
    seen = set()
    for name, _ in list_files(folder):
        text = decode(name, (folder / name).read_bytes())
        if not text:
            continue
        digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
        if digest not in seen:
            seen.add(digest)
            yield name, text


def library_fingerprint() -> str:
    """A hash of the Python version and of all the files' names and sizes.

    Two installations of one Python version may differ: distributions drop the tests.
    """
    return fingerprint(PYTHON_VERSION, list_files(stdlib_folder()))
