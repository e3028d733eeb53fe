"""The sample log of an evaluation: `samples/TASK.jsonl`, a document a line, with its requests and answers."""

import json
import math
import pathlib
import re
from collections import Counter
from collections.abc import Mapping

import jax

from fmjax.data.tokenizers.base import digest
from fmjax.errors import DataError
from fmjax.small_files import write_whole


def write_samples(results: Mapping, folder: pathlib.Path) -> None:
    """Process 0 writes `folder/TASK.jsonl` for each `TaskResult` of the results.

    JSON has no infinity and no NaN: they are written as the texts "Infinity", "-Infinity" and "NaN", as Protocol
    Buffers' JSON does, which `float` reads.
    """
    if jax.process_index():
        return
    folder.mkdir(parents=True, exist_ok=True)
    for name, result in results.items():
        lines = [json.dumps(_named(sample), ensure_ascii=False, allow_nan=False) + "\n" for sample in result.samples]
        write_whole(folder / samples_file(name), "".join(lines))


def _named(value):
    """With texts for the numbers that JSON lacks."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {key: _named(one) for key, one in value.items()}
    return [_named(one) for one in value] if isinstance(value, list | tuple) else value


def samples_file(task: str) -> str:
    """The name of a task's sample log.

    Signs that file names cannot hold become "_", and a digest then tells tasks apart whose names differ in them alone.
    """
    name = re.sub(r"[^A-Za-z0-9._+-]+", "_", task)[:150]
    return f"{name}.jsonl" if name == task else f"{name}-{digest(task.encode())[:8]}.jsonl"


def read_samples(folder: str | pathlib.Path, task: str) -> dict[tuple[str, int], dict]:
    """The sample log of a task by document, of equal ones the first, second, ... apart.

    Raises DataError where it is missing or damaged.
    """
    path = pathlib.Path(folder) / "samples" / samples_file(task)
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        seen, found = Counter(), {}
        for row in rows:
            row["statistics"] = {name: float(value) for name, value in row["statistics"].items()}
            found[row["key"], seen[row["key"]]] = row
            seen[row["key"]] += 1
        return found
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{str(path)!r} cannot be read as a sample log ({error}); evaluate again") from None
