"""The folder of an index of images: held by one process, of one model, with what its files were when last seen."""

import contextlib
import hashlib
import json
import logging
import pathlib
import time
from collections.abc import Iterator, Mapping

from tqdm import tqdm

from fmjax import file_lock
from fmjax.errors import DataError, InputError
from fmjax.small_files import read_json, write_whole

log = logging.getLogger("fmjax")

SETTLED = 2.0
"""Seconds after which a file that is written again has another time stamp."""


@contextlib.contextmanager
def held(directory: pathlib.Path) -> Iterator[None]:
    """The folder of an index, made where it is not there, for this process alone; another waits.

    Raises InputError for a folder of something else, and one that cannot be written.
    """
    if directory.is_dir() and not (directory / "index.json").is_file():
        others = sorted(path.name for path in directory.iterdir() if path.name != "lock" and path.name[0] != ".")
        if others:
            has = ", ".join(others[:3])
            raise InputError(f"{str(directory)!r} is no index: it has {has}; give a folder of its own")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = (directory / "lock").open("a")
    except OSError as error:
        raise InputError(f"the index {str(directory)!r} cannot be written: {error.strerror}; give another") from None
    with file:
        if not file_lock.take(file, directory):
            log.warning("waiting for another process that has the index %s", directory)
            file_lock.take(file, directory, wait=True)
        for leftover in directory.glob(".*.partial-*"):
            leftover.unlink()
        yield


def check_identity(directory: pathlib.Path, identity: Mapping[str, str]) -> None:
    """Writes whose index it is, or raises InputError where it is another's."""
    path = directory / "index.json"
    if not path.is_file():
        write_whole(path, json.dumps(identity, indent=2) + "\n")
        return
    kept = read_json(path, error=DataError)
    for key in ("folder", "model"):
        if kept.get(key) != identity[key]:
            there, here = (f"{one.get(key)} from {one.get('source')}" for one in (kept, identity))
            if key == "folder":
                there, here = kept.get(key), identity[key]
            else:
                here += " (by its weights, its codec and the code that computes)"
            raise InputError(
                f"the index {str(directory)!r} is of the {key} {there}, and not of {here}; give another, or remove it"
            )


def seen_files(directory: pathlib.Path, paths: Mapping[str, pathlib.Path], progress: str | None) -> dict[str, dict]:
    """For each file {"stamp", "content", "bad"}; what has the stamp that was seen last is not read again.

    `content` is None, and `bad` why, where a file cannot be opened. A file that was written just now has no stamp.
    """
    known = read_json(directory / "files.json", error=DataError) if (directory / "files.json").is_file() else {}
    found = {}
    label = None if progress is None else f"{progress}: files"
    for name, path in tqdm(paths.items(), desc=label, disable=progress is None, unit=" files"):
        try:
            state = path.stat()
            # The last of the three changes with any write, and cannot be set back.
            stamp = [state.st_size, state.st_mtime_ns, state.st_ctime_ns]
            if time.time() - state.st_ctime < SETTLED:
                stamp = None
            before = known.get(name)
            if before is not None and stamp is not None and before["stamp"] == stamp:
                found[name] = {"stamp": stamp, "content": before["content"], "bad": None}
                continue
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            found[name] = {"stamp": stamp, "content": content, "bad": None}
        except OSError as error:
            found[name] = {"stamp": None, "content": None, "bad": f"it cannot be read: {error.strerror}"}
    return found
