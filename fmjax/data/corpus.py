"""A corpus tokenised once: flat memory-mapped ids and offsets in the cache, named by content."""

import array
import dataclasses
import itertools
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from fmjax.data import sentences
from fmjax.data.packing import PLAN_VERSION, PackingPlan, plan_packing
from fmjax.data.prepared import build_once, fingerprint
from fmjax.data.tokenizers.loading import Tokenizer
from fmjax.errors import DataError

SPLITS = ("train", "heldout")
_LAYOUT = 3  # part of the cache key: raise it when the files below change
_BATCH_CHARACTERS = 2 << 20  # text encoded at once; bounds the memory whatever the size of the corpus


class TextStore(Sequence):
    """Documents kept as one flat UTF-8 array; `[i]` gives a str."""

    def __init__(self, data: np.ndarray, offsets: np.ndarray):
        self._data, self._offsets = data, offsets

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        return self._data[self._offsets[index] : self._offsets[index + 1]].tobytes().decode()


@dataclasses.dataclass(frozen=True)
class TokenizedSplit:
    """The ids of a split.

    Attributes:
      tokens: uint16 or uint32 [ids], memory-mapped; every document with its begin and end marks, or every sentence
        without any.
      offsets: int64 [documents + 1]; document d is tokens[offsets[d]:offsets[d+1]]. In a corpus of sentences,
        int64 [sentences + 1] in the same way.
      documents: int64 [documents + 1] in a corpus of sentences: document d has the sentences documents[d] ..
        documents[d+1] - 1, at least one; None in one of whole documents.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    documents: np.ndarray | None = None

    @property
    def num_documents(self) -> int:
        return len(self.offsets if self.documents is None else self.documents) - 1


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A tokenised source: its splits by name ("train", "heldout"), and the text of the held-out documents."""

    folder: pathlib.Path
    splits: dict[str, TokenizedSplit]
    heldout_text: TextStore

    def plan(self, split: str, sequence_length: int) -> PackingPlan:
        """The packing of a split into rows of `sequence_length`; planned once and kept beside the corpus."""
        name = f"{split}-{sequence_length}-v{PLAN_VERSION}"
        return self.kept(
            name, PackingPlan, lambda: plan_packing(np.asarray(self.splits[split].offsets), sequence_length)
        )

    def kept(self, name: str, kind: type, make: Callable[[], Any]):
        """What `make` computes from this corpus, a dataclass `kind` of arrays: computed once and kept under `name`,
        which must tell all that it depends on."""

        def build(folder: pathlib.Path) -> None:
            made = make()
            for field in dataclasses.fields(kind):
                np.save(folder / f"{field.name}.npy", getattr(made, field.name))

        folder = build_once(self.folder.parent.parent / "packing" / f"{self.folder.name}-{name}", build)
        return kind(**{field.name: load_array(folder / f"{field.name}.npy") for field in dataclasses.fields(kind)})


def load_array(path: pathlib.Path) -> np.ndarray:
    """The array of an .npy file, memory-mapped."""
    # A plain view of the map: slices of np.memmap itself cost several times more.
    return np.load(path, mmap_mode="r").view(np.ndarray)


def map_array(path: pathlib.Path, dtype: str) -> np.ndarray:
    """A file of numbers of that type alone, memory-mapped."""
    if path.stat().st_size == 0:  # an empty file cannot be mapped
        return np.zeros(0, dtype)
    return np.memmap(path, dtype, mode="r").view(np.ndarray)


class _SplitWriter:
    """Writes a split's documents as they come; only their offsets are held in memory."""

    def __init__(
        self, folder: pathlib.Path, split: str, tokenizer: Tokenizer, dtype: str, keep_text: bool, rule: str | None
    ):
        self._folder, self._split, self._tokenizer, self._dtype, self._rule = folder, split, tokenizer, dtype, rule
        self._tokens = open(folder / f"{split}.tokens", "wb")
        self._text = open(folder / f"{split}.text", "wb") if keep_text else None
        self._offsets, self._text_offsets, self._documents = (array.array("q", [0]) for _ in range(3))
        self._begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        self._end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]

    def write(self, texts: list[str]) -> None:
        if self._rule is None:
            for ids in self._tokenizer.encode_batch(texts):
                self._append(self._begin + ids + self._end)
        else:
            self._write_sentences(texts)
        if self._text is not None:
            for text in texts:
                self._text_offsets.append(self._text_offsets[-1] + self._text.write(text.encode()))

    def _write_sentences(self, texts: list[str]) -> None:
        cut = [sentences.split_sentences(text, self._rule) for text in texts]
        encoded = iter(self._tokenizer.encode_batch([sentence for document in cut for sentence in document]))
        for document in cut:
            found = [ids for ids in itertools.islice(encoded, len(document)) if ids]
            for ids in found:
                self._append(ids)
            if found:
                self._documents.append(self._documents[-1] + len(found))

    def _append(self, ids: list[int]) -> None:
        stored = np.array(ids, self._dtype)
        self._tokens.write(stored.data)
        self._offsets.append(self._offsets[-1] + len(stored))

    def close(self) -> None:
        self._tokens.close()
        np.save(self._folder / f"{self._split}.offsets.npy", np.asarray(self._offsets, np.int64))
        if self._rule is not None:
            np.save(self._folder / f"{self._split}.documents.npy", np.asarray(self._documents, np.int64))
        if self._text is not None:
            self._text.close()
            np.save(self._folder / f"{self._split}.text_offsets.npy", np.asarray(self._text_offsets, np.int64))


def tokenize_corpus(
    documents: Callable[[], Iterable[tuple[str, str]]],
    content: str,
    tokenizer: Tokenizer,
    cache_dir: pathlib.Path,
    name: str,
    progress: bool = False,
    *,
    sentence_rule: str | None = None,
    keep_empty: bool = False,
) -> Corpus:
    """The tokenised corpus, from the cache or by one pass over `documents`.

    Args:
      documents: gives (split, text) pairs, split "train" or "heldout"; called only when the cache has nothing.
      content: fingerprint of all that the documents depend on.
      tokenizer: ids are its own, each document with begin and end marks where it has them.
      cache_dir: where the cache lives.
      name: the source's name, for progress and messages.
      progress: whether to show a progress bar.
      sentence_rule: how `sentences.split_sentences` cuts documents into sentences, which are then kept one by one
        and without marks; None keeps whole documents.
      keep_empty: whether documents without any text stay, marks alone, so that document d is the d-th of its split.
    """

    def build(folder: pathlib.Path) -> None:
        from tqdm import tqdm

        dtype = "<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4"
        writers = {s: _SplitWriter(folder, s, tokenizer, dtype, s == "heldout", sentence_rule) for s in SPLITS}
        options = dict(unit="B", unit_scale=True, mininterval=0.5, delay=0.5, leave=False, disable=not progress)
        with tqdm(desc=f"tokenising {name}", **options) as bar:
            for split, texts, size in _batches(documents(), keep_empty):
                writers[split].write(texts)
                bar.update(size)
            bar.leave = True  # an error takes the bar away, and has the terminal to itself
        for writer in writers.values():
            writer.close()
        (folder / "meta.json").write_text(json.dumps({"name": name, "dtype": dtype}))

    parts = [_LAYOUT, content, tokenizer.fingerprint]
    if sentence_rule is None:
        parts += [tokenizer.bos_id, tokenizer.eos_id]
    else:
        parts += ["sentences", sentences.RULES_VERSION, sentence_rule]
    if keep_empty:
        parts.append("keep_empty")
    folder = build_once(cache_dir / "corpora" / fingerprint(*parts), build)
    dtype = json.loads((folder / "meta.json").read_text())["dtype"]
    splits = {
        s: TokenizedSplit(
            map_array(folder / f"{s}.tokens", dtype),
            load_array(folder / f"{s}.offsets.npy"),
            None if sentence_rule is None else load_array(folder / f"{s}.documents.npy"),
        )
        for s in SPLITS
    }
    text = TextStore(map_array(folder / "heldout.text", "u1"), load_array(folder / "heldout.text_offsets.npy"))
    return Corpus(folder, splits, text)


def _batches(documents: Iterable[tuple[str, str]], keep_empty: bool) -> Iterator[tuple[str, list[str], int]]:
    """Groups each split's documents into lists of about _BATCH_CHARACTERS: (split, texts, characters)."""
    waiting: dict[str, list[str]] = {split: [] for split in SPLITS}
    sizes = dict.fromkeys(SPLITS, 0)
    for split, text in documents:
        if not (text or keep_empty):
            continue  # nothing to learn: begin and end marks alone
        waiting[split].append(text)
        sizes[split] += len(text)
        if sizes[split] >= _BATCH_CHARACTERS:
            yield split, waiting[split], sizes[split]
            waiting[split], sizes[split] = [], 0
    for split in SPLITS:
        if waiting[split]:
            yield split, waiting[split], sizes[split]


def require_documents(corpus: Corpus, split: str, name: str) -> None:
    """Raises DataError when a split holds nothing to learn from."""
    offsets = corpus.splits[split].offsets
    if len(offsets) < 2 or not (np.diff(offsets) > 1).any():
        other = "heldout" if split == "train" else "train"
        fell = corpus.splits[other].num_documents
        hint = f"; all its {fell} documents are {other}: set data.heldout_fraction" if fell else ""
        raise DataError(f"source {name} is empty: it has no {split} document with any text{hint}")
