"""A record of a data set as a chat: which shape it has is told by its fields."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from fmjax.errors import DataError

Messages = list[dict[str, Any]]

SHAPES = (
    "'messages' or 'conversations' (a list of {'role', 'content'}, or of {'from', 'value'} as ShareGPT has them); "
    "'prompt' with 'completion' or 'response' (texts, or lists of messages); 'instruction' with 'output' or "
    "'response', and perhaps 'input' or 'context' (Alpaca)"
)
"""What a record may be. Of one that is several the first counts."""

_ROLES = {
    "human": "user", "user": "user", "prompter": "user",
    "gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant", "model": "assistant", "bot": "assistant",
    "system": "system", "tool": "tool", "observation": "tool",
}  # fmt: skip
"""The speakers of ShareGPT's and similar sets, by the roles of chat templates."""


class BadChat(DataError):
    """A record of a known shape that is no chat to learn from: `data.bad_chats` says what becomes of it."""


@dataclasses.dataclass(frozen=True)
class Chat:
    """A chat to learn from.

    Attributes:
      messages: [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}, ...], as templates take them.
      where: of the record, for messages: file and row.
      tools: JSON schemas of functions that the assistant may call; None for none.
    """

    messages: Messages
    where: str
    tools: list | None = None

    def by_reply(self) -> list[Messages]:
        """The chat up to each reply."""
        ends = [place for place, message in enumerate(self.messages, 1) if message["role"] == "assistant"]
        return [self.messages[:end] for end in ends]


def read_chat(record: Any, where: str) -> Chat:
    """The chat that a record is.

    A prompt and a completion, or an instruction and an output, are a question and its reply; an input follows the
    instruction after an empty line; a text 'system' of any record goes in front.

    Raises: DataError where the record has none of the shapes; BadChat where `check_turns` refuses its messages.
    """
    if not isinstance(record, Mapping):
        raise DataError(f"{where}: expected an object, found {type(record).__name__}; a chat has {SHAPES}")
    messages = _messages(record, where)
    if messages is None:
        found = ", ".join(str(key) for key in record) or "nothing"
        raise DataError(f"{where}: no chat. Found the fields {found}; expected {SHAPES}")
    messages = _with_system(messages, record, where)
    check_turns(messages, where)
    return Chat(messages, where, read_tools(record, where))


def question(record: Mapping, where: str) -> Messages | None:
    """The messages of a record up to an answer that stands elsewhere in it: messages, a prompt or an instruction; None
    where it has none of these. Raises DataError for what is malformed."""
    if name := _first(record, "messages", "conversations", "conversation"):
        found = said(record[name], "user", f"{where}, {name}")
    elif _has(record, "prompt"):
        found = said(record["prompt"], "user", f"{where}, prompt")
    elif _has(record, "instruction"):
        found = _instruction(record, where)
    else:
        return None
    return _with_system(found, record, where)


def _with_system(messages: Messages, record: Mapping, where: str) -> Messages:
    if not _has(record, "system") or (messages and messages[0]["role"] == "system"):
        return messages
    return [{"role": "system", "content": _text(record["system"], f"{where}, system")}, *messages]


def _has(record: Mapping, *names: str) -> bool:
    return all(record.get(name) is not None for name in names)


def _first(record: Mapping, *names: str) -> str | None:
    return next((name for name in names if _has(record, name)), None)


def _messages(record: Mapping, where: str) -> Messages | None:
    """The messages of a record, without the 'system' beside them; None where it has none of the shapes."""
    if name := _first(record, "messages", "conversations", "conversation"):
        return said(record[name], "user", f"{where}, {name}", is_list=True)
    answer = _first(record, "completion", "response")
    if answer and _has(record, "prompt"):
        asked = said(record["prompt"], "user", f"{where}, prompt")
        return asked + said(record[answer], "assistant", f"{where}, {answer}")
    answer = _first(record, "output", "response")
    if answer and _has(record, "instruction"):
        return _instruction(record, where) + said(record[answer], "assistant", f"{where}, {answer}")
    return None


def _instruction(record: Mapping, where: str) -> Messages:
    """An instruction with what it is about, if anything."""
    text = _text(record["instruction"], f"{where}, instruction")
    given = _first(record, "input", "context")
    if given and (about := _text(record[given], f"{where}, {given}")).strip():
        text = f"{text}\n\n{about}"
    return [{"role": "user", "content": text}]


def _text(found: Any, where: str) -> str:
    if not isinstance(found, str):
        raise DataError(f"{where}: expected a text, found {type(found).__name__}")
    return found


def said(found: Any, role: str, where: str, is_list: bool = False) -> Messages:
    """Messages as templates take them: a text of that role, or a list of messages (nothing else, if `is_list`).

    Raises DataError for anything else.
    """
    if isinstance(found, str) and not is_list:
        return [{"role": role, "content": found}]
    if not isinstance(found, list):
        raise DataError(f"{where}: expected a list of messages, found {type(found).__name__}")
    return [read_message(message, f"{where}[{index}]") for index, message in enumerate(found)]


def read_message(message: Any, where: str) -> dict[str, Any]:
    """A message as templates take it. Raises DataError for what is none."""
    if isinstance(message, Mapping):
        message = {key: value for key, value in message.items() if value is not None}  # columns that others fill
        for speaker, text in (("role", "content"), ("from", "value")):
            role = message.get(speaker)
            if isinstance(role, str):
                rest = {key: value for key, value in message.items() if key not in (speaker, text)}
                content = {"content": message[text]} if text in message else {}
                return {"role": _ROLES.get(role.lower(), role), **content, **rest}
    raise DataError(f"{where}: expected {{'role', 'content'}} or {{'from', 'value'}}, found {str(message)[:80]}")


def read_tools(record: Mapping, where: str) -> list | None:
    """The functions of a record, which may be written as JSON. Raises DataError for what are none."""
    tools = record.get("tools")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else None
        except ValueError as error:
            raise DataError(f"{where}: field 'tools' is no JSON: {error}") from None
    if tools is not None and not isinstance(tools, list):
        raise DataError(f"{where}: field 'tools' must be a list of functions, found {type(tools).__name__}")
    return tools or None


def check_turns(messages: Messages, where: str) -> None:
    """Raises BadChat unless the messages take turns: a system message, if any, then the user and the assistant by
    turns, to the assistant's last reply; after a reply with calls of tools come their results. Every reply says or
    calls something, and every other message has a text.
    """
    if not messages:
        raise BadChat(f"{where}: a chat without messages")
    expected = ("system", "developer", "user")
    for index, message in enumerate(messages):
        role, content = message["role"], message.get("content")
        if role not in expected:
            raise BadChat(f"{where}: message {index} is of the {role}, expected one of the {' or the '.join(expected)}")
        calls = role == "assistant" and message.get("tool_calls")
        if not isinstance(content, str | list) and not calls:
            raise BadChat(f"{where}: message {index} (of the {role}) has no text: {str(content)[:40]!r}")
        if role == "assistant" and not calls and not (content.strip() if isinstance(content, str) else content):
            raise BadChat(f"{where}: message {index}, the assistant's, is empty")
        expected = {
            "user": ("assistant",),
            "assistant": ("tool",) if calls else ("user",),
            "tool": ("tool", "assistant"),
        }.get(role, ("user",))
    if messages[-1]["role"] != "assistant":
        raise BadChat(f"{where}: the last message is of the {messages[-1]['role']}, expected one of the assistant")
