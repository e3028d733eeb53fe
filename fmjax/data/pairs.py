"""Parallel text for sequence-to-sequence models: pairs tokenised once, packed by index, masked by segment ids."""

import dataclasses
import logging
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from fmjax.data import parallel_text
from fmjax.data.base import OpenData, Row, described
from fmjax.data.corpus import Corpus, TokenizedSplit, tokenize_corpus
from fmjax.data.documents import ShuffledRows, chosen_documents
from fmjax.data.formats import check_encoding
from fmjax.data.packing import PLAN_VERSION, pack_pairs
from fmjax.data.parallel_text import ParallelSource
from fmjax.data.prepared import fingerprint
from fmjax.data.run_tokenizer import check_vocabulary, open_tokenizer
from fmjax.data.shuffle import shuffled
from fmjax.data.sources import SourceSpec, SplitSource, identity_of, split_evaluation, split_train
from fmjax.data.tokenizers.loading import Tokenizer
from fmjax.errors import ConfigError, DataError
from fmjax.layers.checks import check_choice, check_positive

log = logging.getLogger("fmjax")

SIDES = ("source", "target")


@dataclasses.dataclass(frozen=True)
class PairData:
    """Pairs of a source text x and a target text y, packed into rows (see `PairRows`).

    The encoder reads x EOS; the decoder reads BOS y and predicts y EOS. Where the tokenizer has no BOS, y begins with
    its padding token, as in Marian's models. A tokenizer with `encode_target` cuts y with that.

    Attributes:
      source_file, target_file: files whose lines are aligned, also .gz or .zst.
      source: instead of source_file and target_file, records with both texts: .jsonl, .json, .parquet or tfds:NAME.
      source_field, target_field: the fields of a record with the two texts, such as "de" and "en".
      eval_source_file, eval_target_file: where held-out pairs come from, as source_file and target_file.
      eval_source: where they come from, as source.
      sequence_length: decoder inputs a row, T.
      source_length: encoder inputs a row, S; None is as many.
      overlong: what becomes of a pair longer than a row: "drop" leaves it out and logs how many; "error" refuses.
      tokenizer: of both sides: "train:VOCAB_SIZE" (SentencePiece) or another of `TextData`'s, or a path.
      encoding: of files; None is UTF-8.
      tfds_data_dir: folder of prepared TFDS datasets; None is a folder in the cache.
      heldout_fraction: the share of pairs held out, by a hash of their number, where there is neither an eval source
        nor a held-out split among the records; None is 0.02.
    """

    RESUME_FREE: ClassVar[tuple[str, ...]] = (
        "source", "source_file", "target_file", "eval_source", "eval_source_file", "eval_target_file", "tfds_data_dir",
    )  # fmt: skip

    source_file: str | None = None
    target_file: str | None = None
    source: str | None = None
    source_field: str | None = None
    target_field: str | None = None
    eval_source_file: str | None = None
    eval_target_file: str | None = None
    eval_source: str | None = None
    sequence_length: int = 128
    source_length: int | None = None
    overlong: str = "drop"
    tokenizer: str = "train:8000"
    encoding: str | None = None
    tfds_data_dir: str | None = None
    heldout_fraction: float | None = None

    def __post_init__(self):
        check_positive(**{"data.sequence_length": self.sequence_length, "data.source_length": self._capacities[0]})
        check_choice("data.overlong", self.overlong, ("drop", "error"))
        _one_origin(self, "source", "source_file", "target_file", needed=True)
        _one_origin(self, "eval_source", "eval_source_file", "eval_target_file", needed=False)
        fields = (self.source_field, self.target_field)
        if self._has_records and None in fields:
            raise ConfigError("records need data.source_field and data.target_field, such as 'de' and 'en'")
        for name in ("source_field", "target_field", "tfds_data_dir"):
            if getattr(self, name) is not None and not self._has_records:
                raise ConfigError(f"data.{name} is never read: line-aligned files have no use for it")
        if self.encoding is not None:
            check_encoding(self.encoding)
        self._spec.check()

    @property
    def example(self) -> dict[str, Any]:
        """The arrays of a row, known without reading any data."""
        source, target = self._capacities
        targets = ("tokens", "targets", "loss_weights", "segment_ids", "positions")
        sources = ("source_tokens", "source_segment_ids", "source_positions")
        return described(**dict.fromkeys(targets, target), **dict.fromkeys(sources, source))

    @property
    def _capacities(self) -> tuple[int, int]:
        """Encoder and decoder inputs a row."""
        return (self.sequence_length if self.source_length is None else self.source_length, self.sequence_length)

    @property
    def _has_records(self) -> bool:
        return self.source is not None or self.eval_source is not None

    @property
    def _spec(self) -> SourceSpec:
        return SourceSpec(
            self.source or "",
            encoding=self.encoding,
            tfds_data_dir=self.tfds_data_dir,
            heldout_fraction=self.heldout_fraction,
        )

    def open(
        self, *, seed: int, cache_dir: pathlib.Path, workdir: pathlib.Path | None = None, progress: bool = False
    ) -> OpenData:
        """Reads, tokenises and packs what is not in the cache yet; arguments and errors as of `TextData.open`."""
        cache_dir = pathlib.Path(cache_dir)
        train = self._open_source(self.source, self.source_file, self.target_file, cache_dir)
        evaluated = None
        if self.eval_source is not None or self.eval_source_file is not None:
            evaluated = self._open_source(self.eval_source, self.eval_source_file, self.eval_target_file, cache_dir)
        read = train.options | (evaluated.options if evaluated is not None else frozenset())
        for key in sorted(self._spec.given() - read - {"heldout_fraction"}):
            raise ConfigError(f"data.{key} is never read: source {train.name} has no use for it")
        source = split_train(train, self._spec, evaluated is not None)
        tokenizer = open_tokenizer(self.tokenizer, [_BothSides(source)], cache_dir, progress)
        self._check_tokenizer(tokenizer)

        identity = {"data": identity_of(source), "tokenizer": tokenizer.fingerprint}
        corpora = heldout = _tokenize(source, tokenizer, cache_dir, progress)
        if evaluated is not None:
            heldout_source = split_evaluation(evaluated)
            identity["eval_source"] = identity_of(heldout_source)
            heldout = _tokenize(heldout_source, tokenizer, cache_dir, progress)
        rows = self._rows(corpora, "train", train.name)
        if not len(rows):
            raise DataError(f"source {train.name} is empty: it has no train pair that could be used")
        heldout_rows = self._rows(heldout, "heldout", (evaluated or train).name)
        if evaluated is not None and not len(heldout_rows):
            raise DataError(f"source {evaluated.name} is empty: it has no heldout pair that could be used")
        texts = {f"heldout_{name}": corpus.heldout_text for name, corpus in zip(SIDES, heldout)}
        return OpenData(
            train=shuffled(rows, [seed, "pairs"]),
            evaluation={"heldout": ShuffledRows(heldout_rows)} if len(heldout_rows) else {},
            tokenizer=tokenizer,
            model_fields={"vocab_size": tokenizer.vocab_size},
            check=lambda module: self._check(module, tokenizer),
            identity=identity,
            documents=lambda split="heldout": chosen_documents(texts, split),
        )

    def _open_source(self, records, source_file, target_file, cache_dir: pathlib.Path) -> ParallelSource:
        if records is None:
            return parallel_text.open_files(source_file, target_file, self.encoding, cache_dir)
        spec = dataclasses.replace(self._spec, source=records)
        return parallel_text.open_records(spec, (self.source_field, self.target_field), cache_dir)

    def _check_tokenizer(self, tokenizer: Tokenizer) -> None:
        for name, id, what in (("bos_id", _begin_id(tokenizer), "begin"), ("eos_id", tokenizer.eos_id, "end")):
            if id is None:
                raise ConfigError(f"the tokenizer {self.tokenizer!r} has no {name}, which targets {what} with")

    def _check(self, module: Any, tokenizer: Tokenizer) -> None:
        check_vocabulary(module, tokenizer, self.tokenizer)
        max_length = getattr(module, "max_length", None)
        for name, length in zip(("source_length", "sequence_length"), self._capacities):
            # Positions begin anew with every pair, but one pair may fill a row.
            if max_length is not None and max_length < length:
                raise ConfigError(f"data.{name} is {length}, but model.max_length is {max_length}; make them fit")
        start_id = getattr(module, "start_id", None)
        if start_id is not None and start_id != _begin_id(tokenizer):
            name = "padding token, as it has no BOS" if tokenizer.bos_id is None else "BOS"
            raise ConfigError(
                f"model.start_id is {start_id}, but targets start with the tokenizer's {name}: {_begin_id(tokenizer)}"
            )

    def _rows(self, corpora: tuple[Corpus, Corpus], split: str, name: str) -> "PairRows":
        splits = tuple(corpus.splits[split] for corpus in corpora)
        # Documents have both marks, inputs one of them: the encoder's x EOS, the decoder's BOS y.
        lengths = np.stack([np.diff(side.offsets) - 1 for side in splits], axis=1)
        is_empty = (lengths == 1).any(axis=1)
        is_long = (lengths > np.array(self._capacities)).any(axis=1) & ~is_empty
        if is_long.any() and self.overlong == "error":
            pair = int(np.flatnonzero(is_long)[0])
            raise DataError(
                f"{is_long.sum()} {split} pairs of {name} are longer than a row of {self._capacities} tokens; the "
                f"first of them, pair {pair} of its split, has {tuple(lengths[pair].tolist())}. Raise "
                "data.source_length and data.sequence_length, or set data.overlong = 'drop'"
            )
        if is_long.any() or is_empty.any():
            log.warning(
                "%s: of %d %s pairs, %d are left out because they are longer than a row of %s tokens, and %d because a "
                "side is empty.", name, len(lengths), split, is_long.sum(), self._capacities, is_empty.sum(),
            )  # fmt: skip
        usable = np.flatnonzero(~is_long & ~is_empty)

        def plan() -> PairPlan:
            order, rows = pack_pairs(lengths[usable], self._capacities)
            return PairPlan(usable[order], rows)

        key = fingerprint("pairs", PLAN_VERSION, corpora[1].folder.name, split, self._capacities)
        return PairRows(splits, corpora[0].kept(key, PairPlan, plan), self._capacities)


def _one_origin(config: PairData, records: str, source_file: str, target_file: str, needed: bool) -> None:
    """Raises ConfigError unless records or both files are given; neither, where not `needed`."""
    given = [name for name in (records, source_file, target_file) if getattr(config, name) is not None]
    if given not in ([records], [source_file, target_file]) and (given or needed):
        found = " and ".join(f"data.{name}" for name in given) or "none of them"
        raise ConfigError(
            f"set data.{source_file} and data.{target_file}, or data.{records} alone; the config has {found}"
        )


@dataclasses.dataclass(frozen=True)
class _BothSides:
    """The texts of both sides, one after another, for a tokenizer that both share."""

    pairs: SplitSource

    @property
    def fingerprint(self) -> str:
        return self.pairs.fingerprint

    def stream(self) -> Iterator[tuple[str, str]]:
        for split, pair in self.pairs.stream():
            for text in pair:
                yield split, text


def _begin_id(tokenizer: Tokenizer) -> int | None:
    """The token that targets begin with."""
    return tokenizer.pad_id if tokenizer.bos_id is None else tokenizer.bos_id


class _SideTokenizer:
    """What `tokenize_corpus` needs of a tokenizer, for one side of pairs."""

    def __init__(self, tokenizer: Tokenizer, side: str):
        self._tokenizer = tokenizer
        self._encode_target = getattr(tokenizer, "encode_target", None) if side == "target" else None
        self.vocab_size, self.fingerprint = tokenizer.vocab_size, tokenizer.fingerprint
        self.bos_id, self.eos_id = _begin_id(tokenizer), tokenizer.eos_id

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        if self._encode_target is None:
            return self._tokenizer.encode_batch(texts)
        return [self._encode_target(text) for text in texts]


def _tokenize(
    pairs: SplitSource, tokenizer: Tokenizer, cache_dir: pathlib.Path, progress: bool
) -> tuple[Corpus, Corpus]:
    """Both sides of the pairs, each with begin and end marks; document d of both are one pair."""

    def side(index: int) -> Corpus:
        return tokenize_corpus(
            lambda: ((split, pair[index]) for split, pair in pairs.stream()),
            fingerprint(pairs.fingerprint, SIDES[index]),
            _SideTokenizer(tokenizer, SIDES[index]),
            cache_dir,
            pairs.source.sides[index].name,
            progress,
            keep_empty=True,
        )

    return side(0), side(1)


@dataclasses.dataclass(frozen=True)
class PairPlan:
    """Which pairs lie in which row.

    Attributes:
      pairs: int64 [pairs]: their numbers, in the order of rows.
      rows: int64 [rows + 1]: pairs[rows[i]:rows[i + 1]] lie in row i.
    """

    pairs: np.ndarray
    rows: np.ndarray


class PairRows(Sequence):
    """Packed rows of pairs; pair number k of a row has segment id k, from 1, on both sides; 0 is padding.

    `rows[i]` has
      tokens, targets: int32 [T], BOS y and y EOS.
      loss_weights: float32 [T], 1 where there is a target.
      segment_ids, positions: int32 [T]; positions from 0 in each segment.
      source_tokens, source_segment_ids, source_positions: int32 [S], x EOS.

    Args:
      splits: tokenised source and target, document d of both a pair, each with begin and end marks.
      plan: the packing.
      capacities: S and T.
    """

    def __init__(self, splits: tuple[TokenizedSplit, TokenizedSplit], plan: PairPlan, capacities: tuple[int, int]):
        self._source, self._target = splits
        self._plan, self._capacities = plan, capacities

    def __len__(self) -> int:
        return len(self._plan.rows) - 1

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        pairs = self._plan.pairs[slice(*self._plan.rows[index : index + 2])].tolist()
        sources = [_document(self._source, pair)[1:] for pair in pairs]
        targets = [_document(self._target, pair) for pair in pairs]
        source_length, length = self._capacities
        source_tokens, source_segment_ids, source_positions = _packed(sources, source_length)
        tokens, segment_ids, positions = _packed([target[:-1] for target in targets], length)
        return {
            "tokens": tokens,
            "targets": _packed([target[1:] for target in targets], length)[0],
            "loss_weights": (segment_ids > 0).astype(np.float32),
            "segment_ids": segment_ids,
            "positions": positions,
            "source_tokens": source_tokens,
            "source_segment_ids": source_segment_ids,
            "source_positions": source_positions,
        }


def _document(split: TokenizedSplit, index: int) -> np.ndarray:
    return split.tokens[slice(*split.offsets[index : index + 2])]


def _packed(parts: Sequence[np.ndarray], length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(tokens, segment ids, positions), each int32 [length], of the parts laid one after another; 0 is padding."""
    packed = np.zeros((3, length), np.int32)
    start = 0
    for segment, part in enumerate(parts, 1):
        packed[:, start : start + len(part)] = part, np.full(len(part), segment), np.arange(len(part))
        start += len(part)
    return packed[0], packed[1], packed[2]
