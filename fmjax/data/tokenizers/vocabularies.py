"""The vocabularies that BERT, GPT, GPT-2, RoBERTa and CLIP were published with, as tokenizers of the `tokenizers`
library."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from fmjax.data.tokenizers.huggingface import HuggingFaceTokenizer, clip_decoder, from_definition
from fmjax.data.tokenizers.published_settings import AddedToken, TokenizerConfig
from fmjax.errors import TokenizerError
from fmjax.small_files import read_json


def read_wordpiece(path: pathlib.Path, config: TokenizerConfig) -> HuggingFaceTokenizer:
    """BERT's `vocab.txt`, a piece a line.

    `tokenizer_config.json` may give do_lower_case, strip_accents (not given: as do_lower_case) and
    tokenize_chinese_chars. Where it does not, texts are lower-cased and CJK characters stand alone, as for
    bert-base-uncased: a cased vocabulary needs that file, with `"do_lower_case": false`.

    Raises: TokenizerError where the vocabulary lacks the unknown, classification or separator token.
    """
    config = dataclasses.replace(config, family="bert")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"{path} cannot be read: {error}; fetch the file again") from None
    # Not splitlines: pieces may be other separators of lines.
    pieces = {piece: index for index, piece in enumerate(text.removesuffix("\n").split("\n"))}
    try:
        model = wordpiece(
            pieces,
            {name: _special(pieces, config, f"{name}_token") for name in ("unk", "cls", "sep")},
            lowercase=config.flag("do_lower_case") is not False,
            strip_accents=config.flag("strip_accents"),
            chinese=config.flag("tokenize_chinese_chars") is not False,
        )
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error}") from None
    return from_definition(model.to_str(), config, path)


def wordpiece(
    pieces: Mapping[str, int],
    special: Mapping[str, tuple[str, int]],
    lowercase: bool = True,
    strip_accents: bool | None = None,
    chinese: bool = True,
) -> tokenizers.Tokenizer:
    """BERT's WordPiece (Devlin et al. 2018, and its `BertTokenizer` in `transformers`).

    Args:
      pieces: ids.
      special: (token, id) of "unk", "cls" and "sep"; texts become [CLS] first [SEP] second [SEP], of types 0 and 1.
      lowercase, strip_accents: None strips accents where texts are lower-cased.
      chinese: whether CJK characters stand alone.
    """
    built = tokenizers.Tokenizer(models.WordPiece(dict(pieces), unk_token=special["unk"][0]))
    built.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=chinese, strip_accents=strip_accents, lowercase=lowercase
    )
    built.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    built.decoder = decoders.WordPiece(prefix="##")
    cls, sep = special["cls"][0], special["sep"][0]
    built.post_processor = processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=[special["cls"], special["sep"]],
    )
    return built


def read_bpe(vocabulary: pathlib.Path, merges: pathlib.Path, config: TokenizerConfig) -> HuggingFaceTokenizer:
    """`vocab.json` with `merges.txt` (or OpenAI's own names, `encoder.json` with `vocab.bpe`) of GPT-2, RoBERTa, GPT or
    CLIP.

    Which of them is said by tokenizer_class or model_type beside it; where nothing is, by the vocabulary:
    <|startoftext|> is CLIP's, other pieces that end in </w> are GPT's, <|endoftext|> is GPT-2's, <mask> is RoBERTa's.
    RoBERTa's <mask> takes the space before it, as in its published `tokenizer.json`, unless a file says otherwise.

    Raises: TokenizerError where the merges are missing, the kind is none of these, or it lacks a special token.
    """
    if not merges.is_file():
        raise TokenizerError(
            f"{vocabulary} needs {merges.name} beside it, which is not there; fetch it too, or a tokenizer.json"
        )
    config = dataclasses.replace(config, family=_bpe_family(vocabulary, config))
    try:
        pieces, pairs = models.BPE.read_file(str(vocabulary), str(merges))
    except Exception as error:  # the library raises bare Exception
        raise TokenizerError(
            f"{vocabulary} and {merges.name} are not a BPE that `tokenizers` reads: {error}; fetch both again"
        ) from None
    try:
        model = _BUILDERS[config.family](pieces, pairs, config)
    except TokenizerError as error:
        raise TokenizerError(f"{vocabulary}: {error}") from None
    if config.family == "roberta":
        mask = {**config.published(), **config.specials}.get("mask_token")
        if mask in pieces and mask not in [token.content for token in config.added]:
            mask_token = AddedToken(mask, id=pieces[mask], lstrip=True)
            config = dataclasses.replace(config, added=(*config.added, mask_token))
    return from_definition(model.to_str(), config, vocabulary)


def _bpe_family(vocabulary: pathlib.Path, config: TokenizerConfig) -> str:
    fitting = [config.family] if config.family in _BUILDERS else []
    if config.stated is None:
        pieces = read_json(vocabulary, error=TokenizerError)
        is_clip = "<|startoftext|>" in pieces
        marks = {
            "clip": is_clip,
            "openai-gpt": not is_clip and any(piece.endswith("</w>") for piece in pieces),
            "gpt2": not is_clip and "<|endoftext|>" in pieces,
            "roberta": "<mask>" in pieces,
        }
        fitting = [family for family, fits in marks.items() if fits]
    if len(fitting) != 1:
        raise TokenizerError(
            f"{vocabulary}: which kind of BPE is this? The files beside it say {config.stated!r}; expected the "
            "tokenizer_class or model_type of GPT-2, RoBERTa, OpenAI GPT or CLIP in tokenizer_config.json or "
            "config.json. Other kinds need a tokenizer.json"
        )
    return fitting[0]


def _special(pieces: Mapping[str, int], config: TokenizerConfig, name: str) -> tuple[str, int]:
    """A special token that there must be, and its id."""
    token = {**config.published(), **config.specials}.get(name)
    if token not in pieces:
        raise TokenizerError(
            f"{name} {token!r} is not in its vocabulary; is this of {config.family}? Correct the vocabulary, or name "
            "another token in tokenizer_config.json"
        )
    return token, pieces[token]


def byte_level(
    pieces: Mapping[str, int], pairs: Sequence[tuple[str, str]], add_prefix_space: bool = False
) -> tokenizers.Tokenizer:
    """GPT-2's byte-level BPE (Radford et al. 2019)."""
    built = tokenizers.Tokenizer(models.BPE(dict(pieces), list(pairs)))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    built.decoder = decoders.ByteLevel()
    return built


def _gpt2(pieces, pairs, config: TokenizerConfig) -> tokenizers.Tokenizer:
    built = byte_level(pieces, pairs, config.flag("add_prefix_space") is True)
    begins, ends = (
        [_special(pieces, config, f"{name}_token")] if config.flag(f"add_{name}_token") else []
        for name in ("bos", "eos")
    )
    if begins or ends:
        before, after = ("".join(token for token, _ in tokens) for tokens in (begins, ends))
        single = f"{before} $A {after}".split()
        pair = [*single, *(f"{part}:1" for part in f"{before} $B {after}".split())]
        tokens = dict(begins + ends)
        built.post_processor = processors.TemplateProcessing(
            single=single, pair=pair, special_tokens=list(tokens.items())
        )
    return built


def _roberta(pieces, pairs, config: TokenizerConfig) -> tokenizers.Tokenizer:
    add_prefix_space = config.flag("add_prefix_space") is True
    built = byte_level(pieces, pairs, add_prefix_space)
    sep, cls = _special(pieces, config, "sep_token"), _special(pieces, config, "cls_token")
    built.post_processor = processors.RobertaProcessing(sep, cls, True, add_prefix_space)  # True: trims offsets
    return built


def _openai_gpt(pieces, pairs, config: TokenizerConfig) -> tokenizers.Tokenizer:
    """Words of BERT's splitting, lower-cased, the last piece of each marked with </w> (Radford et al. 2018)."""
    unk, _ = _special(pieces, config, "unk_token")
    built = tokenizers.Tokenizer(models.BPE(dict(pieces), list(pairs), unk_token=unk, end_of_word_suffix="</w>"))
    built.normalizer = normalizers.BertNormalizer(lowercase=True)
    built.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    built.decoder = decoders.BPEDecoder(suffix="</w>")
    return built


CLIP_WORDS = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


def _clip(pieces, pairs, config: TokenizerConfig) -> tokenizers.Tokenizer:
    """Lower-cased words and single digits in bytes, the last piece of each marked with </w> (Radford et al. 2021); a
    text is framed by its two special tokens."""
    begin, end = _special(pieces, config, "bos_token"), _special(pieces, config, "eos_token")
    unk, _ = _special(pieces, config, "unk_token")
    built = tokenizers.Tokenizer(
        models.BPE(
            dict(pieces), list(pairs), unk_token=unk, end_of_word_suffix="</w>", continuing_subword_prefix="",
            fuse_unk=False,
        )  # fmt: skip
    )
    whitespace = normalizers.Replace(tokenizers.Regex(r"\s+"), " ")
    built.normalizer = normalizers.Sequence([normalizers.NFC(), whitespace, normalizers.Lowercase()])
    words = pre_tokenizers.Split(tokenizers.Regex(CLIP_WORDS), "removed", invert=True)
    built.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    built.decoder = clip_decoder()
    built.post_processor = processors.RobertaProcessing(end, begin, False, False)  # neither trims nor adds a space
    return built


_BUILDERS = {"gpt2": _gpt2, "roberta": _roberta, "openai-gpt": _openai_gpt, "clip": _clip}
