"""What a chat template writes around messages: a text that spells it could end its own message, and begin another."""

import datetime
import functools
import re
from collections.abc import Iterable

from fmjax.data.tokenizers.base import Tokenizer
from fmjax.data.tokenizers.chat import render_chat
from fmjax.errors import TokenizerError

PLACE = "\ufdd3"  # stands for a message in a rendered chat; no character

CHATS = (
    ("user",), ("user", "assistant", "user"), ("system", "user", "assistant", "user"), ("user", "assistant", "tool"),
)  # fmt: skip
"""Roles of chats that are rendered, where the template takes them."""


@functools.lru_cache(maxsize=4)
def marks_of(tokenizer: Tokenizer, now: datetime.datetime) -> tuple[str, ...]:
    """The strings that a tokenizer's chat templates write around a message: `<|user|>`, `[/INST]`, `USER:`.

    Each line of what stands before or behind a message is one, and each part of it in <> or []; of lines of at most two
    words also each word that has other signs than letters. Words of letters alone, and signs alone, are none: texts
    have them anyway. Of what stands before the first message the last line and its last word count. And <name> and
    </name>, wherever a template has it.
    """
    found = set(re.findall(r"</?[A-Za-z_]+>", " ".join(tokenizer.chat_templates.values())))
    for roles in CHATS:
        messages = [{"role": role, "content": PLACE} for role in roles]
        try:
            first, *others = render_chat(tokenizer, messages, add_generation_prompt=True, now=now).split(PLACE)
        except TokenizerError:  # it does not take these roles
            continue
        last = first.strip().rpartition("\n")[2]
        for piece in (last, *last.split()[-1:], *others):
            found.update(_marks(piece, tokenizer.control_tokens))
    return tuple(sorted(found, key=len, reverse=True))


def _marks(piece: str, control: Iterable[str]) -> set[str]:
    """The marks of what stands beside a message."""
    names = "|".join(map(re.escape, sorted(control, key=len, reverse=True)))
    found = set()
    for line in re.split(f"{names}|\n" if names else "\n", piece):
        words = line.split()
        found.add(line.strip())
        parts = re.findall(r"<[^<>\s]+>|\[[^\[\]\s]+\]", line)
        found.update(parts)
        if len(words) <= 2:
            found.update(word for word in re.sub(r"<[^<>\s]+>|\[[^\[\]\s]+\]", " ", line).split())
    return {mark for mark in found if re.search(r"\w", mark) and re.search(r"[^\w\s]", mark)}


def without(text: str, marks: Iterable[str]) -> str:
    """A text that spells none of the marks: ‹ stands for the first sign of each, or behind its first letter."""
    for mark in marks:
        text = text.replace(mark, mark[0] + "‹" + mark[1:] if mark[0].isalnum() else "‹" + mark[1:])
    return text
