"""What a reply may mean, and the JSON of one read."""

import dataclasses
import json
from typing import Any

from fmjax.agents.tools import Call, sound


@dataclasses.dataclass(frozen=True)
class Answer:
    """The model's last word."""

    text: str


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the model means to do, a line a step."""

    lines: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Malformed:
    """A reply that is neither a call nor an answer; `why` is told to the model."""

    why: str


Action = Call | Answer | Plan | Malformed


def cut_off(num_tokens: int) -> Malformed:
    """What a reply means that did not come to its end."""
    return Malformed(f"your reply was cut off after {num_tokens} tokens; make it shorter")


def loads(text: str) -> Any:
    """JSON that a model wrote, its texts sound (`fmjax.agents.tools.sound`). Raises ValueError for what is none."""
    try:
        return sound(json.loads(text))
    except RecursionError:
        raise ValueError("it has too many parts inside one another") from None
