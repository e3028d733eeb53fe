"""SigLIP's `spiece.model`: SentencePiece over texts without case and punctuation."""

import dataclasses
import pathlib
import re
import string
from collections.abc import Sequence

from fmjax.data.tokenizers.base import digest
from fmjax.data.tokenizers.published_settings import TokenizerConfig, write_config
from fmjax.data.tokenizers.sentencepiece import SentencePieceTokenizer

_PUNCTUATION = str.maketrans("", "", string.punctuation)


class SiglipTokenizer(SentencePieceTokenizer):
    """SentencePiece over a text in small letters, without ASCII punctuation, its whitespace single spaces (as Zhai et
    al. 2023 prepare texts); a text ends with EOS, which fills rows up too.

    `"do_lower_case": false` in `tokenizer_config.json` keeps capitals. The spans of `encode_special_spans` are those of
    the whole text between two control tokens.

    Args and errors: see `SentencePieceTokenizer`.
    """

    def __init__(self, model: bytes, name: str = "spiece.model", *, config: TokenizerConfig | None = None):
        config = dataclasses.replace(config or TokenizerConfig(), family="siglip")
        config = dataclasses.replace(config, specials={**config.published(), **config.specials})
        super().__init__(model, name, config=config)
        self._lowers = config.flag("do_lower_case") is not False
        self.add_bos, self.add_eos = False, True
        self.fingerprint = digest(b"siglip", bytes([self._lowers]), self.fingerprint.encode())

    def _canonical(self, text: str) -> str:
        text = (text.lower() if self._lowers else text).translate(_PUNCTUATION)
        return re.sub(r"\s+", " ", text).strip()

    def encode(self, text: str) -> list[int]:
        return super().encode(self._canonical(text))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return super().encode_batch([self._canonical(text) for text in texts])

    def encode_special_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        found: list[tuple[int, tuple[int, int]]] = []
        for start, end, index in self._parts(text):
            ids = self.encode(text[start:end]) if index is None else [index]
            found += [(i, (start, end)) for i in ids]
        return [i for i, _ in found], [span for _, span in found]

    def save(self, directory: pathlib.Path) -> None:
        directory = pathlib.Path(directory)
        (directory / "spiece.model").write_bytes(self._model)
        write_config(directory, self, "SiglipTokenizer", do_lower_case=self._lowers)
