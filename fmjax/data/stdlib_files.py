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

from fmjax.data.prepared import fingerprint
from fmjax.errors import DataError

SUFFIXES = (".py", ".rst", ".txt")
SKIPPED_FOLDERS = ("site-packages", "dist-packages", "__pycache__")
PYTHON_VERSION = "{}.{}.{}".format(*sys.version_info[:3])


def stdlib_folder() -> pathlib.Path:
    """Where the running interpreter keeps its library. Raises DataError where there are no source files."""
    folder = pathlib.Path(sysconfig.get_paths()["stdlib"])
    if not (folder / "os.py").is_file():
        raise DataError(
            f"the Python standard library has no source files at {folder}; give data.source a path to text instead"
        )
    return folder


def read_files(folder: pathlib.Path) -> Iterator[tuple[str, bytes]]:
    """(name, content) of every document file under `folder`, sorted by name; names are relative, with forward slashes.

    What cannot be read (a broken link, a file of another user's) is no document of this installation.
    """
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in SKIPPED_FOLDERS]
        found += [os.path.join(parent, file) for file in files if file.endswith(SUFFIXES)]
    start = len(os.path.join(folder, ""))
    for name, path in sorted((path[start:].replace(os.sep, "/"), path) for path in found):
        with contextlib.suppress(OSError):
            if os.path.isfile(path):  # opening a named pipe would wait for its writer
                with open(path, "rb") as file:
                    yield name, file.read()


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
    for name, raw in read_files(folder):
        text = decode(name, raw)
        if not text:
            continue
        digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
        if digest not in seen:
            seen.add(digest)
            yield name, text


def library_fingerprint(folder: pathlib.Path | None = None) -> str:
    """A hash of the Python version and of all the files' names and contents, by default of `stdlib_folder()`.

    Two installations of one Python version may differ: distributions drop the tests, and patch.
    """
    whole = hashlib.blake2b(digest_size=16)
    for name, raw in read_files(folder or stdlib_folder()):
        whole.update(f"{len(name.encode(errors='surrogateescape'))} {len(raw)} ".encode())
        whole.update(name.encode(errors="surrogateescape"))
        whole.update(raw)
    return fingerprint(PYTHON_VERSION, whole.hexdigest())
