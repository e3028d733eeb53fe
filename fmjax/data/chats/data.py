"""Chats and instructions to fine-tune a language model on: the replies are learnt, all else is read."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from fmjax.data.base import described
from fmjax.data.chats.corpus import ChatCorpus, encode_record, tokenize_chats
from fmjax.data.chats.records import Chat, read_chat
from fmjax.data.chats.sources import Reader
from fmjax.data.chats.templated import TemplatedData
from fmjax.data.packing import PLAN_VERSION, PackedRows, PackingPlan, plan_whole
from fmjax.data.sources import SplitSource
from fmjax.data.tokenizers.loading import Tokenizer
from fmjax.layers.checks import check_choice

REPLIES = ("all", "last", "each")


@dataclasses.dataclass(frozen=True)
class ChatData(TemplatedData):
    """Chats, as the model's own template writes them, packed whole into rows as those of `TextData`; `loss_weights` are
    1 on the assistant's tokens, the one that ends a reply too.

    Attributes:
      source: where the chats come from; None means "builtin", unless there is a mixture.
        builtin: chats about sums of small numbers.
        A file, a folder or a glob of .jsonl, .json or .parquet; a folder's files named train..., validation... are
          those splits.
        package.module:Object: a sequence of records, or a function that gives one.
        A record has messages, prompt and completion, an instruction and its output (Alpaca), or conversations
        (ShareGPT): `fmjax.data.chats.records`.
      replies: what is learnt: "all" replies of a chat; the "last" alone; "each", in a chat of its own that ends with
        it, for templates that write earlier replies otherwise than the last (those that drop its thoughts).
    """

    BUILTIN: ClassVar[str] = "fmjax.data.chats.arithmetic:chats"
    READER: ClassVar[Reader] = staticmethod(read_chat)

    replies: str = "all"

    def __post_init__(self):
        check_choice("data.replies", self.replies, REPLIES)
        super().__post_init__()

    @property
    def example(self) -> dict[str, Any]:
        """The arrays of a row, known without reading any data."""
        names = ("tokens", "targets", "loss_weights", "segment_ids", "positions")
        return described(**dict.fromkeys(names, self.sequence_length))

    def _tokenize(self, source: SplitSource, tokenizer: Tokenizer, cache_dir: pathlib.Path, progress: bool):
        which = "all" if self.replies == "all" else "last"

        def encode(chat: Chat):
            chats = chat.by_reply() if self.replies == "each" else [chat.messages]
            return encode_record(chats, chat, tokenizer, which), {}

        return tokenize_chats(source.stream, encode, [self.replies], source, tokenizer, cache_dir, progress)

    def _stop_ids(self, corpora: Mapping[str, ChatCorpus]) -> Sequence[int]:
        return sorted({id for corpus in corpora.values() for id in corpus.stop_ids})

    def _rows(self, corpus: ChatCorpus, split: str) -> PackedRows:
        found = corpus.splits[split]
        self._fitting(np.diff(found.offsets) - 1, split)
        name = f"{split}-{self.sequence_length}-whole-v{PLAN_VERSION}"
        plan = corpus.kept(name, PackingPlan, lambda: plan_whole(np.asarray(found.offsets), self.sequence_length))
        return PackedRows(found.tokens, plan, self.sequence_length, found.learnt)
