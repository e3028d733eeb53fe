"""A conversation with a chat model: the messages so far, and replies to them as they come."""

import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fmjax.errors import DataError, InputError
from fmjax.inference.chat_settings import NAMES, RETRY
from fmjax.inference.continuations import Options
from fmjax.small_files import write_whole

REPLY_SHARE = 4
"""Old turns are left out once less than this part of the context, or `max_new_tokens`, would be left for a reply."""


CACHE = 2048
"""Places of the cache that a conversation begins with, or its model's context; twice as many when they are too few."""


class ChatSession:
    """The messages of a conversation; changed by what is said.

    Args:
      model: a `fmjax.load.Model` with a chat template.
      messages: what was said before.
      template: options of `Model.encode_chat`.
      max_new_tokens: tokens of a reply at most.
      steps: see `fmjax.inference.continuations.Options`.
      options: how replies are drawn, as in `Model.generate`; what is not given is `Model.chat_settings`.

    Raises InputError for a bad value.

    Attributes:
      messages: [{"role": "user", "content": ...}, ...]; all of them, those left out of the last prompt too.
      left_out: how many of the oldest messages after the system prompt the context had no room for.
      settings: how replies are drawn, with the defaults of the model.
      finish: why the last reply ended (`fmjax.inference.continuations.Continuation.finish`); "" where it was cut short.
    """

    def __init__(
        self, model, messages: Sequence[Mapping[str, Any]] = (), *, template: Mapping[str, Any] | None = None,
        max_new_tokens: int = 512, steps: int = 1, **options,
    ):  # fmt: skip
        self._model, self._template = model, dict(template or {})
        self.settings = model.chat_settings | {name: options[name] for name in options if name in NAMES}
        self._options = {"max_new_tokens": max_new_tokens, "steps": steps, **options, **self.settings}
        # Of a reply that is greedy by default, and not by wish.
        greedy = "temperature" not in options and self.settings["temperature"] == 0
        self._retries = {name: RETRY[name] for name in RETRY if greedy and name not in options}
        Options(**self._options)  # refuses a bad value now rather than in the first reply
        self.messages = list(messages)
        self.left_out, self.finish = 0, ""
        self._attempts, self._cache_length = 0, CACHE

    @property
    def system(self) -> str | None:
        """The system prompt."""
        return self.messages[0]["content"] if self._has_system else None

    @property
    def _has_system(self) -> bool:
        return bool(self.messages) and self.messages[0]["role"] == "system"

    def set_system(self, text: str) -> None:
        """Replaces the system prompt, or puts one in front."""
        self.messages[: int(self._has_system)] = [{"role": "system", "content": text}]

    def reset(self) -> None:
        """Forgets all but the system prompt."""
        del self.messages[int(self._has_system) :]

    def undo(self) -> str:
        """Takes back the last message of the user and all after it; its text. Raises InputError where there is none."""
        place = self._last_question()
        text = self.messages[place]["content"]
        del self.messages[place:]
        return text

    def _last_question(self) -> int:
        places = [i for i, message in enumerate(self.messages) if message["role"] == "user"]
        if not places:
            raise InputError("there is no message to take back")
        return places[-1]

    def say(self, text: str) -> Iterator[str]:
        """The pieces of the reply to a message of the user.

        Once they have come the reply is one of the messages; when the iterator is closed before, so much of it as has
        come. With nothing of it, or an error, the messages are what they were before.

        Raises: InputError where the message does not fit into the context or the template refuses it.
        """
        return self._answer({"role": "user", "content": text}, attempt=0)

    def retry(self) -> Iterator[str]:
        """As `say` with the last message, for another reply in place of the last one."""
        self._last_question()
        return self._answer(None, self._attempts + 1)

    def _answer(self, message: dict[str, Any] | None, attempt: int) -> Iterator[str]:
        """The reply to a new message, or to the last one again."""
        before, self._attempts = list(self.messages), attempt
        if message is None:
            place = self._last_question()
            message = self.messages[place]
            del self.messages[place:]
        self.messages.append(message)
        reply, self.finish = "", ""
        try:
            prompt = self._prompt()
            options = self._options | {"cache_length": self._places(len(prompt))} | (self._retries if attempt else {})
            for piece in self._model.pieces([prompt], copies=[attempt], **options):
                reply += piece.text
                self.finish = piece.whole.finish if piece.whole else ""
                yield piece.text
        except Exception:
            reply = self.finish = ""
            raise
        finally:
            if reply or self.finish:
                self.messages.append({"role": "assistant", "content": reply})
            else:
                self.messages[:] = before

    def _places(self, prompt_length: int) -> int:
        """Places of the cache: the same in as many turns as possible, since others mean another program."""
        context = self._model.engine.context
        while self._cache_length < prompt_length + self._options["max_new_tokens"]:
            if context is not None and self._cache_length >= context:
                break
            self._cache_length *= 2
        return self._cache_length if context is None else min(self._cache_length, context)

    def _prompt(self) -> list[int]:
        """Tokens of the newest turns that leave room for a reply, after the system prompt."""
        begin = int(self._has_system)
        context = self._model.engine.context
        turns = [i for i, message in enumerate(self.messages) if message["role"] == "user" and i > begin]
        for start in [begin, *turns]:
            tokens = self._model.encode_chat(self.messages[:begin] + self.messages[start:], **self._template)
            self.left_out = start - begin
            if context is None:
                return tokens
            if len(tokens) + min(self._options["max_new_tokens"], context // REPLY_SHARE) <= context:
                return tokens
        if len(tokens) > context:
            what = "the system prompt and the message" if begin else "the message"
            raise InputError(
                f"{what} alone make {len(tokens)} tokens, more than the context of {context}; shorten them"
            )
        return tokens

    def save(self, path: str | pathlib.Path) -> None:
        """Writes the messages as JSON. Raises InputError for a file that is something else, or cannot be written."""
        path = pathlib.Path(path).expanduser()
        if path.exists():
            try:
                read_messages(path)
            except InputError:
                raise InputError(f"{path} is there already and is no saved chat; choose another name") from None
        try:
            write_whole(path, json.dumps(self.messages, indent=2, ensure_ascii=False) + "\n")
        except OSError as error:
            raise InputError(f"the chat cannot be written to {path}: {error.strerror}") from None

    def load(self, path: str | pathlib.Path) -> None:
        """Takes the messages of a file in place of these. Raises InputError as `read_messages`."""
        self.messages = read_messages(path)


def read_messages(path: str | pathlib.Path) -> list[dict[str, Any]]:
    """The messages of a file that `ChatSession.save` wrote, or anything that writes such JSON.

    Raises DataError for a file that is not there, or holds no list of messages.
    """
    path = pathlib.Path(path).expanduser()
    try:
        messages = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"the chat {path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"{path} is no saved chat, which is JSON: {error}") from None
    if messages != []:  # a conversation that was saved before anything was said
        check_messages(messages, str(path))
    return messages


def check_messages(messages: Any, place: str) -> None:
    """Raises DataError for what is no list of {"role": ..., "content": ...}; calls of tools need no content."""
    if not isinstance(messages, list):
        raise DataError(f"{place}: expected a list of messages, got {str(messages)[:60]!r}")
    if not messages:
        raise DataError(f"{place}: the list of messages is empty; a chat begins with at least one")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise DataError(f'{place}: message {index} must be {{"role": ..., "content": ...}}, got {message!r}')
        calls = message["role"] == "assistant" and message.get("tool_calls")
        if message.get("content") is None and not calls:
            raise DataError(f"{place}: message {index} has no content: {message!r}")
