"""Folders that are built once: whole or not there, whoever else is building them and whenever a process is killed."""

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import shutil
import time
import uuid
from collections.abc import Callable, Iterator

from fmjax.errors import DataError

try:
    import fcntl
except ImportError:  # no such locks on Windows; the atomic rename alone keeps the cache right
    fcntl = None

_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


def fingerprint(*parts: object) -> str:
    """A 32-digit hexadecimal hash of JSON-able `parts`: equal parts, equal fingerprint, on any machine."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def content_hash(path: pathlib.Path, cache_dir: pathlib.Path) -> str:
    """Hash of a file's bytes; remembered under `cache_dir` for as long as its size and time stay the same."""
    state = path.stat()
    stamp = [str(path.resolve()), state.st_size, state.st_mtime_ns]
    memory = cache_dir / "file_hashes" / f"{fingerprint(stamp[0])}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        remembered = json.loads(memory.read_text())
        if remembered["stamp"] == stamp:
            return remembered["hash"]
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    # A file written this very moment may change again within the resolution of its time stamp.
    if time.time() - state.st_mtime > 2:
        memory.parent.mkdir(parents=True, exist_ok=True)
        partial = memory.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps({"stamp": stamp, "hash": digest}))
        partial.replace(memory)
    return digest


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
    """Holds an exclusive lock on `path`; the system frees it when the process dies.

    Some network file systems have no locks: two processes may then build the same folder, which costs time only.
    """
    with open(path, "a") as file:
        if fcntl is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def build_once(
    target: pathlib.Path,
    build: Callable[[pathlib.Path], None],
    is_whole: Callable[[pathlib.Path], bool] = lambda folder: True,
) -> pathlib.Path:
    """Returns the folder `target`, calling `build(empty_folder)` first if it is not there.

    The folder is filled under another name and renamed when complete. A concurrent process waits and then uses the
    first one's work; what a killed process left behind is removed by the next build.

    Args:
      target: the folder wanted.
      build: fills the folder it is given. Whatever it raises is passed on and leaves nothing behind.
      is_whole: says whether an existing folder is undamaged (sizes as recorded, say); a damaged one is rebuilt.
    """
    if target.is_dir() and is_whole(target):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target.parent / f".{target.name}.lock"):
        if target.is_dir():
            if is_whole(target):
                return target
            shutil.rmtree(target)
        for leftover in target.parent.glob(f".{target.name}.partial-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        # Not tempfile.mkdtemp, whose folders nobody else may read: a cache may be shared.
        partial = target.parent / f".{target.name}.partial-{uuid.uuid4().hex[:12]}"
        try:
            partial.mkdir()
            build(partial)
            try:
                os.rename(partial, target)
            except OSError:
                # Where locks do not work, another process may have finished first: its folder is as good as ours.
                if not (target.is_dir() and is_whole(target)):
                    raise
        except OSError as error:
            if error.errno not in _UNWRITABLE:
                raise
            raise DataError(
                f"the cache {target.parent} cannot be written ({error.strerror}); make room there or choose another "
                "folder with the variable FMJAX_CACHE"
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return target
