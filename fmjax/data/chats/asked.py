"""Chats up to a reply that a model is to give, with what is known of a right one: prompts to learn from rewards."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np

from fmjax.data.base import Row, described
from fmjax.data.chats.corpus import ChatCorpus, ChatSplit, encode_record, tokenize_chats
from fmjax.data.chats.records import BadChat, Messages, question, read_chat, read_tools
from fmjax.data.chats.sources import Reader
from fmjax.data.chats.templated import TemplatedData
from fmjax.data.sources import SplitSource
from fmjax.data.tokenizers.chat import encode_chat
from fmjax.data.tokenizers.loading import Tokenizer
from fmjax.data.tokenizers.replies import DATE, Replies
from fmjax.errors import ConfigError, DataError, InputError, TokenizerError

ANSWERS = ("answer", "tests")
"""Fields that say what is right."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """A chat that ends with the user.

    Attributes:
      messages: up to the reply.
      answer: what is known of a right reply, a text; "" for nothing.
      where: of the record, for messages: file and row.
      tools: JSON schemas of functions that the assistant may call; None for none.
      reply: the message that it ends with in the data; none where there is none.
    """

    messages: Messages
    answer: str
    where: str
    tools: list | None = None
    reply: Messages = dataclasses.field(default_factory=list)


def read_asked(record: Any, where: str) -> Asked:
    """What a record asks: its messages, prompt or instruction, without the reply that they may end with.

    The answer is the field 'answer' (a text or a number) or 'tests', or else that last reply.

    Raises: DataError for a record of another shape; BadChat for one that asks nothing.
    """
    if not isinstance(record, Mapping):
        raise DataError(f"{where}: expected an object, found {type(record).__name__}")
    asked, reply = question(record, where), []
    if asked is None:
        fields = ", ".join(map(str, record)) or "nothing"
        raise DataError(f"{where}: nothing is asked. Found the fields {fields}; expected messages or a prompt")
    if any(record.get(name) is not None for name in ("completion", "response", "output")):
        asked = read_chat(record, where).messages
    if asked and asked[-1]["role"] == "assistant":
        asked, reply = asked[:-1], asked[-1:]
    if not asked or asked[-1]["role"] not in ("user", "tool"):
        raise BadChat(f"{where}: a chat that does not end with the user asks for no reply")
    name = next((name for name in ANSWERS if record.get(name) is not None), None)
    answer = "".join(str(one.get("content") or "") for one in reply) if name is None else record[name]
    if isinstance(answer, list) and all(isinstance(line, str) for line in answer):
        answer = "\n".join(answer)
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise DataError(f"{where}, {name}: expected a text or a number, found {type(answer).__name__}")
    return Asked(asked, str(answer), where, read_tools(record, where), reply)


@dataclasses.dataclass(frozen=True)
class ChatPromptData(TemplatedData):
    """Chats up to the reply, as the model's own template writes them: a row has `tokens` int32 [sequence_length], 0
    after its end, and `lengths` int32 []; where `answer_bytes` is more than 0 also `answers` uint8 [answer_bytes], what
    is known of a right reply, in UTF-8, 0 after its end; where `reply_length` is, `replies` int32 [reply_length], the
    reply in the data up to the token that ends it, and `reply_lengths` int32 [].

    Attributes:
      source: where the chats come from; None means "builtin", unless there is a mixture.
        builtin: questions about sums of small numbers.
        A file, a folder or a glob of .jsonl, .json or .parquet; a folder's files named train..., validation... are
          those splits.
        package.module:Object: a sequence of records, or a function that gives one.
        A record is one of `ChatData`, whose last reply is left out, or has but a prompt; 'answer' (a text or a number)
        or 'tests' (of a program) say what is right, or else that last reply does.
      sequence_length: tokens that a chat has at most, with what begins the reply.
      answer_bytes: how long an answer may be, in UTF-8; 0 leaves answers out.
      reply_length: tokens that the reply in the data may have; 0 leaves replies out.
    """

    BUILTIN: ClassVar[str] = "fmjax.data.chats.arithmetic:questions"
    READER: ClassVar[Reader] = staticmethod(read_asked)

    sequence_length: int = 64
    answer_bytes: int = 0
    reply_length: int = 0

    def __post_init__(self):
        super().__post_init__()
        for name in ("answer_bytes", "reply_length"):
            if getattr(self, name) < 0:
                raise ConfigError(f"data.{name} = {getattr(self, name)} must be 0 or more")

    @property
    def example(self) -> dict[str, Any]:
        """The arrays of a row, known without reading any data."""
        row = described(tokens=self.sequence_length, lengths=None)
        if self.answer_bytes:
            row["answers"] = jax.ShapeDtypeStruct((self.answer_bytes,), np.uint8)
        return row | (described(replies=self.reply_length, reply_lengths=None) if self.reply_length else {})

    def _tokenize(self, source: SplitSource, tokenizer: Tokenizer, cache_dir: pathlib.Path, progress: bool):
        ends: list[int] = []

        def encode(one: Asked):
            if not ends:  # what ends a reply in this template
                chat = [*one.messages, {"role": "assistant", "content": "."}]
                ends.extend(encode_record([chat], one, tokenizer, "last")[0].ends)
            try:
                ids = encode_chat(tokenizer, one.messages, add_generation_prompt=True, tools=one.tools, now=DATE)
            except (TokenizerError, InputError) as error:
                raise DataError(f"{one.where}: {error}") from None
            answer = self._bounded(list(one.answer.encode()), "answer", "answer_bytes", one.where)
            reply = self._reply(one, tokenizer) if self.reply_length else []
            # What goes with a prompt is kept as further chats of the record, an answer with one id a byte.
            found = (ids, answer, self._bounded(reply, "reply", "reply_length", one.where))
            return [Replies(part, [0] * len(part), ends) for part in found], {}

        parts = [type(self).__name__, self.answer_bytes, self.reply_length]
        return tokenize_chats(source.stream, encode, parts, source, tokenizer, cache_dir, progress)

    def _reply(self, one: Asked, tokenizer: Tokenizer) -> list[int]:
        """The tokens of the reply in the data, the one that ends it among them."""
        if not one.reply:
            return []
        chat = encode_record([[*one.messages, *one.reply]], one, tokenizer, "last")[0].to_its_end()
        return [id for id, learnt in zip(chat.ids, chat.learnt) if learnt]

    def _bounded(self, found: list[int], what: str, key: str, where: str) -> list[int]:
        """What is kept of an answer or a reply: all of it, or nothing where none is asked for. Raises DataError where
        there is none, or too long a one."""
        size = getattr(self, key)
        if not size:
            return []
        if not found:
            raise DataError(f"{where}: no {what}, which data.{key} = {size} asks for")
        if len(found) > size:
            raise DataError(f"{where}: {what} of {len(found)}, more than data.{key} = {size}")
        return found

    def _stop_ids(self, corpora: Mapping[str, ChatCorpus]) -> Sequence[int]:
        return sorted({id for corpus in corpora.values() for id in corpus.stop_ids})

    def _rows(self, corpus: ChatCorpus, split: str) -> "AskedRows":
        found = corpus.splits[split]
        fit = self._fitting(np.diff(found.offsets)[::3], split)
        return AskedRows(found, self.example, np.flatnonzero(fit))


class AskedRows(Sequence):
    """Row i is prompt `usable[i]` of a split, with the arrays of `example` (`ChatPromptData`)."""

    def __init__(self, split: ChatSplit, example: dict[str, jax.ShapeDtypeStruct], usable: np.ndarray):
        self._split, self._example, self._usable = split, example, usable

    def __len__(self) -> int:
        return len(self._usable)

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        place = 3 * int(self._usable[index])
        bounds = self._split.offsets[place : place + 4].tolist()
        row = {name: np.zeros(kind.shape, kind.dtype) for name, kind in self._example.items()}
        sizes = {"tokens": "lengths", "answers": None, "replies": "reply_lengths"}
        for (name, size), start, end in zip(sizes.items(), bounds, bounds[1:]):
            if name in row:
                row[name][: end - start] = self._split.tokens[start:end]
            if size in row:
                row[size] = np.asarray(end - start, np.int32)
        return row
