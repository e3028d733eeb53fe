"""A `tokenizer.json`, read by the `tokenizers` library."""

import json
import logging
import pathlib
import threading
from collections.abc import Iterable, Mapping, Sequence

from fmjax.data.tokenizers.base import SPECIAL_NAMES, Tokenizer, check_ids, digest, spelt_out
from fmjax.data.tokenizers.published_settings import AddedToken, TokenizerConfig, write_config
from fmjax.data.tokenizers.token_bytes import bytes_of_tokens
from fmjax.errors import TokenizerError

log = logging.getLogger("fmjax")


class HuggingFaceTokenizer(Tokenizer):
    """A `tokenizer.json` of the `tokenizers` library.

    Args:
      definition: the text of the `tokenizer.json`.
      specials: {"bos_token": ..., "eos_token": ..., "pad_token": ...} and others of SPECIAL_NAMES, as the
        `tokenizer_config.json` beside it has them; a missing one is None.
      name: where it came from, for messages.
      published: special tokens taken where the vocabulary has them, and `specials` does not name another.
      added: tokens that the definition may lack; they come behind the vocabulary, with the ids they state.
      chat_templates: see `fmjax.data.tokenizers.chat`.
      token_types: whether the model reads the token types of `encode_pair`; saved for `transformers`.

    Raises: TokenizerError for a definition that cannot be read, and a token that the vocabulary has not.
    """

    def __init__(
        self,
        definition: str,
        specials: Mapping[str, str | None],
        name: str = "tokenizer.json",
        *,
        published: Mapping[str, str] | None = None,
        added: Sequence[AddedToken] = (),
        chat_templates: Mapping[str, str] | None = None,
        token_types: bool = False,
    ):
        import tokenizers

        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(definition)
        except Exception as error:  # the library raises bare Exception
            raise TokenizerError(f"{name} is not a tokenizer.json that `tokenizers` reads: {error}") from None
        # Files saved after fine-tuning often carry these; they would silently cut and fill documents.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.source = name
        is_changed = self._add_missing(added)
        named = {key: token for key in SPECIAL_NAMES if (token := specials.get(key)) is not None}
        for key, token in (published or {}).items():
            if key not in named and self._tokenizer.token_to_id(token) is not None:
                named[key] = token
        for key, token in named.items():
            if self._tokenizer.token_to_id(token) is None:
                raise TokenizerError(
                    f"{name}: {key} {token!r} is not in its vocabulary; correct it in tokenizer_config.json or "
                    "special_tokens_map.json, or add it with its id in added_tokens.json"
                )
        is_changed |= self._register_special(named.values())
        self._tokenizer.encode_special_tokens = True  # as any other text
        self._lock = threading.Lock()
        self._definition = self._tokenizer.to_str() if is_changed else definition
        self.special_tokens = {key: named[key] for key in SPECIAL_NAMES if key in named}
        special = {t.content: i for i, t in self._tokenizer.get_added_tokens_decoder().items() if t.special}
        special |= {token: self._tokenizer.token_to_id(token) for token in named.values()}
        self.control_tokens = tuple(special)
        # What the vocabulary does not know is no control token, whatever else the same id is for.
        self._control = frozenset(special.values()) - {special.get(named.get("unk_token"))}
        for key in SPECIAL_NAMES:
            token = named.get(key)
            setattr(self, key.replace("_token", "_id"), None if token is None else self._tokenizer.token_to_id(token))
        # Ids may have gaps, so these are no counts.
        self.vocab_size, proper = (
            max(self._tokenizer.get_vocab(with_added_tokens=added).values(), default=-1) + 1 for added in (True, False)
        )
        self.num_added = self.vocab_size - proper
        plain, whole = self.encode("a"), self._tokenizer.encode("a", add_special_tokens=True).ids
        self.add_bos = self.bos_id is not None and len(whole) > len(plain) and whole[0] == self.bos_id
        self.add_eos = self.eos_id is not None and len(whole) > len(plain) and whole[-1] == self.eos_id
        self.chat_templates = dict(chat_templates or {})
        self._token_types = token_types
        identity = {key: named.get(key) for key in ("bos_token", "eos_token", "pad_token")}
        self.fingerprint = digest(b"tokenizers", self._definition.encode(), json.dumps(identity).encode())

    def _add_missing(self, added: Sequence[AddedToken]) -> bool:
        """Adds tokens that are not matched in texts yet; whether there were any. Raises TokenizerError for one whose
        stated id is not the one it has or gets."""
        import tokenizers

        matched = {token.content for token in self._tokenizer.get_added_tokens_decoder().values()}
        missing = [token for token in added if token.content not in matched]
        for token in added:
            known = self._tokenizer.token_to_id(token.content)
            gets = self._tokenizer.get_vocab_size(with_added_tokens=True) if known is None else known
            if token.id not in ({gets} if known is None else {gets, None}):
                states = "state none" if token.id is None else f"state {token.id}"
                raise TokenizerError(
                    f"{self.source}: the added token {token.content!r} {'gets' if known is None else 'has'} id {gets} "
                    f"in this vocabulary, but the files beside it {states}; they belong to another tokenizer, or one "
                    "of them is missing"
                )
            if token in missing:
                flags = {key: getattr(token, key) for key in ("special", "lstrip", "rstrip", "normalized")}
                self._tokenizer.add_tokens([tokenizers.AddedToken(token.content, **flags)])
        return bool(missing)

    def _register_special(self, tokens: Iterable[str]) -> bool:
        """Makes tokens of the vocabulary special where they are not yet, as `transformers` does."""
        import tokenizers

        matched = {token.content for token in self._tokenizer.get_added_tokens_decoder().values()}
        missing = [token for token in dict.fromkeys(tokens) if token not in matched]
        self._tokenizer.add_special_tokens([tokenizers.AddedToken(token, normalized=False) for token in missing])
        return bool(missing)

    def encode(self, text: str) -> list[int]:
        with self._lock:
            return self._as_text(self._tokenizer.encode(text, add_special_tokens=False), text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        texts = list(texts)
        with self._lock:
            encodings = self._tokenizer.encode_batch(texts, add_special_tokens=False)
            return [self._as_text(encoding, text) for encoding, text in zip(encodings, texts)]

    def _as_text(self, encoding, text: str) -> list[int]:
        if self._control.isdisjoint(encoding.ids):
            return encoding.ids
        return spelt_out(encoding.ids, encoding.offsets, text, self._control, self._encode_character)

    def _encode_character(self, character: str) -> list[int]:
        return self._tokenizer.encode(character, add_special_tokens=False).ids

    def encode_special_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        with self._lock:  # the library has one switch for all threads
            self._tokenizer.encode_special_tokens = False
            try:
                encoding = self._tokenizer.encode(text, add_special_tokens=False)
            finally:
                self._tokenizer.encode_special_tokens = True
        return encoding.ids, encoding.offsets

    def encode_pair(self, first: str, second: str | None = None) -> tuple[list[int], list[int]]:
        texts = [first] if second is None else [first, second]
        ids, types = [], []
        with self._lock:
            found = self._tokenizer.encode(*texts, add_special_tokens=True)
            for id, kind, span, place in zip(found.ids, found.type_ids, found.offsets, found.sequence_ids):
                part = [id]
                if place is not None:
                    part = spelt_out(part, [span], texts[place], self._control, self._encode_character)
                ids += part
                types += [kind] * len(part)
        return ids, types

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(check_ids(ids, self.vocab_size), skip_special_tokens=True)

    def token(self, id: int) -> str:
        token = self._tokenizer.id_to_token(check_ids([id], self.vocab_size)[0])
        if token is None:
            raise TokenizerError(f"{self.source}: its vocabulary has no token with id {id}")
        return token

    def token_to_id(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)

    def token_bytes(self) -> list[bytes]:
        read = bytes_of_tokens(json.loads(self._definition).get("decoder"))
        if read is None:
            return super().token_bytes()
        added = {i: token.content for i, token in self._tokenizer.get_added_tokens_decoder().items()}
        found, control = [b""] * self.vocab_size, {self.token_to_id(token) for token in self.control_tokens}
        for token, id in self._tokenizer.get_vocab(with_added_tokens=True).items():
            if id not in control:
                found[id] = added[id].encode() if id in added else read(token)
        return found

    def save(self, directory: pathlib.Path) -> None:
        directory = pathlib.Path(directory)
        (directory / "tokenizer.json").write_text(self._definition, encoding="utf-8")
        # The generic class makes `transformers` take the file as it is; others rebuild parts of it.
        write_config(
            directory,
            self,
            "PreTrainedTokenizerFast",
            clean_up_tokenization_spaces=False,
            model_input_names=["input_ids", *["token_type_ids"] * self._token_types, "attention_mask"],
        )


def read_tokenizer_json(path: pathlib.Path, config: TokenizerConfig) -> HuggingFaceTokenizer:
    """A published `tokenizer.json`, with what is said beside it.

    Its own post-processor says whether a text begins with BOS and ends with EOS: `add_bos_token` and `add_eos_token` of
    `tokenizer_config.json` are not read beside it, as in `transformers` 5. Ones that say otherwise are warned of.
    """
    try:
        definition = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"{path} cannot be read: {error}; fetch the file again") from None
    if config.family == "clip":
        definition = _with_clips_decoder(definition)
    if _is_siglip2(config):
        definition = _in_small_letters(definition)
    tokenizer = from_definition(definition, config, path)
    for name in ("add_bos", "add_eos"):
        if config.flag(f"{name}_token") is (not getattr(tokenizer, name)):
            log.warning(
                "%s: %s_token = %s of tokenizer_config.json is not read: the post-processor of tokenizer.json says "
                "otherwise, and counts, as in transformers 5",
                path, name, str(config.flag(f"{name}_token")).lower(),
            )  # fmt: skip
    return tokenizer


def _with_clips_decoder(definition: str) -> str:
    """The text of CLIP's `tokenizer.json`, which leaves to `transformers` that the mark of a word's end is a space."""
    import tokenizers

    try:
        built = tokenizers.Tokenizer.from_str(definition)
    except Exception:  # as the library raises; whoever reads the text says so
        return definition
    built.decoder = clip_decoder()
    return built.to_str()


def _is_siglip2(config: TokenizerConfig) -> bool:
    """Whether a tokenizer is SigLIP 2's: of its class, or Gemma's beside a SigLIP, as it was published."""
    named = str(config.options.get("tokenizer_class"))
    return named.startswith("Siglip2") or (named.startswith("Gemma") and config.model_type in ("siglip", "siglip2"))


def _in_small_letters(definition: str) -> str:
    """The text of SigLIP 2's `tokenizer.json`, Gemma's, which does not say that texts are read in small letters, as the
    model was trained."""
    import tokenizers
    from tokenizers import normalizers

    try:
        built = tokenizers.Tokenizer.from_str(definition)
    except Exception:  # as the library raises; whoever reads the text says so
        return definition
    if "Lowercase" not in str(built.normalizer):
        rest = [] if built.normalizer is None else [built.normalizer]
        built.normalizer = normalizers.Sequence([normalizers.Lowercase(), *rest])
    return built.to_str()


def clip_decoder():
    """Of bytes, where </w> ends a word: a space, but not at the end of the text."""
    from tokenizers import Regex, decoders

    last, others = decoders.Replace(Regex("(</w>)+$"), ""), decoders.Replace("</w>", " ")
    return decoders.Sequence([decoders.ByteLevel(), last, others])


def why_not_clips(tokenizer: Tokenizer) -> str | None:
    """What tells a tokenizer from CLIP's kind, which `transformers` builds anew from the pieces; None for nothing."""
    if not isinstance(tokenizer, HuggingFaceTokenizer):
        return f"is a {type(tokenizer).__name__}"
    found = json.loads(tokenizer._definition)
    kind, end = found["model"]["type"], found["model"].get("end_of_word_suffix")
    if kind != "BPE" or end != "</w>":
        return f"is a {kind} whose words end with {end!r}"
    if "ByteLevel" not in str(found["pre_tokenizer"]) or "Lowercase" not in str(found["normalizer"]):
        return f"reads texts by normalizer = {found['normalizer']}, pre_tokenizer = {found['pre_tokenizer']}"
    if not (tokenizer.add_bos and tokenizer.add_eos):
        return f"puts BOS in front of a text: {tokenizer.add_bos}, EOS behind it: {tokenizer.add_eos}"
    return None


def from_definition(definition: str, config: TokenizerConfig, path: pathlib.Path) -> HuggingFaceTokenizer:
    """A tokenizer of the text of a `tokenizer.json` and what is said beside the file it came from."""
    inputs = config.options.get("model_input_names")
    return HuggingFaceTokenizer(
        definition,
        config.specials,
        str(path),
        published=config.published(),
        added=config.added,
        chat_templates=config.chat_templates,
        token_types=config.family == "bert" if inputs is None else "token_type_ids" in inputs,
    )
