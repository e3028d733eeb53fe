"""The tokenizer that needs no vocabulary: bytes."""

import pathlib
import re
from collections.abc import Mapping, Sequence

from fmjax.data.tokenizers.base import Tokenizer, check_ids
from fmjax.data.tokenizers.published_settings import write_config


class ByteTokenizer(Tokenizer):
    """The UTF-8 bytes of a text, 0..255; 256 begins and 257 ends a document.

    Args:
      chat_templates: see `fmjax.data.tokenizers.chat`.
    """

    vocab_size = 258
    bos_id = 256
    eos_id = 257
    add_bos = True
    special_tokens = {"bos_token": "<bos>", "eos_token": "<eos>"}
    control_tokens = tuple(special_tokens.values())
    source = "bytes"
    fingerprint = "bytes"

    def __init__(self, chat_templates: Mapping[str, str] | None = None):
        if chat_templates:
            self.chat_templates = dict(chat_templates)

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def encode_special_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        place = 0
        for part in re.split("(<bos>|<eos>)", text):
            end = place + len(part)
            if part in self.control_tokens:
                ids.append(self.bos_id if part == "<bos>" else self.eos_id)
                spans.append((place, end))
            else:
                ids += self.encode(part)
                spans += [(at, at + 1) for at, character in enumerate(part, place) for _ in character.encode()]
            place = end
        return ids, spans

    def decode(self, ids: Sequence[int]) -> str:
        # A model may emit bytes that are no UTF-8: those show as U+FFFD.
        return bytes(i for i in check_ids(ids, self.vocab_size) if i < 256).decode(errors="replace")

    def token(self, id: int) -> str:
        (id,) = check_ids([id], self.vocab_size)
        if id >= 256:
            return "<bos>" if id == self.bos_id else "<eos>"
        return chr(id) if chr(id).isascii() and chr(id).isprintable() else f"<0x{id:02X}>"

    def token_bytes(self) -> list[bytes]:
        return [bytes([i]) for i in range(256)] + [b""] * (self.vocab_size - 256)

    def token_to_id(self, token: str) -> int | None:
        return next((i for i in range(self.vocab_size) if self.token(i) == token), None)

    def save(self, directory: pathlib.Path) -> None:
        (pathlib.Path(directory) / "tokenizer.bytes").write_text("UTF-8 bytes 0..255; bos 256; eos 257\n")
        if self.chat_templates:
            write_config(pathlib.Path(directory), self, "ByteTokenizer")
