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
from fmjax.data.documents import Joined, ShuffledRows, chosen_documents
from fmjax.data.packing import PackedRows
from fmjax.data.run_tokenizer import check_max_length, check_vocabulary, open_tokenizer, trained_size
from fmjax.data.shuffle import shuffled
from fmjax.data.sources import (
    MixedSource, Source, SourceSpec, SplitSource, identity_of, open_source, split_evaluation, split_train,
)  # fmt: skip
from fmjax.data.tokenizers.loading import Tokenizer
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
        trained_size(self.tokenizer)
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
        self, *, seed: int, cache_dir: pathlib.Path, workdir: pathlib.Path | None = None, progress: bool = False
    ) -> OpenData:
        """Reads, tokenises and packs what is not in the cache yet, and gives the rows, shuffled by `seed`.

        Raises:
          DataError: documents cannot be read; names file and record.
          TokenizerError: the tokenizer cannot be read or trained.
          ConfigError: a key that none of the sources reads.
        """
        cache_dir = pathlib.Path(cache_dir)
        specs = self._specs()
        opened = {name: self._open_source(spec, cache_dir) for name, spec in specs.items()}
        evaluated = None
        if self.eval_source is not None:
            spec = dataclasses.replace(self._own_spec(), source=self.eval_source, heldout_fraction=None)
            evaluated = self._open_source(spec, cache_dir)
        self._refuse_unread(specs, opened, evaluated)
        sources = {name: split_train(opened[name], spec, evaluated is not None) for name, spec in specs.items()}
        tokenizer = self._open_tokenizer(list(sources.values()), cache_dir, progress)
        self._check_tokenizer(tokenizer)

        def tokenize(source: SplitSource, split: str) -> Corpus:
            corpus = self._tokenize(source, tokenizer, cache_dir, progress)
            require_documents(corpus, split, source.name)
            return corpus

        corpora = {name: tokenize(source, "train") for name, source in sources.items()}
        if evaluated is not None:
            heldout = {"": tokenize(split_evaluation(evaluated), "heldout")}
        else:
            heldout = corpora
        streams = {name: self._train_rows(corpus, tokenizer, [seed, name]) for name, corpus in corpora.items()}
        evaluation, documents = self._evaluation(heldout, tokenizer)
        _warn_of_none({name: sources[name] for name in sources.keys() & heldout.keys()}, evaluation)
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
            stop_ids=self._stop_ids(corpora),
            num_train=self._num_train(corpora),
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

    def _open_source(self, spec: SourceSpec, cache_dir: pathlib.Path) -> Source:
        return open_source(spec, cache_dir)

    def _open_tokenizer(self, sources: list[SplitSource], cache_dir: pathlib.Path, progress: bool) -> Tokenizer:
        return open_tokenizer(self.tokenizer, sources, cache_dir, progress, self.TRAINED_SPECIALS)

    def _tokenize(self, source: SplitSource, tokenizer: Tokenizer, cache_dir: pathlib.Path, progress: bool) -> Corpus:
        return tokenize_corpus(
            source.stream, source.fingerprint, tokenizer, cache_dir, source.name, progress,
            sentence_rule=self._sentence_rule,
        )  # fmt: skip

    def _stop_ids(self, corpora: Mapping[str, Corpus]) -> Sequence[int]:
        """`OpenData.stop_ids`."""
        return ()

    def _check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Raises ConfigError for a tokenizer that lacks what the rows need."""

    def _train_rows(self, corpus: Corpus, tokenizer: Tokenizer, seed: list):
        """An endless `grain.MapDataset` of one source's rows."""
        return shuffled(self._rows(corpus, "train"), seed)

    def _num_train(self, corpora: Mapping[str, Corpus]) -> int | None:
        """`OpenData.num_train`; None of a mixture, and where rows are made anew each time."""
        if len(corpora) > 1 or type(self)._train_rows is not TextData._train_rows:
            return None
        return len(self._rows(*corpora.values(), "train"))

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
        check_max_length(module, self.sequence_length)


def _warn_of_none(sources: Mapping[str, SplitSource], evaluation: Mapping[str, Sequence]) -> None:
    """Tells of sources that were to hold documents out and have none."""
    for name, source in sources.items():
        if (name or "heldout") not in evaluation and source.fraction > 0:
            log.warning(
                "No document of %s fell to its held-out share, so it is not evaluated; set data.eval_source or a "
                "larger heldout_fraction.", source.name,
            )  # fmt: skip


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
