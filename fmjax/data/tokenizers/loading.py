"""Tokenizers of every kind behind one protocol: bytes, SentencePiece, Hugging Face, and published vocabularies.

Each kind has its file: `byte`, `sentencepiece`, `siglip`, `huggingface`, `vocabularies`, `marian`, `gguf`; what is said
beside a vocabulary is read by `published_settings`, chat templates are rendered by `chat`, and `training` trains new
ones.
"""

import pathlib

from fmjax import hub
from fmjax.data.tokenizers.base import Tokenizer, cut_at_lines
from fmjax.data.tokenizers.byte import ByteTokenizer
from fmjax.data.tokenizers.gguf import read_gguf_tokenizer
from fmjax.data.tokenizers.huggingface import HuggingFaceTokenizer, read_tokenizer_json
from fmjax.data.tokenizers.marian import MarianTokenizer, read_marian
from fmjax.data.tokenizers.published_settings import read_config, read_eos_ids
from fmjax.data.tokenizers.sentencepiece import SentencePieceTokenizer
from fmjax.data.tokenizers.siglip import SiglipTokenizer
from fmjax.errors import TokenizerError
from fmjax.gguf_file import is_gguf

__all__ = [
    "ByteTokenizer",
    "HuggingFaceTokenizer",
    "MarianTokenizer",
    "SentencePieceTokenizer",
    "SiglipTokenizer",
    "Tokenizer",
    "cut_at_lines",
    "has_tokenizer",
    "load_tokenizer",
    "read_eos_ids",
]

FILES = (
    "tokenizer.json", "source.spm", "tokenizer.model", "spiece.model", "tokenizer.bytes", "vocab.txt", "vocab.json",
    "encoder.json",
)  # fmt: skip
"""What a folder's tokenizer is read from; the first that is there."""

_SUFFIXES = {pathlib.Path(file).suffix for file in FILES}

_EXPECTED = (
    "tokenizer.model, tokenizer.json or tokenizer.bytes, vocab.txt (BERT), vocab.json with merges.txt or encoder.json "
    "with vocab.bpe (GPT, GPT-2, RoBERTa, CLIP), spiece.model (SigLIP), source.spm with target.spm and vocab.json "
    "(Marian), or a GGUF file"
)


def has_tokenizer(folder: str | pathlib.Path) -> bool:
    """Whether a folder has a file that `load_tokenizer` would read."""
    return any((pathlib.Path(folder) / file).is_file() for file in FILES)


def load_tokenizer(path: str | pathlib.Path) -> Tokenizer:
    """The tokenizer of a folder: a Hugging Face one, a run's, or what `Tokenizer.save` wrote; or of one of its files.

    What is no path but can be a hub id is that model, downloaded; `WORKDIR/checkpoints/STEP` is the run's.

    A folder's is read from the first of these that it has: tokenizer.json; source.spm with target.spm and vocab.json
    (Marian); tokenizer.model (SentencePiece); spiece.model (SigLIP's); tokenizer.bytes; vocab.txt (BERT's WordPiece);
    vocab.json with merges.txt, or encoder.json with vocab.bpe (GPT-2, RoBERTa, GPT, CLIP). tokenizer_config.json,
    special_tokens_map.json, added_tokens.json, chat templates and the model type in config.json are read beside it. A
    GGUF file has all of this.

    Raises: TokenizerError when there is none or it cannot be read; names the file and what to do.
    """
    local = pathlib.Path(path).expanduser()
    if not local.exists() and local.suffix not in _SUFFIXES and hub.is_hub_id(path):
        local = hub.download(path)
    path, _ = hub.checkpoint_step(local)
    if path.is_dir():
        for file in FILES:
            if (path / file).is_file():
                return load_tokenizer(path / file)
        found = ", ".join(sorted(file.name for file in path.iterdir())[:8]) or "nothing"
        raise TokenizerError(f"no tokenizer in {path} (found there: {found}); expected {_EXPECTED}")
    if not path.is_file():
        raise TokenizerError(
            f"no tokenizer at {path}; expected 'bytes', 'train:VOCAB_SIZE' (or train_wordpiece:, train_bpe:), a file "
            "or folder, or a hub id"
        )
    if is_gguf(path):
        found = read_gguf_tokenizer(path)
        if found is None:
            raise TokenizerError(f"no tokenizer in {path}: it has no tokenizer.ggml.tokens")
        return found
    config = read_config(path.parent)
    if path.suffix == ".bytes":
        return ByteTokenizer(config.chat_templates)
    if path.suffix == ".spm":
        return read_marian(path.parent, config)
    if path.name == "spiece.model":
        if config.family != "siglip":
            raise TokenizerError(
                f"{path} is of {config.stated!r} by the files beside it; of a spiece.model SigLIP's is read alone, "
                "where tokenizer_class or model_type says so. Other kinds need a tokenizer.json"
            )
        return SiglipTokenizer(path.read_bytes(), str(path), config=config)
    if ".model" in path.suffixes:  # Mistral numbers its own: tokenizer.model.v3
        return SentencePieceTokenizer(path.read_bytes(), str(path), config=config)
    from fmjax.data.tokenizers import vocabularies

    if path.name == "vocab.txt":
        return vocabularies.read_wordpiece(path, config)
    if path.name in ("vocab.json", "encoder.json"):
        merges = path.with_name("merges.txt" if path.name == "vocab.json" else "vocab.bpe")
        return vocabularies.read_bpe(path, merges, config)
    if path.suffix == ".json":
        return read_tokenizer_json(path, config)
    raise TokenizerError(f"{path}: no tokenizer by its name; expected {_EXPECTED}")
