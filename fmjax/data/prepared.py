"""Folders that are built once: whole or not there, whoever else is building them and whenever a process is killed."""

import contextlib
import errno
import hashlib
import json
import logging
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator

from fmjax import file_lock
from fmjax.errors import DataError
from fmjax.small_files import replacing, write_whole

log = logging.getLogger("fmjax")

SIZES = "sizes.json"  # in every folder built here: what its files' sizes were when it was complete
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


def fingerprint(*parts: object) -> str:
    """A 32-digit hexadecimal hash of JSON-able `parts`: equal parts, equal fingerprint, on any machine."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def content_hash(path: pathlib.Path, cache_dir: pathlib.Path) -> str:
    """Hash of a file's bytes; remembered under `cache_dir` for as long as its size and time stay the same.

    Raises DataError when the file cannot be read. Where the cache cannot be written (one that is shared may be
    read-only) the file is hashed again next time.
    """
    try:
        state = path.stat()
        stamp = [str(path.resolve()), state.st_size, state.st_mtime_ns]
        memory = cache_dir / "file_hashes" / f"{fingerprint(stamp[0])}.json"
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            remembered = json.loads(memory.read_text())
            if remembered["stamp"] == stamp:
                return remembered["hash"]
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    # A file written this very moment may change again within the resolution of its time stamp.
    if time.time() - state.st_mtime > 2:
        try:
            memory.parent.mkdir(parents=True, exist_ok=True)
            write_whole(memory, json.dumps({"stamp": stamp, "hash": digest}))
        except OSError as error:
            log.info("the hash of %s cannot be kept in %s (%s)", path, memory.parent, error.strerror)
    return digest


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
    """Holds an exclusive lock on `path`; the system frees it when the process dies.

    Some network file systems have no locks: two processes may then build the same folder, which costs time only.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a")
    except OSError as error:
        raise _unwritable(path.parent, error) from error
    with file:
        file_lock.take(file, path, wait=True)
        yield


def _unwritable(folder: pathlib.Path, error: OSError) -> DataError:
    return DataError(
        f"the cache {folder} cannot be written ({error.strerror}); make room there, or choose a folder that can be "
        "written with the variable FMJAX_CACHE"
    )


def build_once(target: pathlib.Path, build: Callable[[pathlib.Path], None]) -> pathlib.Path:
    """Returns the folder `target`, calling `build(empty_folder)` first if it is not there.

    The folder is filled under another name and renamed when complete, with a list of its files' sizes. A concurrent
    process waits and then uses the first one's work; what a killed process left behind is removed by the next build;
    a folder whose files have lost their sizes since is built again, with a warning.

    Args:
      target: the folder wanted.
      build: fills the folder it is given. Whatever it raises is passed on and leaves nothing behind.

    Raises: DataError when the folder cannot be written.
    """
    try:
        if target.is_dir() and _damage(target) is None:
            return target
    except OSError as error:
        raise _unwritable(target.parent, error) from error
    with _locked(target.parent / f".{target.name}.lock"):
        if target.is_dir():
            damage = _damage(target)
            if damage is None:
                return target
            log.warning("The cached folder %s is damaged (%s): building it again.", target, damage)
        try:
            if target.exists():
                shutil.rmtree(target)
            for leftover in target.parent.glob(f".{target.name}.partial-*"):
                shutil.rmtree(leftover, ignore_errors=True)
            try:
                with replacing(target) as partial:
                    partial.mkdir()
                    build(partial)
                    sizes = {name: path.stat().st_size for name, path in _files(partial)}
                    (partial / SIZES).write_text(json.dumps(sizes))
            except OSError:
                # Where locks do not work, another process may have finished first: its folder is as good as ours.
                if not (target.is_dir() and _damage(target) is None):
                    raise
        except OSError as error:
            # What `build` reads may lie elsewhere; a write that fails for want of space names no file.
            named = None if error.filename is None else pathlib.Path(os.fsdecode(error.filename)).absolute()
            if error.errno not in _UNWRITABLE or (named and target.parent.absolute() not in named.parents):
                raise
            raise _unwritable(target.parent, error) from error
    return target


def _files(folder: pathlib.Path) -> Iterator[tuple[str, pathlib.Path]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix(), path


def _damage(folder: pathlib.Path) -> str | None:
    """What is wrong with a built folder, by its files' sizes; None for nothing."""
    try:
        sizes = json.loads((folder / SIZES).read_text())
        for name, size in sizes.items():
            found = (folder / name).stat().st_size
            if found != size:
                return f"{name} has {found} bytes instead of {size}"
    except (OSError, ValueError, AttributeError) as error:
        return str(error)
    return None
