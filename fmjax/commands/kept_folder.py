"""Folders of kept rows (`fmjax.data.kept`), as commands write them: a file an array, a batch at a time; and those whose
making is interrupted and goes on."""

import contextlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from fmjax import file_lock
from fmjax.errors import InputError
from fmjax.small_files import read_json, write_whole

PROGRESS = "progress.json"


def write_rows(
    folder: pathlib.Path, batches: Iterator[dict[str, np.ndarray]], count: int, first: int = 0,
    written: Callable[[int], None] | None = None,
) -> None:  # fmt: skip
    """Writes a file an array, each of `count` rows, one batch at a time in memory.

    Args:
      first: the row that the first batch begins with; from row 1 on the files are there already.
      written: called after each batch, once it lies on disk, with how many rows there are by then.
    """
    files = {}
    for batch in batches:
        for name, array in batch.items():
            if name not in files:
                file = folder / f"{name}.npy"
                if first:
                    files[name] = np.load(file, mmap_mode="r+")
                else:
                    shape = (count, *array.shape[1:])
                    files[name] = np.lib.format.open_memmap(file, "w+", array.dtype, shape)
            files[name][first : first + len(array)] = array
        first += len(next(iter(batch.values())))
        if written is not None:
            for file in files.values():
                file.flush()
            written(first)
    for file in files.values():
        file.flush()


@contextlib.contextmanager
def continued(output: pathlib.Path, what: Mapping[str, Any]) -> Iterator[tuple[pathlib.Path, dict[str, int]]]:
    """(a folder to fill, how many rows of each split it has); once it is filled it is renamed to `output`.

    It lies beside it as `NAME.unfinished`, and stays when the process ends before: the next call goes on with it. What
    is done is told by `note_done`.

    what: all that its rows depend on, such as JSON has it.

    Raises InputError where what is there is of something else, or another process is filling it.
    """
    folder = output.with_name(f"{output.name}.unfinished")
    folder.mkdir(exist_ok=True)
    progress = folder / PROGRESS
    with open(folder / ".lock", "a") as lock:
        if not file_lock.take(lock, folder):
            raise InputError(f"another process is filling {folder}; wait for it, or choose another --output")
        what = json.loads(json.dumps(what))  # as it comes back from the file
        if progress.is_file():
            there = read_json(progress, error=InputError)["what"]
            rows = [(key, there.get(key), what.get(key)) for key in sorted({*there, *what})]
            listed = [f"  {key}: {old!r} there, {new!r} in this call" for key, old, new in rows if old != new]
            if listed:
                raise InputError(
                    f"{folder} was begun with something else:\n" + "\n".join(listed) + "\nGive the same to complete "
                    "it, remove it, or choose another --output."
                )
        else:
            write_whole(progress, json.dumps({"what": what, "done": {}}))
        yield folder, dict(read_json(progress, error=InputError)["done"])
        if output.exists():
            raise InputError(f"{output} has come to be there meanwhile; what was made lies in {folder}")
        os.remove(lock.name)
        shutil.move(folder, output)
    # Last: without it the rows would be taken for none, and made again.
    (output / PROGRESS).unlink()


def note_done(folder: pathlib.Path, split: str, rows: int) -> None:
    """So many rows of a split of a folder that `continued` gave lie on disk."""
    found = read_json(folder / PROGRESS, error=InputError)
    write_whole(folder / PROGRESS, json.dumps({**found, "done": {**found["done"], split: rows}}))
