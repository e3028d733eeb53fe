"""The tokenizer that a run's config names, and whether a model fits it and the rows of its tokens."""

import pathlib
from collections.abc import Sequence
from typing import Any

from fmjax.data.prepared import build_once, fingerprint
from fmjax.data.sources import SplitSource
from fmjax.data.tokenizers.loading import ByteTokenizer, Tokenizer, load_tokenizer
from fmjax.errors import ConfigError


def check_vocabulary(module: Any, tokenizer: Tokenizer, name: str) -> None:
    """Raises ConfigError where the module has fewer tokens than the tokenizer, which is called `name`."""
    vocab_size = getattr(module, "vocab_size", None)
    if vocab_size is not None and vocab_size < tokenizer.vocab_size:
        raise ConfigError(
            f"model.vocab_size is {vocab_size}, but the tokenizer {name!r} has {tokenizer.vocab_size} pieces; leave "
            "model.vocab_size at None or make it at least as large"
        )


def check_max_length(module: Any, length: int) -> None:
    """Raises ConfigError for a module that reads shorter texts than rows of `length` tokens."""
    max_length = getattr(module, "max_length", None)
    if max_length is not None and max_length < length:
        raise ConfigError(f"data.sequence_length is {length}, but model.max_length is {max_length}; make them fit")


def trained_size(wanted: str) -> tuple[str, int] | None:
    """("train", VOCAB_SIZE) of "train:VOCAB_SIZE", likewise of "train_wordpiece:" and "train_bpe:"; None for other
    words. Raises ConfigError for a malformed one."""
    kind, colon, size = wanted.partition(":")
    if kind not in ("train", "train_wordpiece", "train_bpe"):
        return None
    if not colon:
        raise ConfigError(f"data.tokenizer {wanted!r}: expected '{kind}:VOCAB_SIZE', such as '{kind}:2048'")
    if not size.isdecimal():
        raise ConfigError(f"data.tokenizer {wanted!r}: expected '{kind}:VOCAB_SIZE' with a whole number")
    return kind, int(size)


def open_tokenizer(
    wanted: str,
    sources: Sequence[SplitSource],
    cache_dir: pathlib.Path,
    progress: bool = False,
    specials: tuple[str, ...] = (),
) -> Tokenizer:
    """The tokenizer a config names: "bytes", "train:VOCAB_SIZE" (SentencePiece), "train_wordpiece:VOCAB_SIZE" (BERT's),
    "train_bpe:VOCAB_SIZE" (RoBERTa's) or a path. One trained on the same documents with the same settings before comes
    from the cache; `specials` are pieces that SentencePiece gets beside BOS and EOS, the others have BERT's and
    RoBERTa's."""
    if wanted == "bytes":
        return ByteTokenizer()
    trained = trained_size(wanted)
    if trained is None:
        return load_tokenizer(wanted)
    from fmjax.data.tokenizers import training as tokenizer_training

    kind, size = trained

    def build(folder: pathlib.Path) -> None:
        texts = (text for source in sources for split, text in source.stream() if split == "train")
        if kind == "train":
            model = tokenizer_training.train_sentencepiece(texts, size, progress, specials)
            (folder / "tokenizer.model").write_bytes(model)
        elif kind == "train_wordpiece":
            tokenizer_training.train_wordpiece(texts, size, progress).save(folder)
        else:
            tokenizer_training.train_bpe(texts, size, progress).save(folder)

    parts = [tokenizer_training.SETTINGS_VERSION, size, [source.fingerprint for source in sources]]
    if kind != "train":
        parts.append(kind)
    elif specials:
        parts.append(list(specials))
    key = fingerprint(*parts)
    return load_tokenizer(build_once(cache_dir / "tokenizers" / key, build))
