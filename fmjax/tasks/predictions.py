"""The answers of a classification task as a table: what a challenge wants submitted."""

import csv
import io
import pathlib
from collections.abc import Sequence

from fmjax.errors import InputError
from fmjax.small_files import write_whole
from fmjax.tasks.protocol import Prediction, Task


def check_predictions(path: pathlib.Path, tasks: Sequence[Task]) -> None:
    """Raises InputError where no such table of these tasks can be written."""
    if path.suffix.lower() != ".csv":
        raise InputError(f"predictions are a table: give FILE.csv, got {str(path)!r}")
    if not path.parent.is_dir():
        raise InputError(f"predictions={str(path)!r}: there is no folder {str(path.parent)!r}")
    if len(tasks) != 1:
        raise InputError(
            f"a file of predictions is of one task, and here are {len(tasks)}: "
            f"{', '.join(task.name for task in tasks)}; evaluate them one by one"
        )
    if type(tasks[0]).prediction is Task.prediction:
        raise InputError(f"task {tasks[0].name} is no classification: it has no predictions to write")


def write_predictions(predictions: Sequence[Prediction], path: pathlib.Path, probabilities: bool = False) -> None:
    """Writes `id,label`, a line a document in the order of the task, whole or not at all.

    probabilities: whether each class has a further column, by its name, with its probability.
    """
    classes = sorted({name for one in predictions for name in one.probabilities}) if probabilities else []
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["id", "label", *classes])
    for number, one in enumerate(predictions):
        name = str(number) if one.id is None else one.id
        writer.writerow([name, one.label, *(f"{one.probabilities[name]:.6g}" for name in classes)])
    write_whole(path, file.getvalue())
