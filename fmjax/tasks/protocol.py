"""What a task is: its documents, what each asks of the model, and how the answers add up.

A task sees the model through requests only, so every model that answers them can be evaluated, and prompting,
probing, fine-tuning, retrieval, generation and control are one protocol. Its statistics are sums over documents:
order, batches and devices cannot change a score.
"""

import dataclasses
import hashlib
import json
import math
import pathlib
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fmjax.data.codecs.media import Media
from fmjax.errors import DataError, InputError


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
    """Asks for a continuation of `prompt`, ended before the first of `stop`; answered by a string.

    sample: tells several continuations of one prompt apart, where they are drawn (temperature above 0).
    chat: the prompt, examples included, is a user's message, and the continuation the assistant's reply to it, by the
      tokenizer's chat template where it has one; a model without gets the prompt as it is. `results.json` says which
      under "details".
    choices: the continuation is one of these texts, by the model's distribution over them alone
      (`fmjax.inference.constraints`; not with `stop`); empty for any text.
    """

    prompt: str
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    sample: int = 0
    chat: bool = False
    choices: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Apply:
    """Asks for a named pure function of the model; answered by a number, a string or (nested) lists of numbers.

    Attributes:
      function: "embed" and the others of `fmjax.tasks.functions`, an ability of the model ("classify"), those that
        `Task.adapt` added ("class_logits"), or an import path `package.module:function` of a function (model, list of
        inputs) -> list of answers. Where its answers depend on more than the model and the inputs, such as a file that
        these name, it has `depends_on(model, inputs)`, which says by what content (JSON-able; empty for nothing), so
        that no stored answer of another is taken.
      inputs: a string, `Media` such as an image, or nested tuples of strings, numbers and media.
    """

    function: str
    inputs: Any


@dataclasses.dataclass(frozen=True)
class Rollout:
    """Asks for one episode of the model in an environment; answered by the episode's summary, a dict of numbers.

    Attributes:
      environment: a name of `fmjax.tasks.environments`, or an import path.
      seed: of everything random in the episode.
      prompt: text before the environment's own observations, for models that read text.
    """

    environment: str
    seed: int
    prompt: str = ""


Request = Score | Rolling | Generate | Apply | Rollout


def request_fields(request: Request, media=Media.key) -> dict[str, Any]:
    """The fields of a request as JSON holds them.

    media: what stands for a `Media`: what tells it from another (`Media.key`), or that with its name (`Media.record`).
    """
    return {field.name: plain(getattr(request, field.name), media) for field in dataclasses.fields(request)}


def plain(value: Any, media=Media.record) -> Any:
    """`Media` as `media` gives it, wherever it stands in dicts, lists and tuples, which become lists."""
    if isinstance(value, Media):
        return media(value)
    if isinstance(value, Mapping):
        return {key: plain(one, media) for key, one in value.items()}
    return [plain(one, media) for one in value] if isinstance(value, list | tuple) else value


class ScoreAnswer(NamedTuple):
    loglikelihood: float
    is_greedy: bool
    num_tokens: int


class RollingAnswer(NamedTuple):
    loglikelihood: float
    num_tokens: int


class Prediction(NamedTuple):
    """What a model takes a document for.

    Attributes:
      id: names the document; None is its number.
      label: of the likeliest class.
      probabilities: of all classes, by their names.
    """

    id: str | None
    label: str
    probabilities: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class TaskContext:
    """What a task may read its documents from.

    Attributes:
      data_dir: folder with the tasks' files (`--data_dir`), or None.
      open_data: gives the `OpenData` of the model's own run.
      run_source: where the run's config says that its data are (`data.source`); "" where it says nothing.
      run_data: the section `data` of the run's config; empty where there is none.
      seed: of everything random that a task does, such as training a probe.
      read: what was found so far, files by "folder/name" and TFDS splits by "tfds:NAME:SPLIT", each with the digest of
        its contents: what the same name may stand for elsewhere is not the same data. `results.json` states it.
    """

    data_dir: pathlib.Path | None = None
    open_data: Any = None
    seed: int = 0
    run_source: str = ""
    run_data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    read: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict, compare=False)

    def find(self, folder: str, *names: str) -> pathlib.Path | None:
        """The first of `data_dir/folder/name` that exists, None where none does: a task then looks elsewhere."""
        if self.data_dir is None:
            return None
        for name in names:
            path = self.data_dir / folder / name
            if path.is_file():
                self.note(f"{folder}/{name}", path)
                return path
        return None

    def note(self, name: str, path: pathlib.Path) -> None:
        """Puts a file under `name` among what is read. One that cannot be read is left to its reader to refuse."""
        if name not in self.read:
            try:
                data = path.read_bytes()
            except OSError:
                return
            self.read[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    def file(self, folder: str, *names: str) -> pathlib.Path:
        """The first of `data_dir/folder/name` that exists. Raises DataError saying what is missing and what to set."""
        if path := self.find(folder, *names):
            return path
        if self.data_dir is None:
            raise DataError(
                f"needs {folder}/{names[0]}, and no folder with the tasks' files is set: "
                "give --data_dir=DIR, or set the variable FMJAX_DATA"
            )
        raise DataError(
            f"needs {' or '.join(str(self.data_dir / folder / name) for name in names)}, which does not exist; "
            "give the folder with the tasks' files as --data_dir or FMJAX_DATA"
        )

    def tfds(self, words: str, instead: str) -> list[dict[str, Any]]:
        """Records of a TFDS split, "NAME[/CONFIG]:SPLIT", downloaded and prepared if that is not done yet.

        For tasks whose file `find` did not find; `instead` names that file for the message. Raises DataError.
        """
        from fmjax.tasks.reading import read_tfds

        records = read_tfds(words, instead, self.data_dir)
        content = json.dumps(records, sort_keys=True, default=str).encode()
        self.read[f"tfds:{words}"] = {"records": len(records), "sha256": hashlib.sha256(content).hexdigest()}
        return records


class Task:
    """Base of the tasks. A task is constructed without arguments, or with one where its name takes it (`text:PATH`).

    Attributes:
      name: lm-evaluation-harness's name where it has the same task.
      version: changes whenever a change of the task changes scores.
      metrics: names of what `reduce` gives, the most important first.
      description: one line: what is measured, on what.
      needs: what it reads and its licence, for `--list`.
      uses: what it asks of the model: "score", "rolling", "generate", "rollout", the name of a function of `Apply`, or,
        where it adapts the model, "adapt" to texts and "adapt:MODALITY" to other values. A model without one of them is
        refused before anything is computed.
      num_shots: solved examples in front of each context or prompt, unless the caller says otherwise.
      preamble: text in front of the examples.
      separator: text after each example.
      subsets: what may stand behind the name, `NAME_SUBSET`, and is then given to the constructor.
      examples_in_order: whether the examples are the first ones, in their order, instead of drawn for each document,
        whatever their order.
      labels: what the task's template puts at the beginning of lines, in contexts and prompts, around the document's
        own text: perturbations leave it as it is.
      positive: metrics that are above zero by their nature, such as perplexities: where two standard errors reach zero,
        the resamples spread too widely for one, and there is none.
      gap_in_context: whether the contexts of one document, where they differ, are one text whose gap is filled in
        several ways, so that a perturbation must leave them different there alone.
    """

    name: str
    version: str = "1"
    metrics: tuple[str, ...] = ()
    description: str = ""
    needs: str = ""
    uses: tuple[str, ...] = ("score",)
    num_shots: int = 0
    preamble: str = ""
    separator: str = "\n\n"
    subsets: tuple[str, ...] = ()
    examples_in_order: bool = False
    labels: Sequence[str] = ("Question:", "Answer:", "Passage:", "Q:", "A:")
    positive: tuple[str, ...] = ()
    gap_in_context: bool = False

    @property
    def adapts(self) -> bool:
        """Whether the model that answers is another than the one given (`adapt`)."""
        return any(use.partition(":")[0] == "adapt" for use in self.uses)

    def check(self) -> None:
        """Raises InputError where something is missing that the task needs besides files, such as a package."""

    def documents(self, context: TaskContext) -> Sequence[Any]:
        """All documents, in a fixed order. Raises DataError where they cannot be read."""
        raise NotImplementedError

    def examples(self, context: TaskContext) -> Sequence[Any] | None:
        """Documents that the examples in a prompt are drawn from; None where the task takes none.

        They may be the documents themselves: a document is never among its own examples, and neither is one that
        `asks` the same.
        """
        return None

    def example(self, document: Any) -> str:
        """A solved document as it stands in a prompt."""
        raise NotImplementedError

    def asks(self, document: Any) -> Hashable:
        """What a document asks, by which it is told from its examples: one that asks the same may show the answer.

        By default the context or prompt of its first request, and the document itself where that has none.
        """
        first = next(iter(self.requests(document)), None)
        text = first.context if isinstance(first, Score) else first.prompt if isinstance(first, Generate) else ""
        return text or self.key(document)

    def example_group(self, document: Any) -> Hashable:
        """A document's examples are those of the same group, such as a subject."""
        return None

    def preamble_of(self, document: Any) -> str:
        """Text in front of the examples, where it depends on the document."""
        return self.preamble

    def adapt(self, model, context: TaskContext):
        """The model that answers the requests: itself, or one trained on the task's training documents."""
        return model

    def requests(self, document: Any) -> list[Request]:
        """What a document asks of the model."""
        raise NotImplementedError

    def gather(self, model, documents: Sequence[Any], answers: Sequence[list]) -> None:
        """Looks at all documents with the answers of each, before any one's statistics: of a task whose statistics of
        one document depend on the others. `model` is the one that answered."""

    def statistics(self, document: Any, answers: list) -> dict[str, float]:
        """Summable numbers from the answers to the document's requests, in their order."""
        raise NotImplementedError

    def prediction(self, document: Any, answers: list) -> Prediction | None:
        """What the answers take the document for; None of a task that is no classification."""
        return None

    def reduce(self, totals: Mapping[str, float]) -> dict[str, float]:
        """Metrics from the statistics summed over documents, "documents" (their number) among them.

        By default each metric is the mean of the statistic of its name. A metric that these documents say nothing
        about, such as that of a group without any, is left out.
        """
        if missing := [name for name in self.metrics if name not in totals]:
            raise InputError(
                f"task {self.name}: no statistic is called {', '.join(map(repr, missing))}, whose mean is the metric "
                f"of that name; statistics() gives {', '.join(map(repr, totals))}. Add it there, or override reduce()"
            )
        return {name: totals[name] / totals["documents"] for name in self.metrics}

    # A metric that is no function of sums (such as a calibration error over bins of equal mass) overrides this one.
    def reduce_documents(self, statistics: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Metrics from the statistics of each document, float64 [documents] by name."""
        return self.reduce({name: math.fsum(values) for name, values in statistics.items()})

    @property
    def is_summable(self) -> bool:
        """Whether the metrics are functions of the statistics' sums alone."""
        return type(self).reduce_documents is Task.reduce_documents

    def cluster(self, document: Any) -> Hashable | None:
        """What documents of one source share, such as a passage: standard errors resample whole clusters."""
        return None

    def key(self, document: Any) -> str:
        """Names a document by its content, whatever its place: random choices and comparisons go by it."""
        content = json.dumps(plain(document, Media.key), sort_keys=True, default=str)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def record(self, document: Any) -> Any:
        """What the sample log keeps of a document (JSON-able; of a `Media` it keeps fingerprint and name)."""
        return document

    def details(self) -> dict[str, Any]:
        """What the metrics' names leave open and `results.json` states (JSON-able), such as a library's signature.

        "card", a dict, is the protocol of a score: evaluations whose cards differ are not compared."""
        return {}

    def headline(self, metrics: Mapping[str, float]) -> str:
        """One line for the terminal at the end of a training run."""
        return f"{self.name}: " + " | ".join(f"{name} {metrics[name]:.4g}" for name in self.metrics if name in metrics)


def exp(x: float) -> float:
    """e**x, infinite where that overflows: the perplexity of a model that all but excludes the text."""
    return math.exp(x) if x < 700 else math.inf
