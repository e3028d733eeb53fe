"""Tokenizers of Marian translation models: SentencePiece for each language, and one vocabulary for both."""

import dataclasses
import json
import pathlib
import re
from collections.abc import Sequence

from fmjax.data.tokenizers.base import SPECIAL_NAMES, Tokenizer, check_ids, digest
from fmjax.data.tokenizers.published_settings import TokenizerConfig, write_config
from fmjax.errors import TokenizerError
from fmjax.small_files import read_json

_CODE = re.compile(r">>[\w-]+<<")


class MarianTokenizer(Tokenizer):
    """`source.spm`, `target.spm` and `vocab.json` of a Marian translation model, such as Helsinki-NLP's.

    `encode` cuts a text of the source language, `encode_target` one of the target language; both give ids of the
    joint vocabulary, and a piece that it lacks is the unknown token. The model takes a text with EOS behind it
    (`encode_pair`). `decode` gives text of the target language. A text for a model of several target languages begins
    with a code such as >>fra<<. As `MarianTokenizer` of `transformers` without its optional punctuation normaliser.

    Args:
      source, target: bytes of the `.spm` files.
      vocabulary: id of each piece.
      name: where it came from, for messages.
      config: what is said beside these files.

    Raises: TokenizerError for bytes that are no model, and special tokens that the vocabulary lacks.
    """

    def __init__(self, source: bytes, target: bytes, vocabulary: dict[str, int], name: str, config: TokenizerConfig):
        import sentencepiece

        if config.flag("separate_vocabs"):
            raise TokenizerError(f"{name}: a vocabulary for each language (separate_vocabs) is not supported")
        self.source = name
        self._models = {"source.spm": bytes(source), "target.spm": bytes(target)}
        self._processors = {}
        for file, model in self._models.items():
            self._processors[file] = sentencepiece.SentencePieceProcessor()
            try:
                self._processors[file].LoadFromSerializedProto(model)
            except RuntimeError as error:
                raise TokenizerError(f"{name}: {file} is not a SentencePiece model: {error}") from None
        self._ids = vocabulary
        self._pieces = {index: piece for piece, index in vocabulary.items()}
        self.vocab_size = len(vocabulary)
        if set(self._pieces) != set(range(self.vocab_size)):
            raise TokenizerError(f"{name}: vocab.json does not give each id of 0..{self.vocab_size - 1} to one piece")
        named = {**config.published(), **config.specials}
        self.special_tokens = {key: named[key] for key in SPECIAL_NAMES if named.get(key) is not None}
        for key, token in self.special_tokens.items():
            if token not in vocabulary:
                raise TokenizerError(f"{name}: {key} {token!r} is not in vocab.json; do the files belong together?")
            setattr(self, key.replace("_token", "_id"), vocabulary[token])
        self.control_tokens = tuple(self.special_tokens.values())
        self.add_eos = True
        self._codes = {piece for piece in vocabulary if _CODE.fullmatch(piece)}
        self._languages = {key: config.options.get(key) for key in ("source_lang", "target_lang")}
        self.chat_templates = dict(config.chat_templates)
        self.fingerprint = digest(b"marian", *self._models.values(), json.dumps(vocabulary, sort_keys=True).encode())

    def _encode(self, file: str, text: str) -> list[int]:
        code = _CODE.match(text)
        ids = []
        if code and self._codes:
            if code[0] not in self._codes:
                known = ", ".join(sorted(self._codes))
                raise TokenizerError(f"{self.source}: no language {code[0]} in its vocabulary; known: {known}")
            ids, text = [self._ids[code[0]]], text[code.end() :]
        pieces = self._processors[file].encode(text, out_type=str)
        known = [piece not in self.control_tokens for piece in pieces]
        return ids + [self._ids.get(piece, self.unk_id) if k else self.unk_id for piece, k in zip(pieces, known)]

    def encode(self, text: str) -> list[int]:
        return self._encode("source.spm", text)

    def encode_target(self, text: str) -> list[int]:
        """Ids of a text of the target language, without special ones."""
        return self._encode("target.spm", text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def encode_special_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        raise TokenizerError(f"{self.source} is a translation model's; there are no chats for it")

    def encode_pair(self, first: str, second: str | None = None) -> tuple[list[int], list[int]]:
        """A text with EOS behind it; two are one after the other, with one EOS. All types are 0."""
        ids = self.encode(first) + ([] if second is None else self.encode(second)) + [self.eos_id]
        return ids, [0] * len(ids)

    def decode(self, ids: Sequence[int]) -> str:
        special = {self._ids[token] for token in self.special_tokens.values()}
        pieces = [self._pieces[i] for i in check_ids(ids, self.vocab_size) if i not in special]
        return self._processors["target.spm"].decode(pieces).replace("\u2581", " ").strip()

    def token(self, id: int) -> str:
        return self._pieces[check_ids([id], self.vocab_size)[0]]

    def token_to_id(self, token: str) -> int | None:
        return self._ids.get(token)

    def save(self, directory: pathlib.Path) -> None:
        directory = pathlib.Path(directory)
        for file, model in self._models.items():
            (directory / file).write_bytes(model)
        text = json.dumps(self._ids, ensure_ascii=False, indent=2)
        (directory / "vocab.json").write_text(text, encoding="utf-8")
        languages = {key: value for key, value in self._languages.items() if value is not None}
        write_config(directory, self, "MarianTokenizer", separate_vocabs=False, **languages)


def read_marian(folder: pathlib.Path, config: TokenizerConfig) -> MarianTokenizer:
    """The tokenizer of a folder with `source.spm`, `target.spm` and `vocab.json`.

    Raises: TokenizerError naming the file that is missing or malformed.
    """
    files = {file: folder / file for file in ("source.spm", "target.spm", "vocab.json")}
    for file, path in files.items():
        if not path.is_file():
            others = ", ".join(other for other in files if other != file)
            raise TokenizerError(f"{folder} has no {file}, which a Marian tokenizer needs beside {others}; fetch it")
    vocabulary = read_json(files["vocab.json"], error=TokenizerError)
    models = (files["source.spm"].read_bytes(), files["target.spm"].read_bytes())
    return MarianTokenizer(*models, vocabulary, str(folder), dataclasses.replace(config, family="marian"))
