"""Answers that were judged, some to a row: what rewards and preferences are learnt from."""

import dataclasses
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

import jax
import numpy as np

from fmjax.data.base import Row
from fmjax.data.chats.comparisons import Comparison, read_comparison, read_labelled
from fmjax.data.chats.corpus import ChatCorpus, ChatSplit, encode_record, tokenize_chats
from fmjax.data.chats.sources import Reader
from fmjax.data.chats.templated import TemplatedData
from fmjax.data.sources import SplitSource
from fmjax.data.tokenizers.loading import Tokenizer
from fmjax.errors import ConfigError, DataError
from fmjax.layers.checks import check_positive

_NUMBERS = ("scores", "margins", "reference_logprobs")


@dataclasses.dataclass(frozen=True)
class PreferenceData(TemplatedData):
    """Answers to the same chat, ranked: rows of K answers (`RankedRows`).

    Attributes:
      source: where the records come from; None means "builtin", unless there is a mixture.
        builtin: sums of small numbers, of which one answer is right.
        A file, a folder or a glob of .jsonl, .json or .parquet; a folder's files named train..., validation... are
          those splits.
        package.module:Object: a sequence of records, or a function that gives one.
        A record has chosen and rejected, or several answers with scores or ranks: `fmjax.data.chats.comparisons`.
      sequence_length: tokens of a chat with an answer, the one that ends it among them, T.
      num_answers: answers a row, K; a record with fewer leaves the rest of it empty, one with more is refused.
    """

    BUILTIN: ClassVar[str] = "fmjax.data.chats.arithmetic:preferences"
    READER: ClassVar[Reader] = staticmethod(read_comparison)

    num_answers: int = 2

    def __post_init__(self):
        super().__post_init__()
        check_positive(**{"data.num_answers": self.num_answers})

    @property
    def example(self) -> dict[str, Any]:
        """The arrays of a row, known without reading any data, but for `reference_logprobs`."""
        return _described(self.num_answers, self.sequence_length)

    def _tokenize(self, source: SplitSource, tokenizer: Tokenizer, cache_dir: pathlib.Path, progress: bool):
        def encode(one: Comparison):
            count = len(one.answers)
            if count > self.num_answers:
                raise DataError(
                    f"{one.where}: {count} answers, more than data.num_answers = {self.num_answers}; raise it"
                )
            known = one.reference_logprobs or [float("nan")] * count
            numbers = {"scores": one.scores, "margins": [one.margin], "reference_logprobs": known}
            return [chat.to_its_end() for chat in encode_record(one.chats(), one, tokenizer, "last")], numbers

        documents = lambda: self._documents(source.stream())
        parts = [type(self).__name__, self.num_answers]
        return tokenize_chats(documents, encode, parts, source, tokenizer, cache_dir, progress, _NUMBERS)

    def _documents(self, stream: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Comparison]]:
        """What becomes rows, of what the reader made of the records."""
        yield from stream

    def _rows(self, corpus: ChatCorpus, split: str) -> "RankedRows":
        return RankedRows(corpus.splits[split], self.num_answers, self.sequence_length, self._usable(corpus, split))

    def _usable(self, corpus: ChatCorpus, split: str) -> np.ndarray:
        """The records whose answers all fit into a row."""
        found = corpus.splits[split]
        lengths = np.diff(found.offsets)
        longest = np.maximum.reduceat(lengths, found.records[:-1]) if len(lengths) else lengths
        return np.flatnonzero(self._fitting(longest, split))


@dataclasses.dataclass(frozen=True)
class LabelledData(PreferenceData):
    """Single answers that were liked or not: rows of two (`RankedRows`), the answer, with score 1 or 0, and the answer
    to another chat behind this one's prompt, from which KTO tells how far the model is from its reference.

    Attributes:
      source: as in `PreferenceData`. A record has a boolean label, or is one of PreferenceData's with two answers,
        which makes a liked and a disliked one.
      num_answers: 2, and no other.
    """

    READER: ClassVar[Reader] = staticmethod(read_labelled)

    def __post_init__(self):
        super().__post_init__()
        if self.num_answers != 2:
            raise ConfigError(f"data.num_answers = {self.num_answers} is not for labelled answers; leave it out")

    def _documents(self, stream: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Comparison]]:
        """Each answer with that of the record before it; the first with the last's."""
        before: dict[str, Comparison] = {}
        first: dict[str, list[Comparison]] = {}
        for split, found in stream:
            if split in before:
                yield from ((split, _mismatched(one, before[split])) for one in found)
            else:
                first[split] = found
            before[split] = found[0]
        for split, found in first.items():
            if before[split] is found[0]:
                raise DataError(f"{found[0].where}: the only {split} record; KTO needs the answers to other chats too")
            yield from ((split, _mismatched(one, before[split])) for one in found)


def _mismatched(one: Comparison, other: Comparison) -> Comparison:
    """An answer, and the other's behind the same prompt."""
    return dataclasses.replace(one, answers=[*one.answers, *other.answers[:1]], scores=(*one.scores, 0.0))


def _described(num_answers: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of a row."""
    ints = dict.fromkeys(("tokens", "targets", "segment_ids", "positions"), ((num_answers, length), np.int32))
    floats = {"loss_weights": (num_answers, length), "scores": (num_answers,), "answer_weights": (num_answers,)}
    kinds = ints | {name: (shape, np.float32) for name, shape in floats.items()} | {"margins": ((), np.float32)}
    return {name: jax.ShapeDtypeStruct(*kind) for name, kind in kinds.items()}


class RankedRows(Sequence):
    """Rows of judged answers, built when asked for. With K answers and T places `rows[i]` has

      tokens: int32 [K, T], a chat each, up to the token that ends its answer; a reward is read there.
      targets: int32 [K, T], what follows each of them; 0 behind the last.
      segment_ids: int32 [K, T], 1 where there is a token and 0 behind.
      positions: int32 [K, T], from 0.
      loss_weights: float32 [K, T], 1 on the targets that are the answer's.
      scores: float32 [K]; higher is better.
      answer_weights: float32 [K], 1 where there is an answer.
      margins: float32 [].
      reference_logprobs: float32 [K], of the answers under a reference; only where all records have them.

    Args:
      split: the tokenised chats.
      usable: int [rows], the records that are rows.
    """

    def __init__(self, split: ChatSplit, num_answers: int, length: int, usable: np.ndarray):
        self._split, self._usable = split, usable
        self._example = _described(num_answers, length)
        known = ~np.isnan(split.numbers["reference_logprobs"])
        if known.any() and not known.all():
            raise DataError(
                f"{known.sum()} of {len(known)} answers have reference_logprobs; compute them for all, or take them out"
            )
        if known.any():
            self._example["reference_logprobs"] = jax.ShapeDtypeStruct((num_answers,), np.float32)

    def __len__(self) -> int:
        return len(self._usable)

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        split, record = self._split, int(self._usable[index])
        row = {name: np.zeros(kind.shape, kind.dtype) for name, kind in self._example.items()}
        first, last = split.records[record : record + 2].tolist()
        for place, chat in enumerate(range(first, last)):
            start, end = split.offsets[chat : chat + 2].tolist()
            size = end - start
            row["tokens"][place, :size] = split.tokens[start:end]
            row["targets"][place, : size - 1] = split.tokens[start + 1 : end]
            row["loss_weights"][place, : size - 1] = split.learnt[start + 1 : end]
            row["segment_ids"][place, :size] = 1
            row["positions"][place, :size] = np.arange(size)
        row["answer_weights"][: last - first] = 1
        for name in ("scores", "reference_logprobs"):
            if name in row:
                row[name][: last - first] = split.numbers[name][first:last]
        row["margins"] = np.asarray(split.numbers["margins"][record], np.float32)
        return row
