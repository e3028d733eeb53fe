"""What a model is given: texts and chats as tokens, with what stood around them in training, and media in prompts."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fmjax.data.captions import CaptionRows
from fmjax.data.codecs.media import described
from fmjax.data.tokenizers import chat
from fmjax.errors import InputError
from fmjax.inference import kinds, values
from fmjax.inference.checks import check_list, token_ids


def lacks_tokenizer(model) -> str | None:
    """What a model lacks to read texts."""
    return None if model.tokenizer is not None else "it has no tokenizer for texts"


def need_tokenizer(model) -> None:
    """Raises InputError for a model without a tokenizer."""
    if model.tokenizer is None:
        taken = kinds.inputs(model.module)
        if "tokens" in taken:
            raise InputError(f"the model from {model.source} has no tokenizer for texts; give it token ids")
        raise InputError(f"the model from {model.source} reads {', '.join(taken) or 'nothing'}, and no texts")


def encode_texts(model, texts: Sequence[str], special: bool = False) -> list[list[int]]:
    """Tokens of texts without anything in front or behind; see `Model.tokens`."""
    check_list("texts", texts)
    need_tokenizer(model)
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"text {index} is {described(text)}, and {model} reads texts")
    if special:
        encoded = [model.tokenizer.encode_special(text) for text in texts]
    else:
        encoded = model.tokenizer.encode_batch(texts)
    for text, tokens in zip(texts, encoded):
        _check_embedded(model, f"the text {text[:40]!r}", tokens)
    return encoded


def encode_prompts(model, prompts: Sequence[str | Sequence[int]], special: bool = False) -> list[list[int]]:
    """Tokens of prompts as the model continues them; see `Model.encode_prompts`."""
    check_list("texts", prompts)
    places = [i for i, prompt in enumerate(prompts) if isinstance(prompt, str)]
    if not places:
        return [token_ids(f"prompt {i}", prompt) for i, prompt in enumerate(prompts)]
    tokens = encode_texts(model, [prompts[i] for i in places], special)
    if kinds.reads_source(model.module):
        tokens = framed(model, tokens)
    else:
        begun = [special and one[:1] == [model.tokenizer.bos_id] for one in tokens]
        tokens = [one if b else with_bos(model, one, f"prompt {i}") for i, one, b in zip(places, tokens, begun)]
    found = dict(zip(places, tokens))
    return [found[i] if i in found else token_ids(f"prompt {i}", p) for i, p in enumerate(prompts)]


def by_part(model, prompts: Sequence[Any], takes: Sequence[str]) -> list[Any]:
    """Prompts part by part: texts as a list of str, media as the arrays {name: [N, ...]} of their codec.

    Args:
      prompts: tuples of one value for each part; where there is one part alone, that value itself.
      takes: the parts in order: "text", or a modality that the model reads.

    Raises InputError for a prompt of other parts, naming its place.
    """
    check_list("prompts", prompts)
    if len(takes) == 1:
        rows = [(prompt,) for prompt in prompts]
    else:
        rows = list(prompts)
    for place, row in enumerate(rows):
        if not isinstance(row, tuple | list) or len(row) != len(takes):
            raise InputError(f"prompt {place} is {described(row)}; expected a tuple ({', '.join(takes)})")
    return [_part(model, [row[i] for row in rows], kind) for i, kind in enumerate(takes)]


def _part(model, column: list[Any], kind: str) -> Any:
    if kind != "text":
        return values.encode(model, column, kind, "prompt")
    for place, value in enumerate(column):
        if not isinstance(value, str):
            raise InputError(f"prompt {place} has {described(value)} where a text stands")
    return column


def caption_row(model, caption: Any, length: int) -> dict[str, np.ndarray]:
    """`tokens` and `segment_ids`, int32 [length] each, of a caption.

    Raises InputError for what is no text, is empty, or has more than `length` tokens.
    """
    if not isinstance(caption, str):
        raise InputError(f"a prompt of {model} is a caption, got {caption!r}")
    if not caption.strip():
        raise InputError("a prompt is empty; leave it out, or say what to draw")
    found = len(model.tokenizer.encode_pair(caption)[0])
    if found > length:
        raise InputError(
            f"prompt {caption[:60]!r} has {found} tokens, more than the {length} that {model} reads; shorten it"
        )
    return CaptionRows(model.tokenizer, length)(caption)


def encode_chat(model, messages: Sequence[Mapping[str, Any]], **options) -> list[int]:
    """Tokens of a chat up to where the assistant's reply begins; see `Model.encode_chat`."""
    need_tokenizer(model)
    tokens = chat.encode_chat(model.tokenizer, messages, **{"add_generation_prompt": True, **options})
    _check_embedded(model, "the chat", tokens)
    return tokens


def framed(model, texts: Sequence[list[int]]) -> list[list[int]]:
    """Tokens of texts with what stands around a text in training: CLS and SEP or what takes their place."""
    tokenizer = model.tokenizer
    if not model.is_bidirectional:
        return [with_bos(model, tokens, f"text {i}") for i, tokens in enumerate(texts)]
    begin, end = tokenizer.bos_id if tokenizer.cls_id is None else tokenizer.cls_id, tokenizer.sep_id
    if kinds.reads_source(model.module):
        begin = None
    end = tokenizer.eos_id if end is None else end
    before, after = ([] if id is None else [id] for id in (begin, end))
    return [[*before, *tokens, *after] for tokens in texts]


def with_bos(model, tokens: list[int], what: str, force: bool = False) -> list[int]:
    """The tokens with what a text begins with in front; see `Model.with_bos`."""
    if not force and tokens:
        return [model.tokenizer.bos_id, *tokens] if model.add_bos and model.tokenizer.bos_id is not None else tokens
    first = model.tokenizer.prefix_id
    if first is None:
        raise InputError(
            f"{what}: nothing to start from: the text before it is empty and the tokenizer has neither BOS nor EOS"
        )
    return [first, *tokens]


def _check_embedded(model, what: str, tokens: list[int]) -> None:
    rows = getattr(model.module, "vocab_size", None)
    if rows is not None and tokens and max(tokens) >= rows:
        token = model.tokenizer.token(max(tokens))
        raise InputError(f"{what} has the token {token!r}, for which the model has no embedding")
