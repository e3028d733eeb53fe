"""Prompts in a JSONL file, read and tokenised, with the line of whatever is wrong."""

import contextlib
import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from fmjax.commands.chat_session import check_messages
from fmjax.errors import DataError, InputError
from fmjax.inference.engine_requests import PromptRequest

WRITTEN = ("index", "sample", "text", "num_tokens", "finish", "tokens", "logprobs", "score")
"""Fields of the output; a prompt's own may not be called so."""


class PromptFile:
    """The prompts of a JSONL file: on each line {"prompt": TEXT}, {"messages": [...]} or a JSON string.

    Attributes:
      path: the file.
      prompts: for each, its text or its list of messages.
      fields: for each, the other fields of its line.
      lines: for each, the number of its line, from 1. Empty lines are passed over.
      digest: a hash of the file.

    Raises DataError, naming file and line, for what cannot be read.
    """

    def __init__(self, path: str | pathlib.Path):
        self.path = pathlib.Path(path).expanduser()
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise DataError(f"the prompts {self.path} cannot be read: {error.strerror}") from None
        self.digest = hashlib.blake2b(content, digest_size=16).hexdigest()
        self.prompts: list[str | list] = []
        self.fields: list[dict] = []
        self.lines: list[int] = []
        for number, line in enumerate(content.split(b"\n"), start=1):
            if line.strip():
                with self.naming(number):
                    prompt, fields = _read_line(line)
                self.prompts.append(prompt)
                self.fields.append(fields)
                self.lines.append(number)
        if not self.prompts:
            raise DataError(f"{self.path} has no prompts")

    @contextlib.contextmanager
    def naming(self, line: int) -> Iterator[None]:
        """Puts file and line in front of the message of an InputError."""
        try:
            yield
        except InputError as error:
            raise DataError(f"{self.path}, line {line}: {error}") from None

    def encode(self, model, *, special: bool, template: Mapping[str, Any]) -> list[list[int]]:
        """Tokens of each prompt, found to be such that the model can continue them.

        Args:
          model: a `fmjax.load.Model`.
          special: see `Model.encode_prompts`.
          template: options of `Model.encode_chat`.
        """
        encoded = []
        for prompt, line in zip(self.prompts, self.lines):
            with self.naming(line):
                if isinstance(prompt, str):
                    (tokens,) = model.encode_prompts([prompt], special=special)
                else:
                    tokens = model.encode_chat(prompt, **template)
                model.engine.check(len(encoded), PromptRequest(tokens))
            encoded.append(tokens)
        return encoded


def _read_line(line: bytes) -> tuple[str | list, dict]:
    try:
        value = json.loads(line.decode("utf-8"))
        json.dumps(value, ensure_ascii=False).encode()
    except ValueError as error:
        raise DataError(f"not JSON in UTF-8: {error}") from None
    expected = 'expected {"prompt": TEXT}, {"messages": [...]} or a JSON string'
    if isinstance(value, str):
        return value, {}
    if not isinstance(value, dict) or ("prompt" in value) == ("messages" in value):
        raise DataError(f"{expected}, got {str(value)[:60]}")
    taken = [name for name in WRITTEN if name in value]
    if taken:
        raise DataError(f"the output has a field {taken[0]!r} of its own; give this one another name")
    fields = {key: field for key, field in value.items() if key not in ("prompt", "messages")}
    if "messages" in value:
        check_messages(value["messages"], "messages")
        return value["messages"], fields
    if not isinstance(value["prompt"], str):
        raise DataError(f'{expected}, got {{"prompt": {str(value["prompt"])[:60]}}}')
    return value["prompt"], fields
