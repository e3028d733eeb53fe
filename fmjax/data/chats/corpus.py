"""Chats rendered and tokenised once: flat ids, and of each whether it is learnt, in the cache, named by content."""

import array
import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fmjax.data.chats.records import Messages
from fmjax.data.chats.sources import LeftOut
from fmjax.data.corpus import SPLITS, Corpus, TextStore, TokenizedSplit, load_array, map_array
from fmjax.data.formats import check_characters
from fmjax.data.prepared import build_once, fingerprint
from fmjax.data.sources import SplitSource
from fmjax.data.tokenizers.loading import Tokenizer
from fmjax.data.tokenizers.replies import Replies, encode_replies
from fmjax.errors import DataError, InputError, TokenizerError

_LAYOUT = 2  # part of the cache key: raise it when the files below, or what is learnt of a chat, change


@dataclasses.dataclass(frozen=True)
class ChatSplit(TokenizedSplit):
    """The ids of a split, a chat after the other.

    Attributes:
      learnt: uint8 [ids], memory-mapped: 1 where an id is a reply's.
      records: int64 [records + 1]: the chats of record r are records[r] .. records[r + 1] - 1.
      numbers: further float32 arrays by name, of the records, their chats or ids.
    """

    learnt: np.ndarray | None = None
    records: np.ndarray | None = None
    numbers: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class ChatCorpus(Corpus):
    """Tokenised chats: splits of `ChatSplit`.

    Attributes:
      stop_ids: the ids that end replies.
    """

    stop_ids: tuple[int, ...] = ()


class _SplitWriter:
    """Writes a split's chats as they come; only their offsets and numbers are held in memory."""

    def __init__(self, folder: pathlib.Path, split: str, dtype: str, numbers: Sequence[str]):
        self._folder, self._split, self._dtype = folder, split, dtype
        self._tokens = open(folder / f"{split}.tokens", "wb")
        self._learnt = open(folder / f"{split}.learnt", "wb")
        self._offsets, self._records = array.array("q", [0]), array.array("q", [0])
        self._numbers = {name: array.array("f") for name in numbers}

    def write(self, chats: Sequence[Replies], numbers: Mapping[str, Sequence[float]]) -> None:
        for chat in chats:
            self._tokens.write(np.array(chat.ids, self._dtype).data)
            self._learnt.write(bytes(chat.learnt))
            self._offsets.append(self._offsets[-1] + len(chat.ids))
        self._records.append(len(self._offsets) - 1)
        for name, values in numbers.items():
            self._numbers[name].extend(values)

    def close(self) -> None:
        self._tokens.close()
        self._learnt.close()
        np.save(self._folder / f"{self._split}.offsets.npy", np.asarray(self._offsets, np.int64))
        np.save(self._folder / f"{self._split}.records.npy", np.asarray(self._records, np.int64))
        for name, values in self._numbers.items():
            np.save(self._folder / f"{self._split}.{name}.npy", np.asarray(values, np.float32))


def tokenize_chats(
    documents: Callable[[], Iterable[tuple[str, Any]]],
    encode: Callable[[Any], tuple[Sequence[Replies], Mapping[str, Sequence[float]]]],
    parts: Sequence[Any],
    source: SplitSource,
    tokenizer: Tokenizer,
    cache_dir: pathlib.Path,
    progress: bool = False,
    numbers: Sequence[str] = (),
) -> ChatCorpus:
    """The tokenised chats of a source, from the cache or by one pass over them; warns of those left out as bad.

    Args:
      documents: gives (split, record), by one `read` of the source; called only when the cache has nothing.
      encode: a record to its chats, and to the numbers of these names.
      parts: all that these depend on besides source and tokenizer, such as JSON has it.
    """

    def build(folder: pathlib.Path) -> None:
        from tqdm import tqdm

        dtype = "<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4"
        writers = {split: _SplitWriter(folder, split, dtype, numbers) for split in SPLITS}
        ends: set[int] = set()
        options = dict(unit=" chats", mininterval=0.5, delay=0.5, leave=False, disable=not progress)
        for split, record in tqdm(documents(), desc=f"tokenising {source.name}", **options):
            chats, found = encode(record)
            writers[split].write(chats, found)
            ends.update(end for chat in chats for end in chat.ends)
        for writer in writers.values():
            writer.close()
        left_out = dataclasses.asdict(source.source.left_out)
        meta = {"name": source.name, "dtype": dtype, "ends": sorted(ends), "left_out": left_out}
        (folder / "meta.json").write_text(json.dumps(meta))

    templates, specials = sorted(tokenizer.chat_templates.items()), dict(tokenizer.special_tokens)
    key = fingerprint("chats", _LAYOUT, source.fingerprint, tokenizer.fingerprint, templates, specials, parts)
    folder = build_once(cache_dir / "corpora" / key, build)
    meta = json.loads((folder / "meta.json").read_text())
    LeftOut(**meta["left_out"]).log(source.name)
    splits = {
        split: ChatSplit(
            map_array(folder / f"{split}.tokens", meta["dtype"]),
            load_array(folder / f"{split}.offsets.npy"),
            learnt=map_array(folder / f"{split}.learnt", "u1"),
            records=load_array(folder / f"{split}.records.npy"),
            numbers={name: load_array(folder / f"{split}.{name}.npy") for name in numbers},
        )
        for split in SPLITS
    }
    return ChatCorpus(folder, splits, TextStore(np.zeros(0, "u1"), np.zeros(1, np.int64)), tuple(meta["ends"]))


def encode_record(chats: Sequence[Messages], record: Any, tokenizer: Tokenizer, which: str) -> list[Replies]:
    """The chats that a record makes, encoded (`encode_replies`).

    record: with `where` and `tools`, such as `fmjax.data.chats.records.Chat`.

    Raises DataError, naming file and row, for a chat that the tokenizer's template does not take.
    """
    check_characters(json.dumps(chats, ensure_ascii=False, default=str), record.where)
    try:
        return [encode_replies(tokenizer, chat, which=which, tools=record.tools) for chat in chats]
    except (TokenizerError, InputError) as error:
        raise DataError(f"{record.where}: {error}") from None
