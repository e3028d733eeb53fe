"""Chat templates: a list of messages to the text, and the ids, that a chat model was trained on.

A template is the Jinja source that a model is published with; it is rendered as `transformers` 5 does
(`apply_chat_template`), in a sandbox.
"""

import datetime
import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fmjax.data.tokenizers.base import Tokenizer
from fmjax.data.tokenizers.published_settings import TEMPLATE_PLACES
from fmjax.data.tokenizers.templates import BEGIN, END, Message, checked, chosen, render, says_what_is_generated
from fmjax.errors import InputError, TokenizerError

TEXT = "\ufdd2"  # stands inside the name of a control token that is a part of a message, and so text; no character


def render_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = False,
    template: str | None = None,
    tools: Sequence[Mapping] | None = None,
    now: datetime.datetime | None = None,
    **variables: Any,
) -> str:
    """The text of a chat.

    Args:
      tokenizer: whose `chat_templates` and special tokens are used.
      messages: {"role": "user", "content": "Hello"} and the like. Keys whose value is None are left out.
      add_generation_prompt: whether to end with what begins a reply of the assistant.
      template: the name of one of the tokenizer's templates; None is "tool_use" where there are tools and such a
        template, and "default" otherwise.
      tools: JSON schemas of functions that the model may call.
      now: the time that templates may ask for; None is the present.
      **variables: further variables of the template, such as `enable_thinking=False` of Qwen 3.

    Raises: TokenizerError without a template, and for one that is malformed or refuses the messages; InputError for
      messages that are none.
    """
    source = chosen(tokenizer, template, bool(tools))
    return render(tokenizer, source, messages, add_generation_prompt, tools, now, variables)


def encode_chat(tokenizer: Tokenizer, messages: Sequence[Message], **options: Any) -> list[int]:
    """Ids of a chat, as `render_chat` writes it with the same options.

    The control tokens are those that the template writes: the name of one in a message is text, as in any document
    (`transformers` takes it for the token). No BOS is added: templates that need one write it.
    """
    text, _, places = take_marks(render_chat(tokenizer, as_text(tokenizer, messages, options), **options))
    return encode_marked(tokenizer, text, places)[0]


def as_text(tokenizer: Tokenizer, messages: Sequence[Message], beside: Any = None) -> Sequence[Message]:
    """The messages with a mark inside each name of a control token in what they say.

    Args:
      beside: what else the template may write: tools, and variables.

    Raises InputError for what are no messages, and for a mark in any of it: the places of replies would be false.
    """
    messages = checked(messages)
    for index, message in enumerate(messages):
        _check_unmarked(message, f"message {index} has")
    _check_unmarked(beside, "what is given beside the messages, such as tools, has")
    pattern = _control_names(tokenizer)
    if pattern is None:
        return messages

    def marked(value: Any) -> Any:
        if isinstance(value, str):
            return pattern.sub(lambda match: match[0][:1] + TEXT + match[0][1:], value)
        if isinstance(value, list | tuple):
            return [marked(item) for item in value]
        if isinstance(value, Mapping):
            return {key: item if key in ("role", "type") else marked(item) for key, item in value.items()}
        return value

    return marked(messages)


def _check_unmarked(value: Any, has: str) -> None:
    if found := re.search(f"[{BEGIN}{END}{TEXT}]", json.dumps(value, ensure_ascii=False, default=str)):
        raise InputError(
            f"{has} U+{ord(found[0]):04X}, which is no character and stands for the places of replies here; take it out"
        )


# Of the few tokenizers that a process has: Gemma's has thousands of control tokens.
@functools.lru_cache(maxsize=4)
def _control_names(tokenizer: Tokenizer) -> re.Pattern | None:
    """What finds the names of control tokens in a text; None where there are none."""
    names = sorted(tokenizer.control_tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, names))) if names else None


@functools.lru_cache(maxsize=4)
def control_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """The ids of a tokenizer's control tokens."""
    return frozenset(tokenizer.token_to_id(token) for token in tokenizer.control_tokens)


def encode_marked(tokenizer: Tokenizer, text: str, places: Sequence[int]) -> tuple[list[int], list[tuple[int, int]]]:
    """`encode_special_spans`, where a control token with one of the places inside its name is text."""
    ids, spans = tokenizer.encode_special_spans(text)
    if not places:
        return ids, spans
    control, found = control_ids(tokenizer), []
    for id, (start, end) in zip(ids, spans):
        is_text = id in control and any(start < place < end for place in places)
        found += [(i, (start, end)) for i in (tokenizer.encode(text[start:end]) if is_text else [id])]
    return [id for id, _ in found], [span for _, span in found]


def encode_chat_with_mask(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = False,
    template: str | None = None,
    tools: Sequence[Mapping] | None = None,
    now: datetime.datetime | None = None,
    **variables: Any,
) -> tuple[list[int], list[int]]:
    """Ids of a chat, and for each 1 where it is the assistant's, 0 elsewhere; arguments as `render_chat`.

    The template says what is the assistant's, between {% generation %} and {% endgeneration %}; a token that has any
    character of it counts. As `return_assistant_tokens_mask` of `transformers`.

    Raises: as `render_chat`, and TokenizerError for a template without {% generation %}.
    """
    source = chosen(tokenizer, template, bool(tools))
    if not says_what_is_generated(source):
        raise TokenizerError(
            f"the chat template of {tokenizer.source} does not say what is the assistant's; put {{% generation %}} and "
            f"{{% endgeneration %}} around it in {TEMPLATE_PLACES}"
        )
    now = now or datetime.datetime.now()
    messages = as_text(tokenizer, messages, [tools, variables])
    text, spans, places = generated(tokenizer, source, messages, add_generation_prompt, tools, now, variables)
    ids, found = encode_marked(tokenizer, text, places)
    return ids, [int(any(start < last and end > first for first, last in spans)) for start, end in found]


def generated(
    tokenizer: Tokenizer, source: str, messages: Sequence[Message], *options: Any
) -> tuple[str, list[tuple[int, int]], list[int]]:
    """A chat's text, where in it stands what the template's {% generation %} says is the assistant's, and the places
    inside names of control tokens that are text.

    Args:
      messages: as of `as_text`.
      options: further ones of `fmjax.data.tokenizers.templates.render`.

    Raises TokenizerError for a template that reads what stands in its {% generation %}.
    """
    text, spans, places = take_marks(render(tokenizer, source, messages, *options, marked=True))
    if text != take_marks(render(tokenizer, source, messages, *options))[0]:
        raise TokenizerError(
            f"the chat template of {tokenizer.source} changes what stands in its {{% generation %}}; no mask is "
            "possible"
        )
    return text, spans, places


def take_marks(marked: str) -> tuple[str, list[tuple[int, int]], list[int]]:
    """A text without its marks, the (start, end) of what stands between those of the assistant, and the places of those
    inside names of control tokens."""
    text, ends, places = "", [], []
    for part in re.split(f"([{BEGIN}{END}{TEXT}])", marked):
        if part == TEXT:
            places.append(len(text))
        elif part in (BEGIN, END):
            ends.append(len(text))
        else:
            text += part
    return text, list(zip(ends[::2], ends[1::2])), places
