"""What the kinds of tokenizers share: the protocol, and checks."""

import hashlib
import pathlib
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Protocol

from fmjax.errors import TokenizerError

SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Names of the special tokens, as published `tokenizer_config.json` files and chat templates have them."""


class Tokenizer(Protocol):
    """Text to ids and back.

    Attributes:
      vocab_size: ids lie in 0..vocab_size-1, special ones included; a published vocabulary may leave some of them out.
      num_added: how many of the last ids are tokens added to the vocabulary proper.
      bos_id, eos_id, pad_id: ids that begin and end a document and fill a row; None where the tokenizer has none.
      unk_id, cls_id, sep_id, mask_id: of the unknown, classification, separator and mask tokens; None likewise.
      add_bos, add_eos: whether a text of this model begins with BOS (LLaMA and Gemma: yes; GPT-2 and Qwen: no) and
        ends with EOS.
      special_tokens: the surfaces of those that there are: {"bos_token": "<s>", ...}.
      control_tokens: the surfaces that only `encode_special` takes for tokens, those of `special_tokens` among them.
      chat_templates: Jinja sources by name; the usual one is "default". See `fmjax.data.tokenizers.chat`.
      source: where the tokenizer came from, for messages.
      fingerprint: equal for tokenizers that give equal ids.
    """

    vocab_size: int
    num_added: int = 0
    bos_id: int | None = None
    eos_id: int | None = None
    pad_id: int | None = None
    unk_id: int | None = None
    cls_id: int | None = None
    sep_id: int | None = None
    mask_id: int | None = None
    add_bos: bool = False
    add_eos: bool = False
    special_tokens: Mapping[str, str] = {}
    control_tokens: Sequence[str] = ()
    chat_templates: Mapping[str, str] = {}
    source: str = "the tokenizer"
    fingerprint: str

    @property
    def prefix_id(self) -> int | None:
        """What a text follows where nothing stands before it: BOS, or EOS where there is none (Qwen's), as in
        lm-evaluation-harness; None where there is neither."""
        return self.eos_id if self.bos_id is None else self.bos_id

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special ones in front and behind.

        Text is text: the name of a control token in it, such as <|im_end|>, is ordinary characters here
        (`split_special_tokens=True` in `transformers`). `encode_special` recognises such names.
        """

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, on several threads where the library has them."""

    def encode_special(self, text: str) -> list[int]:
        """As `encode`, where the name of a control or added token, such as <|im_start|>, stands for that token.

        For rendered chats and prompts written by hand; never for the text of documents.
        """
        return self.encode_special_spans(text)[0]

    def encode_special_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """`encode_special`, and for each id the (start, end) of its characters in the text."""

    def encode_pair(self, first: str, second: str | None = None) -> tuple[list[int], list[int]]:
        """Ids of one or two texts as the model takes them, with special ones, and the token type of each id.

        BERT: [CLS] first [SEP] second [SEP], of types 0 and 1; RoBERTa: <s> first </s></s> second </s>, all of type
        0; others: each text with BOS and EOS as `add_bos` and `add_eos` say.
        """
        ids, types = [], []
        for kind, text in enumerate([first] if second is None else [first, second]):
            part = [self.bos_id] * self.add_bos + self.encode(text) + [self.eos_id] * self.add_eos
            ids += part
            types += [kind] * len(part)
        return ids, types

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; special ids, and those left out of the vocabulary, are skipped. Raises TokenizerError for
        ids outside the vocabulary."""

    def token(self, id: int) -> str:
        """A token as the vocabulary spells it ("Ġthe", "▁the", "##ing"). Raises TokenizerError as `decode`."""

    def token_to_id(self, token: str) -> int | None:
        """The id of a token spelt as `token` gives it; None where there is none."""

    def token_bytes(self) -> list[bytes]:
        """For each id what it adds to a text that goes on, in UTF-8: b"" for control tokens, and for ids left out.

        Raises TokenizerError where what a token adds depends on the tokens around it.
        """
        raise TokenizerError(
            f"{self.source}: what a token of a {type(self).__name__} adds to a text depends on those around it; byte-"
            "level and SentencePiece vocabularies have tokens that stand for bytes"
        )

    def save(self, directory: pathlib.Path) -> None:
        """Writes files that `load_tokenizer(directory)` and the `transformers` AutoTokenizer read."""


def spelt_out(
    ids: Sequence[int], spans: Sequence[tuple[int, int]], text: str, control: Set[int],
    encode: Callable[[str], list[int]],
) -> list[int]:  # fmt: skip
    """The ids of a text, where a control token that the vocabulary itself found in it (a merge can make one) gives way
    to its characters.

    spans: (start, end) of each id's characters. encode: of one character.
    """
    found = []
    for id, (start, end) in zip(ids, spans):
        found += [i for character in text[start:end] for i in encode(character)] if id in control else [id]
    return found


def digest(*parts: bytes) -> str:
    """A fingerprint of byte strings, in their order."""
    whole = hashlib.blake2b(digest_size=16)
    for part in parts:
        whole.update(len(part).to_bytes(8, "big") + part)
    return whole.hexdigest()


def check_ids(ids: Sequence[int], vocab_size: int) -> list[int]:
    """The ids as Python integers. Raises TokenizerError for one outside 0..vocab_size-1."""
    ids = [int(i) for i in ids]
    for i in ids:
        if not 0 <= i < vocab_size:
            raise TokenizerError(f"id {i} is outside the tokenizer's vocabulary of {vocab_size} pieces")
    return ids


def cut_at_lines(text: str, longest: int) -> list[str]:
    """Cuts a text into parts of at most `longest` characters, before a newline where there is one; all parts joined
    are the text again. A newline stays with the line it begins, so pieces may hold it with what follows."""
    parts, start = [], 0
    while start < len(text):
        end = start + longest
        if end < len(text):
            newline = text.rfind("\n", start + 1, end)
            if newline > 0:
                end = newline
        parts.append(text[start:end])
        start = end
    return parts
