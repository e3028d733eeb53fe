"""The folder of an evaluation: made before it begins, written to after each task, cleared of an earlier one's logs."""

import logging
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from fmjax.errors import InputError

log = logging.getLogger("fmjax")


def make_folders(output, answers) -> tuple[pathlib.Path | None, pathlib.Path | None]:
    """The folders of results and answers, made by process 0 where they are missing.

    Raises InputError where they cannot be made or written to.
    """
    import jax

    paths = {"output": pathlib.Path(output) if output else None, "answers": pathlib.Path(answers) if answers else None}
    if paths["answers"] is None and paths["output"] is not None:
        paths["answers"] = paths["output"] / "answers"
    for name, path in paths.items():
        if path is None or jax.process_index():
            continue
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = "it is a file" if path.is_file() else error.strerror
            raise InputError(f"--{name}={str(path)!r} cannot be made a folder: {reason}; give another") from None
        if not os.access(path, os.W_OK | os.X_OK):
            raise InputError(f"--{name}={str(path)!r} is not a folder that you may write to; give another")
    return paths["output"], paths["answers"]


def write(report: dict[str, Any], found, tasks, output: pathlib.Path) -> None:
    """Process 0 writes the results so far and the sample log of the last task; before the first, clears old ones."""
    import jax

    from fmjax.tasks.report import write_report
    from fmjax.tasks.sample_log import write_samples

    if jax.process_index():
        return
    if len(found) == 1:
        _clear(output, tasks)
    name = list(found)[-1]
    write_samples({name: found[name]}, output / "samples")
    write_report(report, output)


def _clear(output: pathlib.Path, tasks: Mapping[str, Any]) -> None:
    """Removes the sample logs of an earlier evaluation, as `results.json` will no longer know of them."""
    from fmjax.small_files import read_json
    from fmjax.tasks.sample_log import samples_file

    if not (output / "results.json").is_file():
        return
    try:
        before = read_json(output / "results.json", dict, InputError)
    except InputError:
        before = {}
    asked = before.get("tasks", {})
    for name in (names := list(before.get("results", {}))):
        (output / "samples" / samples_file(name)).unlink(missing_ok=True)
    now = {task.name for task in tasks.values()}
    if lost := [asked.get(name, name) for name in names if name not in now]:
        log.warning(
            "%s held results of %s, which these replace; their answers are kept, so that evaluating all together "
            "(--tasks=%s) computes none of them again",
            output, ", ".join(lost), ",".join([*lost, *tasks]),
        )  # fmt: skip
