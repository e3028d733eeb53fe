"""What a task is: its documents, what each asks of the model, and how the answers add up.

A task sees the model through strings only, so every model that answers the requests can be evaluated. Its statistics
are sums over documents: order, batches and devices cannot change a score.
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fmjax.errors import DataError


@dataclasses.dataclass(frozen=True)
class Score:
    """Asks for the log-likelihood of `continuation` after `context`; answered by a `ScoreAnswer`."""

    context: str
    continuation: str


@dataclasses.dataclass(frozen=True)
class Rolling:
    """Asks for the log-likelihood of a whole text of any length; answered by a `RollingAnswer`."""

    text: str


@dataclasses.dataclass(frozen=True)
class Generate:
    """Asks for a continuation of `prompt`, ended before the first of `stop`; answered by a string."""

    prompt: str
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    temperature: float = 0.0


Request = Score | Rolling | Generate


class ScoreAnswer(NamedTuple):
    loglikelihood: float
    is_greedy: bool
    num_tokens: int


class RollingAnswer(NamedTuple):
    loglikelihood: float
    num_tokens: int


@dataclasses.dataclass(frozen=True)
class TaskContext:
    """What a task may read its documents from.

    Attributes:
      data_dir: folder with the tasks' files (`--data_dir`), or None.
      open_data: gives the `OpenData` of the model's own run.
    """

    data_dir: pathlib.Path | None = None
    open_data: Any = None

    def file(self, folder: str, *names: str) -> pathlib.Path:
        """The first of `data_dir/folder/name` that exists. Raises DataError saying what is missing and what to set."""
        if self.data_dir is None:
            raise DataError(
                f"needs {folder}/{names[0]}, and no folder with the tasks' files is set: "
                "give --data_dir=DIR, or set the variable FMJAX_DATA"
            )
        for name in names:
            if (self.data_dir / folder / name).is_file():
                return self.data_dir / folder / name
        raise DataError(
            f"needs {' or '.join(str(self.data_dir / folder / name) for name in names)}, which does not exist; "
            "give the folder with the tasks' files as --data_dir or FMJAX_DATA"
        )


class Task:
    """Base of the tasks. A task is constructed without arguments, or with one where its name takes it (`text:PATH`).

    Attributes:
      name: lm-evaluation-harness's name where it has the same task.
      version: changes whenever a change of the task changes scores.
      metrics: names of what `reduce` gives, the most important first.
      description: one line: what is measured, on what.
      needs: what it reads, for `--list`.
    """

    name: str
    version: str = "1"
    metrics: tuple[str, ...] = ()
    description: str = ""
    needs: str = ""

    def documents(self, context: TaskContext) -> Sequence[Any]:
        """All documents, in a fixed order. Raises DataError where they cannot be read."""
        raise NotImplementedError

    def requests(self, document: Any) -> list[Request]:
        """What a document asks of the model."""
        raise NotImplementedError

    def statistics(self, document: Any, answers: list) -> dict[str, float]:
        """Summable numbers from the answers to the document's requests, in their order."""
        raise NotImplementedError

    def reduce(self, totals: Mapping[str, float]) -> dict[str, float]:
        """Metrics from the statistics summed over documents, "documents" (their number) among them.

        By default each metric is the mean of the statistic of its name.
        """
        return {name: totals[name] / totals["documents"] for name in self.metrics}

    def record(self, document: Any) -> Any:
        """What the sample log keeps of a document (JSON-able)."""
        return document

    def headline(self, metrics: Mapping[str, float]) -> str:
        """One line for the terminal at the end of a training run."""
        return f"{self.name}: " + " | ".join(f"{name} {metrics[name]:.4g}" for name in self.metrics)


def read_text(path: pathlib.Path) -> str:
    """The text of a UTF-8 file exactly as it stands there, line ends too. Raises DataError where there is none."""
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        wrong = error.object[error.start]
        raise DataError(
            f"{str(path)!r} is not UTF-8: byte {wrong:#04x} at offset {error.start}; convert it first"
        ) from None
    if not text:
        raise DataError(f"{str(path)!r} is empty")
    return text


def exp(x: float) -> float:
    """e**x, infinite where that overflows: the perplexity of a model that all but excludes the text."""
    return math.exp(x) if x < 700 else math.inf
