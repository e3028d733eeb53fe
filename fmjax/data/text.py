"""Text for language models: the config's `data` section, opened into packed rows.

A row is a pure function of (config, seed, index): documents are tokenised once (`corpus`), packed by a plan
(`packing`), shuffled anew in each epoch and mixed by weight, all by index.
"""

import dataclasses
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from fmjax.data.base import OpenData, described
from fmjax.data.corpus import Corpus, require_documents, tokenize_corpus
from fmjax.data.packing import PackedRows
from fmjax.data.prepared import build_once, fingerprint
from fmjax.data.shuffle import ShuffledIndices, shuffled
from fmjax.data.sources import MixedSource, SourceSpec, SplitSource, open_source, split_evaluation, split_train
from fmjax.data.tokenizers.loading import ByteTokenizer, Tokenizer, load_tokenizer
from fmjax.errors import ConfigError
from fmjax.registry import nearest

log = logging.getLogger("fmjax")

_READING = ("text_field", "document_separator", "encoding", "tfds_data_dir")


@dataclasses.dataclass(frozen=True)
class TextData:
    """Documents for a language model.

    Attributes:
      source: where the documents come from; None means "builtin", unless there is a mixture.
        builtin: the Python standard library of the running interpreter.
        tfds:NAME[/CONFIG][:VERSION][:SPLIT]: any TFDS dataset.
        A file, a folder or a glob: plain text (.txt, .text, .md, .rst, .py), .jsonl, .json, .parquet, all but the
          last also as .gz or .zst. A folder's files named train..., validation... (valid, val, dev), test... are
          those splits.
        package.module:Object: documents of your own, see `fmjax.data.sources.ObjectSource`.
      mixture: several sources instead of one, by a name of your choice: {"code": {"source": "builtin", "weight": 3},
        "web": {"source": "web/*.jsonl", "weight": 1, "text_field": "content"}}. A weight is the share of rows (up to
        1% of it, as Grain's mixing rounds); a short source is repeated. Each takes its own text_field,
        document_separator, encoding, tfds_data_dir and heldout_fraction.
      sequence_length: inputs a row, T.
      tokenizer: "bytes"; one trained on the run's own training documents, "train:VOCAB_SIZE" (SentencePiece),
        "train_wordpiece:VOCAB_SIZE" (BERT's) or "train_bpe:VOCAB_SIZE" (RoBERTa's); or the path of a tokenizer's file,
        of a run or of a published model's folder, or a hub id (`fmjax.data.tokenizers.loading.load_tokenizer`). Not
        given in a run with `train.init_from`, it is the one that these parameters were trained with.
      text_field: field, column or feature with the text, of .jsonl, .parquet and TFDS; None is "text".
      document_separator: what stands between the documents of a plain text file, such as "<|endoftext|>"; None
        makes each file one document.
      encoding: of plain text and .jsonl files; None is UTF-8.
      tfds_data_dir: folder of prepared TFDS datasets; None is a folder in the cache.
      heldout_fraction: the share of documents held out, by a hash of file name and record number, from a source that
        has no held-out split of its own; None is 0.02. A few whole-file documents give their last part instead.
      eval_source: where the held-out documents come from instead; read with the options above.
    """

    # Where documents lie; what they are is compared through `OpenData.identity`.
    RESUME_FREE: ClassVar[tuple[str, ...]] = ("source", "eval_source", "tfds_data_dir")
    TRAINED_SPECIALS: ClassVar[tuple[str, ...]] = ()  # pieces of a tokenizer trained here, beside BOS and EOS

    source: str | None = None
    mixture: dict[str, MixedSource] | None = None
    sequence_length: int = 512
    tokenizer: str = "train:2048"
    text_field: str | None = None
    document_separator: str | None = None
    encoding: str | None = None
    tfds_data_dir: str | None = None
    heldout_fraction: float | None = None
    eval_source: str | None = None

    def __post_init__(self):
        if self.source is not None and self.mixture is not None:
            raise ConfigError("data.source and data.mixture are both set; a mixture names its own sources")
        if isinstance(self.sequence_length, bool) or self.sequence_length < 1:
            raise ConfigError(f"data.sequence_length must be at least 1, got {self.sequence_length}")
        if self.mixture is not None and self.heldout_fraction is not None:
            raise ConfigError("data.heldout_fraction is never read with data.mixture; set it within its sources")
        _trained_size(self.tokenizer)
        self._specs()
        self._own_spec().check()

    def _own_spec(self) -> SourceSpec:
        options = {name: getattr(self, name) for name in _READING}
        return SourceSpec(self.source or "builtin", heldout_fraction=self.heldout_fraction, **options)

    def _specs(self) -> dict[str, SourceSpec]:
        """Each training source by name; a single one has the name ""."""
        return {"": self._own_spec()} if self.mixture is None else _mixture_specs(self.mixture)

    @property
    def example(self) -> dict[str, Any] | None:
        """The arrays of a row, known without reading any data; None for a subclass with rows of its own."""
        kind = type(self)
        if (kind._train_rows, kind._rows) != (TextData._train_rows, TextData._rows):
            return None
        names = ("tokens", "targets", "loss_weights", "segment_ids", "positions")
        return described(**dict.fromkeys(names, self.sequence_length))

    def open(
        self,
        *,
        seed: int,
        cache_dir: pathlib.Path,
        workdir: pathlib.Path | None = None,
        progress: bool = False,
    ) -> OpenData:
        """Reads, tokenises and packs what is not in the cache yet, and gives the rows.

        Args:
          seed: of the shuffling.
          cache_dir: where prepared data, trained tokenizers and tokenised corpora are kept.
          workdir: not used; part of the protocol of data plugins.
          progress: whether to show progress on stderr.

        Raises:
          DataError: documents cannot be read; names file and record.
          TokenizerError: the tokenizer cannot be read or trained.
          ConfigError: a key that none of the sources reads.
        """
        cache_dir = pathlib.Path(cache_dir)
        specs = self._specs()
        opened = {name: open_source(spec, cache_dir) for name, spec in specs.items()}
        evaluated = None
        if self.eval_source is not None:
            spec = dataclasses.replace(self._own_spec(), source=self.eval_source, heldout_fraction=None)
            evaluated = open_source(spec, cache_dir)
        self._refuse_unread(specs, opened, evaluated)
        sources = {name: split_train(opened[name], spec, evaluated is not None) for name, spec in specs.items()}
        tokenizer = open_tokenizer(self.tokenizer, list(sources.values()), cache_dir, progress, self.TRAINED_SPECIALS)
        self._check_tokenizer(tokenizer)

        def tokenize(source: SplitSource, split: str) -> Corpus:
            corpus = tokenize_corpus(
                source.stream, source.fingerprint, tokenizer, cache_dir, source.name, progress,
                sentence_rule=self._sentence_rule,
            )  # fmt: skip
            require_documents(corpus, split, source.name)
            return corpus

        corpora = {name: tokenize(source, "train") for name, source in sources.items()}
        if evaluated is not None:
            heldout = {"": tokenize(split_evaluation(evaluated), "heldout")}
        else:
            heldout = corpora
        streams = {name: self._train_rows(corpus, tokenizer, [seed, name]) for name, corpus in corpora.items()}
        evaluation, documents = self._evaluation(heldout, tokenizer)
        for name in sources.keys() & heldout.keys():
            if (name or "heldout") not in evaluation and sources[name].fraction > 0:
                log.warning(
                    "No document of %s fell to its held-out share, so it is not evaluated; set data.eval_source or a "
                    "larger heldout_fraction.", sources[name].name,
                )  # fmt: skip
        identity = {f"data/{name}" if name else "data": identity_of(source) for name, source in sources.items()}
        if evaluated is not None:
            identity["eval_source"] = identity_of(split_evaluation(evaluated))
        return OpenData(
            train=_mixed(streams, {name: getattr(spec, "weight", 1.0) for name, spec in specs.items()}),
            evaluation=evaluation,
            tokenizer=tokenizer,
            model_fields={"vocab_size": tokenizer.vocab_size},
            check=lambda module: self._check(module, tokenizer),
            identity=identity | {"tokenizer": tokenizer.fingerprint},
            documents=lambda split="heldout": chosen_documents(documents, split),
        )

    def _refuse_unread(self, specs, opened, evaluated) -> None:
        """Raises ConfigError for a key that the source it is given for never reads."""
        for name, spec in specs.items():
            read = set(opened[name].options) | {"heldout_fraction"}
            if not name and evaluated is not None:
                read |= evaluated.options
            for key in sorted(spec.given() - read):
                place = f"data.mixture.{name}.{key}" if name else f"data.{key}"
                raise ConfigError(f"{place} is never read: source {opened[name].name} has no use for it")
        if self.mixture is not None:
            read = evaluated.options if evaluated is not None else frozenset()
            for key in sorted(self._own_spec().given() - read):
                raise ConfigError(f"data.{key} is never read with data.mixture; set it within its sources")

    # What data of another shape, made of the same documents, do otherwise.

    _sentence_rule: ClassVar[str | None] = None  # how documents are cut before tokenising, see `tokenize_corpus`

    def _check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Raises ConfigError for a tokenizer that lacks what the rows need."""

    def _train_rows(self, corpus: Corpus, tokenizer: Tokenizer, seed: list):
        """An endless `grain.MapDataset` of one source's rows."""
        return shuffled(self._rows(corpus, "train"), seed)

    def _heldout_rows(self, corpus: Corpus, tokenizer: Tokenizer) -> Sequence:
        """The held-out rows of one source; none where nothing is held out."""
        return self._rows(corpus, "heldout")

    def _rows(self, corpus: Corpus, split: str) -> PackedRows:
        plan = corpus.plan(split, self.sequence_length)
        return PackedRows(corpus.splits[split].tokens, plan, self.sequence_length)

    def _evaluation(self, corpora: Mapping[str, Corpus], tokenizer: Tokenizer):
        """Held-out rows and documents by name: "heldout", or the names of a mixture's sources. The documents of all
        of these together are "heldout" too."""
        rows, documents = {}, {}
        for name, corpus in corpora.items():
            found = self._heldout_rows(corpus, tokenizer)
            if len(found):
                rows[name or "heldout"] = ShuffledRows(found)
                documents[name or "heldout"] = corpus.heldout_text
        if len(corpora) > 1 and documents:
            documents["heldout"] = Joined(list(documents.values()))
        return rows, documents

    def _check(self, module: Any, tokenizer: Tokenizer) -> None:
        check_vocabulary(module, tokenizer, self.tokenizer)
        max_length = getattr(module, "max_length", None)
        if max_length is not None and max_length < self.sequence_length:
            raise ConfigError(
                f"data.sequence_length is {self.sequence_length}, but model.max_length is {max_length}; make them fit"
            )


class ShuffledRows(Sequence):
    """Finite rows in one fixed random order, so that the first few of them speak for all the documents."""

    def __init__(self, rows: Sequence):
        self._rows = rows
        self._order = ShuffledIndices(len(rows), "evaluation")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int):
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return self._rows[self._order[index]]


class Joined(Sequence):
    """Several sequences one after another."""

    def __init__(self, parts: Sequence[Sequence]):
        self._parts = parts

    def __len__(self) -> int:
        return sum(len(part) for part in self._parts)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        for part in self._parts:
            if index < len(part):
                return part[index]
            index -= len(part)


def chosen_documents(documents: Mapping[str, Sequence[str]], split: str) -> Sequence[str]:
    """The documents of that name. Raises ConfigError for a name that is not there."""
    if split not in documents:
        hint = nearest(split, documents) or "."
        raise ConfigError(f"these data have no documents {split!r}{hint} Known: {sorted(documents)}")
    return documents[split]


def check_vocabulary(module: Any, tokenizer: Tokenizer, name: str) -> None:
    """Raises ConfigError where the module has fewer tokens than the tokenizer, which is called `name`."""
    vocab_size = getattr(module, "vocab_size", None)
    if vocab_size is not None and vocab_size < tokenizer.vocab_size:
        raise ConfigError(
            f"model.vocab_size is {vocab_size}, but the tokenizer {name!r} has {tokenizer.vocab_size} pieces; leave "
            "model.vocab_size at None or make it at least as large"
        )


def identity_of(source: SplitSource) -> str:
    """What a run remembers a source by: its label and the hash of its content."""
    return f"{source.source.label}@{source.fingerprint}"


def _mixture_specs(mixture: Mapping[str, Any]) -> dict[str, MixedSource]:
    if not isinstance(mixture, Mapping) or not mixture:
        raise ConfigError("data.mixture must name its sources: {'NAME': {'source': ..., 'weight': ...}, ...}")
    known = [field.name for field in dataclasses.fields(MixedSource)]
    specs = {}
    for name, part in mixture.items():
        place = f"data.mixture.{name}"
        if name in ("", "heldout"):
            raise ConfigError(f"{place}: the name {name!r} is taken; choose another for this source")
        if not isinstance(part, Mapping) or not isinstance(part.get("source"), str):
            raise ConfigError(f"{place} must be {{'source': ..., 'weight': ...}}, got {part!r}")
        for key in part:
            if key not in known:
                hint = nearest(key, known) or "."
                raise ConfigError(f"{place}.{key} is not a key of a mixture's source{hint} Known: {known}")
        specs[name] = MixedSource(**part)
        if not 0 < specs[name].weight < float("inf"):
            raise ConfigError(f"{place}.weight must be a positive number, got {specs[name].weight!r}")
        specs[name].check(place)
    return specs


def _mixed(streams: Mapping[str, Any], weights: Mapping[str, float]):
    """Endless datasets mixed by weight: random access for any index."""
    if len(streams) == 1:
        return next(iter(streams.values()))
    import grain

    return grain.MapDataset.mix(list(streams.values()), weights=[weights[name] for name in streams])


def _trained_size(wanted: str) -> tuple[str, int] | None:
    """("train", VOCAB_SIZE) of "train:VOCAB_SIZE", likewise of "train_wordpiece:" and "train_bpe:"; None for other
    words. Raises ConfigError for a malformed one."""
    kind, colon, size = wanted.partition(":")
    if kind not in ("train", "train_wordpiece", "train_bpe"):
        return None
    if not colon:
        raise ConfigError(f"data.tokenizer {wanted!r}: expected '{kind}:VOCAB_SIZE', such as '{kind}:2048'")
    if not size.isdecimal():
        raise ConfigError(f"data.tokenizer {wanted!r}: expected '{kind}:VOCAB_SIZE' with a whole number")
    return kind, int(size)


def open_tokenizer(
    wanted: str,
    sources: Sequence[SplitSource],
    cache_dir: pathlib.Path,
    progress: bool = False,
    specials: tuple[str, ...] = (),
) -> Tokenizer:
    """The tokenizer a config names: "bytes", "train:VOCAB_SIZE" (SentencePiece), "train_wordpiece:VOCAB_SIZE" (BERT's),
    "train_bpe:VOCAB_SIZE" (RoBERTa's) or a path. One trained on the same documents with the same settings before comes
    from the cache; `specials` are pieces that SentencePiece gets beside BOS and EOS, the others have BERT's and
    RoBERTa's."""
    if wanted == "bytes":
        return ByteTokenizer()
    trained = _trained_size(wanted)
    if trained is None:
        return load_tokenizer(wanted)
    from fmjax.data.tokenizers import training as tokenizer_training

    kind, size = trained

    def build(folder: pathlib.Path) -> None:
        texts = (text for source in sources for split, text in source.stream() if split == "train")
        if kind == "train":
            model = tokenizer_training.train_sentencepiece(texts, size, progress, specials)
            (folder / "tokenizer.model").write_bytes(model)
        elif kind == "train_wordpiece":
            tokenizer_training.train_wordpiece(texts, size, progress).save(folder)
        else:
            tokenizer_training.train_bpe(texts, size, progress).save(folder)

    parts = [tokenizer_training.SETTINGS_VERSION, size, [source.fingerprint for source in sources]]
    if kind != "train":
        parts.append(kind)
    elif specials:
        parts.append(list(specials))
    key = fingerprint(*parts)
    return load_tokenizer(build_once(cache_dir / "tokenizers" / key, build))
