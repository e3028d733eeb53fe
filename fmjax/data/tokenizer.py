"""Tokenizers: bytes, SentencePiece (`.model`) and Hugging Face (`tokenizer.json`) behind one protocol."""

import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Protocol

from fmjax.errors import TokenizerError

_SPACE_MARK = "\u2581"  # SentencePiece writes a space as this character, so it cannot tell the two apart in a text
_LONGEST_ENCODED = 1 << 20  # characters; longer texts are encoded in parts cut at line starts, to bound the memory


class Tokenizer(Protocol):
    """Text to ids and back.

    Attributes:
      vocab_size: ids lie in 0..vocab_size-1, special ones included.
      bos_id, eos_id, pad_id: ids that begin and end a document and fill a row; None where the tokenizer has none.
      fingerprint: equal for tokenizers that give equal ids.
    """

    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    fingerprint: str

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special ones."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, on several threads where the library has them."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; special ids are skipped. Raises TokenizerError for ids outside the vocabulary."""

    def save(self, directory: pathlib.Path) -> None:
        """Writes `tokenizer.*` files that `load_tokenizer(directory)` reads."""


def _digest(*parts: bytes) -> str:
    whole = hashlib.blake2b(digest_size=16)
    for part in parts:
        whole.update(len(part).to_bytes(8, "big") + part)
    return whole.hexdigest()


def _check_ids(ids: Sequence[int], vocab_size: int) -> list[int]:
    ids = [int(i) for i in ids]
    for i in ids:
        if not 0 <= i < vocab_size:
            raise TokenizerError(f"id {i} is outside the tokenizer's vocabulary of {vocab_size} pieces")
    return ids


class ByteTokenizer:
    """The UTF-8 bytes of a text, 0..255; 256 begins and 257 ends a document."""

    vocab_size = 258
    bos_id = 256
    eos_id = 257
    pad_id = None
    fingerprint = "bytes"

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        # A model may emit bytes that are no UTF-8: those show as U+FFFD.
        return bytes(i for i in _check_ids(ids, self.vocab_size) if i < 256).decode(errors="replace")

    def save(self, directory: pathlib.Path) -> None:
        (pathlib.Path(directory) / "tokenizer.bytes").write_text("UTF-8 bytes 0..255; bos 256; eos 257\n")


class SentencePieceTokenizer:
    """A SentencePiece model.

    A model that adds no space in front, normalises nothing and falls back to bytes, as those trained here, is
    lossless: `decode(encode(text)) == text` for any text. There U+2581, which SentencePiece itself would turn into
    a space, is encoded as its three UTF-8 bytes. Any other model keeps its own behaviour and normalisation.

    Args:
      model: the bytes of a `.model` file.
      name: where it came from, for messages.
      num_threads: threads of `encode_batch`; -1 takes all cores.
    """

    def __init__(self, model: bytes, name: str = "tokenizer.model", num_threads: int = -1):
        import sentencepiece

        self._model = bytes(model)
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(self._model)
        except RuntimeError as error:
            raise TokenizerError(f"{name} is not a SentencePiece model: {error}") from None
        self._num_threads = num_threads
        self.vocab_size = self._processor.vocab_size()
        self.bos_id, self.eos_id, self.pad_id = (
            i if i >= 0 else None
            for i in (self._processor.bos_id(), self._processor.eos_id(), self._processor.pad_id())
        )
        self.fingerprint = _digest(b"sentencepiece", self._model)
        mark = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE_MARK.encode()]
        probe = " a  b "
        self._is_exact = (
            all(self._processor.is_byte(i) for i in mark)
            and self._processor.encode("a", out_type=str) == ["a"]
            and self._processor.decode(self._processor.encode(probe)) == probe
        )
        self._mark = mark

    def _is_plain(self, text: str) -> bool:
        return not self._is_exact or (_SPACE_MARK not in text and len(text) <= _LONGEST_ENCODED)

    def encode(self, text: str) -> list[int]:
        if self._is_plain(text):
            return self._processor.encode(text)
        ids: list[int] = []
        for index, part in enumerate(text.split(_SPACE_MARK)):
            if index:
                ids += self._mark
            chunks = cut_at_lines(part, _LONGEST_ENCODED)
            for chunk in self._processor.encode(chunks, num_threads=self._num_threads):
                ids += chunk
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        texts = list(texts)
        plain = [self._is_plain(text) for text in texts]
        encoded = iter(self._processor.encode([t for t, p in zip(texts, plain) if p], num_threads=self._num_threads))
        return [next(encoded) if p else self.encode(text) for text, p in zip(texts, plain)]

    def decode(self, ids: Sequence[int]) -> str:
        return self._processor.decode(_check_ids(ids, self.vocab_size))

    def save(self, directory: pathlib.Path) -> None:
        (pathlib.Path(directory) / "tokenizer.model").write_bytes(self._model)


class HuggingFaceTokenizer:
    """A `tokenizer.json` of the `tokenizers` library.

    Args:
      definition: the text of the `tokenizer.json`.
      specials: {"bos_token": ..., "eos_token": ..., "pad_token": ...}, as the `tokenizer_config.json` beside it has
        them; a missing one is None.
      name: where it came from, for messages.
    """

    def __init__(self, definition: str, specials: dict[str, str | None], name: str = "tokenizer.json"):
        import tokenizers

        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(definition)
        except Exception as error:  # the library raises bare Exception
            raise TokenizerError(f"{name} is not a tokenizer.json that `tokenizers` reads: {error}") from None
        # Files saved after fine-tuning often carry these; they would silently cut and fill documents.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._definition = definition
        self._specials = {key: specials.get(key) for key in ("bos_token", "eos_token", "pad_token")}
        ids = {}
        for key, token in self._specials.items():
            ids[key] = None if token is None else self._tokenizer.token_to_id(token)
            if token is not None and ids[key] is None:
                raise TokenizerError(f"{name}: {key} {token!r} is not in its vocabulary")
        self.bos_id, self.eos_id, self.pad_id = ids["bos_token"], ids["eos_token"], ids["pad_token"]
        self.vocab_size = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self.fingerprint = _digest(b"tokenizers", definition.encode(), json.dumps(self._specials).encode())

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [e.ids for e in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(_check_ids(ids, self.vocab_size), skip_special_tokens=True)

    def save(self, directory: pathlib.Path) -> None:
        directory = pathlib.Path(directory)
        (directory / "tokenizer.json").write_text(self._definition, encoding="utf-8")
        (directory / "tokenizer_config.json").write_text(json.dumps(self._specials, indent=2))


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


def _special_tokens(folder: pathlib.Path) -> dict[str, str | None]:
    """The special tokens that the files beside a `tokenizer.json` name."""
    found: dict[str, str | None] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        path = folder / file
        if not path.is_file():
            continue
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise TokenizerError(f"{path} is not valid JSON: {error}") from None
        for key in ("bos_token", "eos_token", "pad_token"):
            entry = entries.get(key)
            if entry is not None:
                found[key] = entry["content"] if isinstance(entry, dict) else entry
    return found


def load_tokenizer(path: str | pathlib.Path) -> Tokenizer:
    """The tokenizer of a `.model` or `tokenizer.json` file, or of a folder with `tokenizer.*`.

    Raises TokenizerError when there is none or it cannot be read.
    """
    path = pathlib.Path(path).expanduser()
    if path.is_dir():
        for file in ("tokenizer.model", "tokenizer.json", "tokenizer.bytes"):
            if (path / file).is_file():
                return load_tokenizer(path / file)
        raise TokenizerError(f"no tokenizer.model, tokenizer.json or tokenizer.bytes in {path}")
    if not path.is_file():
        raise TokenizerError(f"no tokenizer at {path}; expected 'bytes', 'train:VOCAB_SIZE', or a file or folder")
    if path.suffix == ".bytes":
        return ByteTokenizer()
    if path.suffix == ".json":
        return HuggingFaceTokenizer(path.read_text(encoding="utf-8"), _special_tokens(path.parent), str(path))
    if ".model" in path.suffixes:  # Mistral numbers its own: tokenizer.model.v3
        return SentencePieceTokenizer(path.read_bytes(), str(path))
    raise TokenizerError(f"{path}: expected a SentencePiece '.model' or a Hugging Face 'tokenizer.json'")
