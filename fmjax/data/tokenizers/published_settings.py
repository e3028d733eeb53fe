"""What the small files beside a published vocabulary say of its tokenizer: special and added tokens, chat templates."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from fmjax.data.tokenizers.base import SPECIAL_NAMES, Tokenizer
from fmjax.errors import TokenizerError
from fmjax.small_files import read_json

TEMPLATE_PLACES = (
    "chat_template.jinja, additional_chat_templates/*.jinja, 'chat_template' in tokenizer_config.json, and "
    "chat_template.json"
)

FAMILIES = {
    "bert": "bert", "distilbert": "bert", "electra": "bert",
    "BertTokenizer": "bert", "DistilBertTokenizer": "bert", "ElectraTokenizer": "bert",
    "roberta": "roberta", "bart": "roberta", "longformer": "roberta",
    "RobertaTokenizer": "roberta", "BartTokenizer": "roberta", "LongformerTokenizer": "roberta",
    "gpt2": "gpt2", "gpt_neo": "gpt2", "gptj": "gpt2", "GPT2Tokenizer": "gpt2",
    "clip": "clip", "clip_text_model": "clip", "CLIPTokenizer": "clip",
    "siglip": "siglip", "siglip_text_model": "siglip", "SiglipTokenizer": "siglip",
    "openai-gpt": "openai-gpt", "OpenAIGPTTokenizer": "openai-gpt",
    "llama": "llama", "mistral": "llama", "LlamaTokenizer": "llama",
    "gemma": "gemma", "gemma2": "gemma", "gemma3_text": "gemma", "gemma3": "gemma", "GemmaTokenizer": "gemma",
    "marian": "marian", "MarianTokenizer": "marian",
}  # fmt: skip
"""The family of tokenizers behind a `tokenizer_class` or a `model_type`."""

_BERT = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
_ROBERTA = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "sep": "</s>", "pad": "<pad>", "cls": "<s>", "mask": "<mask>"}
_PUBLISHED = {
    "bert": _BERT,
    "roberta": _ROBERTA,
    "gpt2": dict.fromkeys(("bos", "eos", "unk"), "<|endoftext|>"),
    "openai-gpt": {"unk": "<unk>"},
    "clip": {"bos": "<|startoftext|>", **dict.fromkeys(("eos", "unk", "pad"), "<|endoftext|>")},
    "siglip": {"eos": "</s>", "unk": "<unk>", "pad": "</s>"},
    "llama": {"bos": "<s>", "eos": "</s>", "unk": "<unk>"},
    "gemma": {"bos": "<bos>", "eos": "<eos>", "unk": "<unk>", "pad": "<pad>"},
    "marian": {"eos": "</s>", "unk": "<unk>", "pad": "<pad>"},
}


@dataclasses.dataclass(frozen=True)
class AddedToken:
    """A token that is matched in the text itself, before the vocabulary's own splitting.

    Attributes:
      content: its text.
      id: None where the vocabulary has it already, at whatever id.
      special: skipped in decoding.
      lstrip, rstrip: whether it takes the whitespace before and after it.
      normalized: whether it is looked for in the normalised text.
    """

    content: str
    id: int | None = None
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """The files beside a vocabulary.

    Attributes:
      family: one of the values of FAMILIES; None where no file names a class or model type that is known.
      stated: the `tokenizer_class` or `model_type` that says so; None where none does.
      specials: special tokens that a file names, by their names in SPECIAL_NAMES; None for one that is said not to be.
      added: tokens beyond the vocabulary, and any that have flags of their own, in the order of their ids.
      options: all of `tokenizer_config.json`.
      chat_templates: by name.
      model_type: of config.json, whatever class of tokenizers a file names; None where there is none.
    """

    family: str | None = None
    stated: str | None = None
    specials: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    added: tuple[AddedToken, ...] = ()
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    chat_templates: Mapping[str, str] = dataclasses.field(default_factory=dict)
    model_type: str | None = None

    def published(self) -> dict[str, str]:
        """Special tokens that the family has where no file names others."""
        defaults = {f"{name}_token": token for name, token in _PUBLISHED.get(self.family, {}).items()}
        return {name: token for name, token in defaults.items() if name not in self.specials}

    def flag(self, name: str) -> bool | None:
        """A yes or no of `tokenizer_config.json`; None where there is none. Raises TokenizerError for other values."""
        value = self.options.get(name)
        if value is not None and not isinstance(value, bool):
            raise TokenizerError(f"tokenizer_config.json: {name} must be true or false, got {value!r}")
        return value


def _read_if_there(path: pathlib.Path) -> dict:
    return read_json(path, error=TokenizerError) if path.is_file() else {}


def read_config(folder: pathlib.Path) -> TokenizerConfig:
    """Reads tokenizer_config.json, special_tokens_map.json, added_tokens.json, chat templates and config.json's
    model_type, as far as the folder has them. Raises TokenizerError for one that is malformed."""
    options = _read_if_there(folder / "tokenizer_config.json")
    mapped = _read_if_there(folder / "special_tokens_map.json")
    model = _read_if_there(folder / "config.json")
    # A generic class says that the vocabulary's own file is complete: then the model type adds nothing.
    stated = options.get("tokenizer_class") or model.get("tokenizer_class") or model.get("model_type")
    family = FAMILIES.get(str(stated).removesuffix("Fast"))
    specials: dict[str, str | None] = {}
    added: dict[str, AddedToken] = {}
    for entries in (mapped, options):
        for name in SPECIAL_NAMES:
            if name in entries and (entries[name] is not None or name not in specials):
                specials[name] = None if entries[name] is None else _noted(entries[name], name, added)
        extra = entries.get("additional_special_tokens") or entries.get("extra_special_tokens") or ()
        for token in extra.values() if isinstance(extra, dict) else extra:
            _noted(token, "additional_special_tokens", added, always=True)
    for index, entry in (options.get("added_tokens_decoder") or {}).items():
        token = _added_token(entry, f"{folder}: added_tokens_decoder {index}", special=False)
        added[token.content] = dataclasses.replace(token, id=int(index) if index.isdecimal() else -1)
    for content, index in _read_if_there(folder / "added_tokens.json").items():
        known = added.get(content) or AddedToken(content, special=content in specials.values())
        added[content] = dataclasses.replace(known, id=index)
    for token in added.values():
        if token.id is not None and not is_id(token.id):
            raise TokenizerError(f"{folder}: the added token {token.content!r} has id {token.id!r}; expected 0 or more")
    ordered = sorted(added.values(), key=lambda token: (token.id is None, token.id or 0))
    templates = read_chat_templates(folder)
    return TokenizerConfig(
        family, stated, specials, tuple(ordered), options, templates, model_type=model.get("model_type")
    )


def is_id(value: Any) -> bool:
    """Whether a value from a file can be a token's id."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _added_token(entry: Any, place: str, special: bool) -> AddedToken:
    if isinstance(entry, str):
        return AddedToken(entry, special=special)
    if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
        raise TokenizerError(f"{place}: expected a token or {{'content': ...}}, got {entry!r}")
    flags = {key: bool(entry[key]) for key in ("special", "lstrip", "rstrip", "normalized") if key in entry}
    return AddedToken(entry["content"], **{"special": special, **flags})


def _noted(entry: Any, place: str, added: dict[str, AddedToken], always: bool = False) -> str:
    """The text of a special token; one with flags is noted among the added ones."""
    token = dataclasses.replace(_added_token(entry, place, special=True), special=True)
    if always or token.lstrip or token.rstrip:
        added.setdefault(token.content, token)
    return token.content


def read_chat_templates(folder: pathlib.Path) -> dict[str, str]:
    """Chat templates by name, from the files that TEMPLATE_PLACES lists; the first of these wins."""
    templates: dict[str, str] = {}
    for file in ("chat_template.json", "tokenizer_config.json"):
        found = _read_if_there(folder / file).get("chat_template")
        if isinstance(found, str):
            found = [{"name": "default", "template": found}]
        elif isinstance(found, dict):
            found = [{"name": name, "template": template} for name, template in found.items()]
        for entry in found or ():
            if not isinstance(entry, dict) or not isinstance(entry.get("template"), str):
                raise TokenizerError(f"{folder / file}: chat_template must be text or named templates, got {entry!r}")
            templates[str(entry.get("name"))] = entry["template"]
    for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        templates[path.stem] = path.read_text(encoding="utf-8")
    if (folder / "chat_template.jinja").is_file():
        templates["default"] = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    return templates


def write_config(directory: pathlib.Path, tokenizer: Tokenizer, tokenizer_class: str, **options: Any) -> None:
    """Writes `tokenizer_config.json`: the class, special tokens, chat templates and further keys."""
    config: dict[str, Any] = {"tokenizer_class": tokenizer_class, **tokenizer.special_tokens, **options}
    templates = tokenizer.chat_templates
    if set(templates) == {"default"}:
        config["chat_template"] = templates["default"]
    elif templates:
        config["chat_template"] = [{"name": name, "template": text} for name, text in sorted(templates.items())]
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (directory / "tokenizer_config.json").write_text(text, encoding="utf-8")


def read_eos_ids(folder: str | pathlib.Path, tokenizer: Tokenizer | None = None) -> tuple[int, ...]:
    """All ids that end a text, as `generation_config.json` says, or else `config.json`, or else the tokenizer's EOS.

    LLaMA 3, for one, ends a document with <|end_of_text|> and a turn of a chat with <|eot_id|>.

    Raises TokenizerError for an `eos_token_id` that is no id.
    """
    files = [pathlib.Path(folder) / file for file in ("generation_config.json", "config.json")]
    ids = stated_eos_ids({str(file): _read_if_there(file) for file in files})
    if ids is None:
        return () if tokenizer is None or tokenizer.eos_id is None else (tokenizer.eos_id,)
    return ids


def stated_eos_ids(contents: Mapping[str, Mapping]) -> tuple[int, ...] | None:
    """The `eos_token_id` of the first of some files' contents, by their names, that has one; None where none has.

    Raises TokenizerError for one that is no id.
    """
    for file, values in contents.items():
        found = values.get("eos_token_id")
        if found is None:
            continue
        ids = found if isinstance(found, list) else [found]
        if not all(is_id(i) for i in ids):
            raise TokenizerError(f"{file}: eos_token_id is {found!r}; expected an id or a list of ids")
        return tuple(dict.fromkeys(ids))
    return None
