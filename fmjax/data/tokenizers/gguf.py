"""The tokenizer that a GGUF file carries, as one of the `tokenizers` library."""

import pathlib
from collections.abc import Mapping
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors

from fmjax.data.tokenizers.huggingface import HuggingFaceTokenizer
from fmjax.errors import TokenizerError
from fmjax.gguf_file import read_gguf

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4
_SPECIALS = {
    "bos": "bos", "eos": "eos", "unk": "unknown", "sep": "seperator", "pad": "padding", "cls": "cls", "mask": "mask",
}  # fmt: skip
"""Our names of the special tokens beside the format's, which spells one of them so."""

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,DIGITS}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = (_GPT4.replace("DIGITS", "3"),)
_QWEN2 = (_GPT4.replace("{1,DIGITS}", ""),)
_SINGLE_DIGITS = (r"\p{N}", _GPT2)
SPLITS = {
    "gpt-2": (_GPT2,),
    "smollm": _SINGLE_DIGITS,
    "starcoder": _SINGLE_DIGITS,
    "refact": _SINGLE_DIGITS,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "tekken": (_TEKKEN,),
}
"""`tokenizer.ggml.pre`: what texts are cut at before their bytes are merged, one expression after the other."""
_WHOLE = ("llama-bpe", "llama3", "llama-v3", "tekken")  # a word that is a token is not merged anew
_COMPOSED = ("qwen2", "deepseek-r1-qwen")  # texts are in Unicode's form NFC


def read_gguf_tokenizer(path: pathlib.Path) -> HuggingFaceTokenizer | None:
    """The tokenizer of a GGUF file; None where it has none.

    Raises TokenizerError for a kind that is not supported, and ids that are not in the vocabulary.
    """
    metadata, _ = read_gguf(path)
    if "tokenizer.ggml.tokens" not in metadata:
        return None
    return build(metadata, str(path))


def build(metadata: Mapping[str, Any], source: str) -> HuggingFaceTokenizer:
    """The tokenizer that a file's metadata describe."""
    values = {key.removeprefix("tokenizer.ggml."): value for key, value in metadata.items()}
    kind = values.get("model")
    if kind not in _BUILDERS:
        raise TokenizerError(
            f"{source}: tokenizer.ggml.model {kind!r} is not supported; supported: {', '.join(_BUILDERS)}"
        )
    tokens = values["tokens"]
    if len(set(tokens)) < len(tokens):
        again = next(token for index, token in enumerate(tokens) if token in tokens[:index])
        raise TokenizerError(f"{source}: tokenizer.ggml.tokens has {again!r} twice")
    types = values.get("token_type") or [_NORMAL] * len(tokens)
    if len(types) != len(tokens):
        raise TokenizerError(f"{source}: {len(tokens)} tokens, but {len(types)} of tokenizer.ggml.token_type")
    specials = {}
    for name, theirs in _SPECIALS.items():
        index = values.get(f"{theirs}_token_id")
        if index is not None and not 0 <= index < len(tokens):
            raise TokenizerError(
                f"{source}: tokenizer.ggml.{theirs}_token_id = {index}, but it has {len(tokens)} tokens"
            )
        specials[f"{name}_token"] = None if index is None else tokens[index]
    pieces = {_spelt(token, kind): index for index, token in enumerate(tokens)}
    built = _BUILDERS[kind](
        pieces, types, {"general.architecture": metadata.get("general.architecture"), **values}, source
    )
    adds_bos = values.get("add_bos_token", kind == "llama" or values.get("pre") in _WHOLE[:3])
    _add_ends(built, specials, bool(adds_bos), bool(values.get("add_eos_token", False)), values, source)
    for special in (True, False):
        wanted = _CONTROL if special else _USER_DEFINED
        added = [
            tokenizers.AddedToken(token, normalized=False, special=special)
            for token, one in zip(tokens, types)
            if one == wanted and token in pieces
        ]
        built.add_special_tokens(added) if special else built.add_tokens(added)
    prefix = "tokenizer.chat_template."
    templates = {key.removeprefix(prefix): text for key, text in metadata.items() if key.startswith(prefix)}
    if "tokenizer.chat_template" in metadata:
        templates["default"] = metadata["tokenizer.chat_template"]
    return HuggingFaceTokenizer(built.to_str(), specials, source, chat_templates=templates)


def _spelt(token: str, kind: str) -> str:
    """A token as its vocabulary has it. Files write SentencePiece's runs of spaces as such."""
    return "\u2581" * len(token) if kind == "llama" and token and not token.strip(" ") else token


def _add_ends(built: tokenizers.Tokenizer, specials, bos: bool, eos: bool, values, source: str) -> None:
    """What a text begins and ends with, in the post-processor."""
    ends = {"bos": bos, "eos": eos}
    for name, adds in ends.items():
        if adds and specials[f"{name}_token"] is None:
            raise TokenizerError(f"{source}: tokenizer.ggml.add_{name}_token is true, but there is no {name}_token_id")
    if not any(ends.values()):
        return
    before, after = ([specials[f"{name}_token"]] * adds for name, adds in ends.items())
    single = [*before, "$A", *after]
    built.post_processor = processors.TemplateProcessing(
        single=single,
        pair=[*single, *(f"{part}:1" for part in (*before, "$B", *after))],
        special_tokens=[(specials[f"{name}_token"], values[f"{name}_token_id"]) for name, adds in ends.items() if adds],
    )


def _byte_level(pieces: Mapping[str, int], types, values: Mapping[str, Any], source: str) -> tokenizers.Tokenizer:
    """GPT-2's BPE of bytes, with the cuts of `tokenizer.ggml.pre`."""
    kind = values.get("pre")
    if kind not in SPLITS:
        raise TokenizerError(f"{source}: tokenizer.ggml.pre {kind!r} is not supported; supported: {', '.join(SPLITS)}")
    if "merges" not in values:
        raise TokenizerError(f"{source} has no tokenizer.ggml.merges, which a tokenizer of model 'gpt2' needs")
    built = tokenizers.Tokenizer(models.BPE(dict(pieces), _pairs(values), ignore_merges=kind in _WHOLE))
    if kind in _COMPOSED:
        built.normalizer = normalizers.NFC()
    built.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(split), behavior="isolated") for split in SPLITS[kind]),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    built.decoder = decoders.ByteLevel()
    return built


def _pairs(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [tuple(merge.split(" ", 1)) for merge in values["merges"]]


def _sentencepiece(pieces: Mapping[str, int], types, values: Mapping[str, Any], source: str) -> tokenizers.Tokenizer:
    """SentencePiece's BPE: of all pairs of pieces that make a piece, the one with the highest score is merged first."""
    if "merges" in values:
        merges = _pairs(values)
    else:
        scores = values.get("scores")
        if scores is None or len(scores) != len(pieces):
            raise TokenizerError(
                f"{source}: tokenizer.ggml.scores should have one number for each of {len(pieces)} tokens"
            )
        if str(values.get("general.architecture")).startswith("gemma"):  # their order says it, their scores do not
            scores = [-index for index in range(len(pieces))]
        merges = _merges({piece: i for piece, i in pieces.items() if types[i] in (_NORMAL, _USER_DEFINED)}, scores)
    unknown = next(
        (piece for piece, i in pieces.items() if types[i] == _UNKNOWN or i == values.get("unknown_token_id")), None
    )
    built = tokenizers.Tokenizer(
        models.BPE(dict(pieces), merges, unk_token=unknown, fuse_unk=True, byte_fallback="<0x00>" in pieces)
    )
    space = normalizers.Replace(" ", "\u2581")
    parts = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    if values.get("add_space_prefix", True):
        built.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), space])
        parts.append(decoders.Strip(" ", 1, 0))
    else:
        built.normalizer = space
    built.decoder = decoders.Sequence(parts)
    return built


def _merges(pieces: Mapping[str, int], scores) -> list[tuple[str, str]]:
    """All pairs of pieces that make a piece, that of the highest score first."""
    found = []
    for piece in sorted(pieces, key=lambda piece: -scores[pieces[piece]]):
        cuts = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
        pairs = [pair for pair in cuts if pair[0] in pieces and pair[1] in pieces]
        found += sorted(pairs, key=lambda pair: (pieces[pair[0]], pieces[pair[1]]))
    return found


_BUILDERS = {"gpt2": _byte_level, "llama": _sentencepiece}
