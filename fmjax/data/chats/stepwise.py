"""Solutions whose steps were judged: what process rewards are learnt from."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np

from fmjax.data.base import Row
from fmjax.data.chats.corpus import ChatCorpus, ChatSplit, encode_record, tokenize_chats
from fmjax.data.chats.records import BadChat, Messages, question, read_tools
from fmjax.data.chats.sources import Reader
from fmjax.data.chats.templated import TemplatedData
from fmjax.data.sources import SplitSource
from fmjax.data.tokenizers.loading import Tokenizer
from fmjax.data.tokenizers.replies import joined_steps, step_places
from fmjax.errors import DataError, InputError

_STEPS = ("steps", "completions")
_NUMBERS = ("loss_weights", "step_labels")


@dataclasses.dataclass(frozen=True)
class Solution:
    """A reply of several steps, each judged.

    Attributes:
      prompt: messages up to the reply.
      steps: their texts; the reply has a line each.
      labels: of each, 1.0 where it is right; between 0 and 1 is a probability.
      where: of the record, for messages: file and row.
      tools: JSON schemas of functions that the assistant may call; None for none.
    """

    prompt: Messages
    steps: tuple[str, ...]
    labels: tuple[float, ...]
    where: str
    tools: list | None = None

    @property
    def messages(self) -> Messages:
        """All that is said."""
        return [*self.prompt, {"role": "assistant", "content": joined_steps(self.steps)}]


def read_solution(record: Any, where: str) -> Solution:
    """The judged steps of a record: `steps` (or `completions`), a list of texts, with as many `labels`, booleans or
    numbers from 0 to 1, and what they answer.

    Raises: DataError for a record of another shape; BadChat for one without steps, or with an empty one.
    """
    if not isinstance(record, Mapping):
        raise DataError(f"{where}: expected an object, found {type(record).__name__}")
    name = next((name for name in _STEPS if isinstance(record.get(name), list)), None)
    prompt, labels = question(record, where), record.get("labels")
    if name is None or prompt is None or not isinstance(labels, list):
        raise DataError(
            f"{where}: no judged steps. Found the fields {', '.join(map(str, record)) or 'nothing'}; expected 'steps' "
            "and 'labels', lists, with a prompt or messages"
        )
    steps = record[name]
    if len(steps) != len(labels):
        raise DataError(f"{where}: {len(steps)} {name} and {len(labels)} labels; each step has one")
    for index, (step, label) in enumerate(zip(steps, labels)):
        if not isinstance(step, str) or not isinstance(label, int | float) or not 0 <= label <= 1:
            raise DataError(f"{where}, {name}[{index}]: expected a text with a label from 0 to 1, found {label!r}")
    if not steps or not all(step.strip() for step in steps):
        raise BadChat(f"{where}: no steps, or an empty one")
    found = tuple(step.strip() for step in steps), tuple(map(float, labels))
    return Solution(prompt, *found, where, read_tools(record, where))


@dataclasses.dataclass(frozen=True)
class StepData(TemplatedData):
    """Solutions whose steps were judged, one a row, a line a step: `tokens`, `segment_ids`, `positions` int32 [T];
    `loss_weights` float32 [T], 1 at the token with a step's last character, and `step_labels` float32 [T] there.

    Attributes:
      source: where the records come from; None means "builtin", unless there is a mixture.
        builtin: sums in steps, some of them wrong from a step on.
        A file, a folder or a glob of .jsonl, .json or .parquet; package.module:Object: a sequence of records, or a
          function that gives one.
        A record has steps and labels: `read_solution`.
      sequence_length: tokens of a chat with its reply, T.
    """

    BUILTIN: ClassVar[str] = "fmjax.data.chats.arithmetic:solutions"
    READER: ClassVar[Reader] = staticmethod(read_solution)

    @property
    def example(self) -> dict[str, Any]:
        """The arrays of a row, known without reading any data."""
        ints = dict.fromkeys(("tokens", "segment_ids", "positions"), np.int32)
        kinds = ints | dict.fromkeys(_NUMBERS, np.float32)
        return {name: jax.ShapeDtypeStruct((self.sequence_length,), kind) for name, kind in kinds.items()}

    def _tokenize(self, source: SplitSource, tokenizer: Tokenizer, cache_dir: pathlib.Path, progress: bool):
        def encode(one: Solution):
            chat = encode_record([one.messages], one, tokenizer, "last")[0].to_its_end()
            weights, labels = np.zeros((2, len(chat.ids)), np.float32)
            try:
                places = step_places(chat, one.steps)
            except InputError as error:
                raise DataError(f"{one.where}: {error}") from None
            weights[places], labels[places] = 1.0, one.labels
            return [chat], {"loss_weights": weights.tolist(), "step_labels": labels.tolist()}

        return tokenize_chats(source.stream, encode, ["steps"], source, tokenizer, cache_dir, progress, _NUMBERS)

    def _rows(self, corpus: ChatCorpus, split: str) -> "StepRows":
        found = corpus.splits[split]
        return StepRows(found, self.example, np.flatnonzero(self._fitting(np.diff(found.offsets), split)))


class StepRows(Sequence):
    """Row i is solution `usable[i]` of a split, with the arrays of `example` (`StepData`)."""

    def __init__(self, split: ChatSplit, example: dict[str, jax.ShapeDtypeStruct], usable: np.ndarray):
        self._split, self._example, self._usable = split, example, usable

    def __len__(self) -> int:
        return len(self._usable)

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        start, end = self._split.offsets[int(self._usable[index]) :][:2].tolist()
        row = {name: np.zeros(kind.shape, kind.dtype) for name, kind in self._example.items()}
        size = end - start
        row["tokens"][:size], row["segment_ids"][:size] = self._split.tokens[start:end], 1
        row["positions"][:size] = np.arange(size)
        for name in _NUMBERS:
            row[name][:size] = self._split.numbers[name][start:end]
        return row
