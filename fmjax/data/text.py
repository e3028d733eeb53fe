"""Text for language models: sources, tokenizer, packing, shuffling and mixing, opened from the config's `data`."""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np

from fmjax.data.base import OpenData, Row
from fmjax.data.cache import build_once, fingerprint
from fmjax.data.corpus import Corpus, require_documents, tokenize_corpus
from fmjax.data.packing import PackedRows
from fmjax.data.sources import BuiltinSource, Source
from fmjax.data.tokenizer import ByteTokenizer, Tokenizer, load_tokenizer
from fmjax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class TextData:
    source: str | None = None
    sequence_length: int = 512
    tokenizer: str = "train:2048"

    def open(
        self,
        *,
        seed: int,
        cache_dir: pathlib.Path,
        workdir: pathlib.Path | None = None,
        progress: bool = False,
    ) -> OpenData:
        cache_dir = pathlib.Path(cache_dir)
        source = BuiltinSource.open(cache_dir)
        tokenizer = open_tokenizer(self.tokenizer, [source], cache_dir, progress)
        corpus = tokenize_corpus(source.stream(), source.fingerprint, tokenizer, cache_dir, source.name, progress)
        require_documents(corpus, "train", source.name)
        train = PackedRows(corpus.splits["train"].tokens, corpus.plan("train", self.sequence_length), self.sequence_length)
        heldout = PackedRows(
            corpus.splits["heldout"].tokens, corpus.plan("heldout", self.sequence_length), self.sequence_length
        )
        import grain

        return OpenData(
            train=grain.MapDataset.source(train).shuffle(seed).repeat(),
            evaluation={"heldout": heldout},
            tokenizer=tokenizer,
            model_fields={"vocab_size": tokenizer.vocab_size},
            identity={source.name: source.fingerprint, "tokenizer": tokenizer.fingerprint},
            documents=lambda split="heldout": corpus.heldout_text,
        )


def open_tokenizer(
    wanted: str, sources: Sequence[Source], cache_dir: pathlib.Path, progress: bool = False
) -> Tokenizer:
    """The tokenizer a config names: "bytes", "train:VOCAB_SIZE" or a path; a trained one comes from the cache."""
    if wanted == "bytes":
        return ByteTokenizer()
    if not wanted.startswith("train:"):
        return load_tokenizer(wanted)
    from fmjax.data import tokenizer_training

    size = wanted.removeprefix("train:")
    if not size.isdecimal():
        raise ConfigError(f"data.tokenizer {wanted!r}: expected 'train:VOCAB_SIZE' with a whole number")

    def build(folder: pathlib.Path) -> None:
        texts = (text for source in sources for split, text in source.stream() if split == "train")
        model = tokenizer_training.train_sentencepiece(texts, int(size), progress)
        (folder / "tokenizer.model").write_bytes(model)

    key = fingerprint(tokenizer_training.SETTINGS_VERSION, int(size), [source.fingerprint for source in sources])
    return load_tokenizer(build_once(cache_dir / "tokenizers" / key, build))
