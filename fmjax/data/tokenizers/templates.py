"""The source of a chat template to the text of a chat: Jinja in a sandbox, as `transformers` 5 renders it."""

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

# Stand around what the assistant generated while a mask is computed. Not characters (Unicode 15, section 23.7): a chat
# that has them all the same is refused (`fmjax.data.tokenizers.chat.as_text`).
BEGIN, END = "\ufdd0", "\ufdd1"

Message = Mapping[str, Any]

TURNS = """\
{%- for message in messages %}
    {{- bos_token + message['role'] + '\\n' + message['content'] + eos_token }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- bos_token + 'assistant\\n' }}
{%- endif %}
"""
"""For a tokenizer without a template of its own: every message between its BOS and EOS, which no text can spell."""


def says_what_is_generated(source: str) -> bool:
    """Whether a template has {% generation %}, which says what is the assistant's."""
    return re.search(r"\{%[-+]?\s*generation\b", source) is not None


def chosen(tokenizer: Tokenizer, name: str | None, has_tools: bool) -> str:
    """The source of the tokenizer's template of that name, or the usual one. Raises TokenizerError without one."""
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


def render(
    tokenizer: Tokenizer, source: str, messages: Sequence[Message], add_generation_prompt: bool, tools, now, variables,
    marked: bool = False,
) -> str:  # fmt: skip
    """The text that a template's source makes of messages; `marked`: with BEGIN and END around what is the assistant's.

    Other arguments, and what it raises: as of `fmjax.data.tokenizers.chat.render_chat`.
    """
    template = _compiled(source, marked, tokenizer.source)
    now = now or datetime.datetime.now()
    try:
        return template.render(
            messages=checked(messages),
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


def checked(messages: Sequence[Message]) -> list[dict]:
    """The messages without keys whose value is None. Raises InputError for what are none."""
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
        return BEGIN + caller() + END if self.environment.is_marking else caller()


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
