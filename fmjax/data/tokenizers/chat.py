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

import jinja2
import jinja2.ext
import jinja2.sandbox

from fmjax.data.tokenizers.base import Tokenizer
from fmjax.data.tokenizers.published_settings import TEMPLATE_PLACES
from fmjax.errors import InputError, TokenizerError

# Stand around what the assistant generated while a mask is computed. Not characters (Unicode 15, section 23.7), so no
# text has them.
_BEGIN, _END = "\ufdd0", "\ufdd1"
_TEXT = "\ufdd2"  # stands inside the name of a control token that is a part of a message, and so text

Message = Mapping[str, Any]


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
    source = _chosen(tokenizer, template, bool(tools))
    return _render(tokenizer, source, messages, add_generation_prompt, tools, now, variables, marked=False)


def encode_chat(tokenizer: Tokenizer, messages: Sequence[Message], **options: Any) -> list[int]:
    """Ids of a chat, as `render_chat` writes it with the same options.

    The control tokens are those that the template writes: the name of one in a message is text, as in any document
    (`transformers` takes it for the token). No BOS is added: templates that need one write it.
    """
    text, _, places = _take_marks(render_chat(tokenizer, _as_text(tokenizer, messages), **options))
    return _encode(tokenizer, text, places)[0]


def _as_text(tokenizer: Tokenizer, messages: Sequence[Message]) -> Sequence[Message]:
    """The messages with a mark inside each name of a control token in what they say."""
    names = sorted(tokenizer.control_tokens, key=len, reverse=True)
    if not names:
        return messages
    pattern = re.compile("|".join(map(re.escape, names)))

    def marked(value: Any) -> Any:
        if isinstance(value, str):
            return pattern.sub(lambda match: match[0][:1] + _TEXT + match[0][1:], value)
        if isinstance(value, list | tuple):
            return [marked(item) for item in value]
        if isinstance(value, Mapping):
            return {key: item if key in ("role", "type") else marked(item) for key, item in value.items()}
        return value

    return marked(_checked(messages))


def _encode(tokenizer: Tokenizer, text: str, places: Sequence[int]) -> tuple[list[int], list[tuple[int, int]]]:
    """`encode_special_spans`, where a control token with one of the places inside its name is text."""
    ids, spans = tokenizer.encode_special_spans(text)
    if not places:
        return ids, spans
    control = {tokenizer.token_to_id(token) for token in tokenizer.control_tokens}
    found = []
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
    source = _chosen(tokenizer, template, bool(tools))
    if not re.search(r"\{%[-+]?\s*generation\b", source):
        raise TokenizerError(
            f"the chat template of {tokenizer.source} does not say what is the assistant's; put {{% generation %}} and "
            f"{{% endgeneration %}} around it in {TEMPLATE_PLACES}"
        )
    now, messages = now or datetime.datetime.now(), _as_text(tokenizer, messages)
    marked = _render(tokenizer, source, messages, add_generation_prompt, tools, now, variables, marked=True)
    plain = _render(tokenizer, source, messages, add_generation_prompt, tools, now, variables, marked=False)
    text, spans, places = _take_marks(marked)
    if text != _take_marks(plain)[0]:
        raise TokenizerError(
            f"the chat template of {tokenizer.source} changes what stands in its {{% generation %}}; no mask is "
            "possible"
        )
    ids, found = _encode(tokenizer, text, places)
    mask = [int(any(start < last and end > first for first, last in spans)) for start, end in found]
    return ids, mask


def _take_marks(marked: str) -> tuple[str, list[tuple[int, int]], list[int]]:
    """A text without its marks, the (start, end) of what stands between those of the assistant, and the places of those
    inside names of control tokens."""
    text, ends, places = "", [], []
    for part in re.split(f"([{_BEGIN}{_END}{_TEXT}])", marked):
        if part == _TEXT:
            places.append(len(text))
        elif part in (_BEGIN, _END):
            ends.append(len(text))
        else:
            text += part
    return text, list(zip(ends[::2], ends[1::2])), places


def _chosen(tokenizer: Tokenizer, name: str | None, has_tools: bool) -> str:
    templates = tokenizer.chat_templates
    if not templates:
        raise TokenizerError(
            f"{tokenizer.source} has no chat template (looked for in {TEMPLATE_PLACES}). Is it a base model? Use a "
            "chat model, write the prompt yourself, or put the model's template into chat_template.jinja beside it"
        )
    wanted = name or ("tool_use" if has_tools and "tool_use" in templates else "default")
    if wanted not in templates:
        raise TokenizerError(
            f"{tokenizer.source} has no chat template {wanted!r}; choose one of {', '.join(sorted(templates))}"
        )
    return templates[wanted]


def _render(tokenizer, source, messages, add_generation_prompt, tools, now, variables, marked) -> str:
    template = _compiled(source, marked, tokenizer.source)
    now = now or datetime.datetime.now()
    try:
        return template.render(
            messages=_checked(messages),
            tools=None if tools is None else list(tools),
            documents=None,
            add_generation_prompt=add_generation_prompt,
            strftime_now=now.strftime,
            **{**tokenizer.special_tokens, **variables},
        )
    except jinja2.TemplateError as error:
        raise TokenizerError(f"the chat template of {tokenizer.source} refuses this chat: {error}") from None
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise TokenizerError(
            f"the chat template of {tokenizer.source} fails on this chat: {error}; do its messages have what the "
            "template reads, such as a text as 'content'?"
        ) from None


def _checked(messages: Sequence[Message]) -> list[dict]:
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise InputError(f"a chat is a list of at least one message, got {messages!r}")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise InputError(f"message {index} must be {{'role': ..., 'content': ...}}, got {message!r}")
    return [{key: value for key, value in message.items() if value is not None} for message in messages]


class _Generation(jinja2.ext.Extension):
    """{% generation %} ... {% endgeneration %}: what the assistant generates."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller) -> str:
        return _BEGIN + caller() + _END if self.environment.is_marking else caller()


@functools.lru_cache(maxsize=32)
def _compiled(source: str, marked: bool, place: str) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.extend(is_marking=marked)
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise TokenizerError(
            f"the chat template of {place} is malformed (line {error.lineno}): {error.message}; mend it in "
            f"{TEMPLATE_PLACES}"
        ) from None


def _raise(message: str):
    raise jinja2.TemplateError(message)


def _to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    """Unlike Jinja's own filter, without escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
