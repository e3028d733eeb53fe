"""What of a chat is learnt: the tokens of the assistant's replies, each up to the token that ends it.

Where the template says what is the assistant's ({% generation %}), that is it. Of any other a reply is what the text
of the chat up to it has more than the text before it, with what begins a reply: exact, or an error.
"""

import dataclasses
import datetime
from collections.abc import Mapping, Sequence

from fmjax.data.tokenizers.base import Tokenizer
from fmjax.data.tokenizers.chat import TEXT, as_text, control_ids, encode_marked, generated, take_marks
from fmjax.data.tokenizers.published_settings import TEMPLATE_PLACES
from fmjax.data.tokenizers.templates import Message, chosen, render, says_what_is_generated
from fmjax.errors import InputError, TokenizerError

WHICH = ("all", "last")

DATE = datetime.datetime(2024, 7, 26)
"""What templates that ask for the day are told in training, on any day: that which LLaMA 3.1's own falls back to."""


@dataclasses.dataclass(frozen=True)
class Replies:
    """A chat to learn from.

    Attributes:
      ids: of all of it, as `fmjax.data.tokenizers.chat.encode_chat` gives them.
      learnt: for each 1 where it is a reply's, the token that ends it too; 0 elsewhere.
      ends: the tokens that end the replies, one a reply.
      text: of all of it, where it was rendered; and
      places: where in it each of the ids stands, (start, end).
    """

    ids: list[int]
    learnt: list[int]
    ends: list[int]
    text: str = ""
    places: Sequence[tuple[int, int]] = ()

    def to_its_end(self) -> "Replies":
        """Without what the template writes behind the last reply's end."""
        size = len(self.learnt) - self.learnt[::-1].index(1)
        return Replies(self.ids[:size], self.learnt[:size], self.ends, self.text, self.places[:size])


def joined_steps(steps: Sequence[str]) -> str:
    """A reply of several steps: a line each."""
    return "\n".join(steps)


def step_places(chat: Replies, steps: Sequence[str]) -> list[int]:
    """Of each step of a chat's last reply the place, among its ids, of the token that has the step's last character.

    Raises InputError where the template writes the steps otherwise than they are.
    """
    begin = len(chat.learnt) - chat.learnt[::-1].index(1) - 1
    while begin and chat.learnt[begin - 1]:
        begin -= 1
    cursor, found = chat.places[begin][0], []
    for number, step in enumerate(steps):
        start = chat.text.find(step, cursor)
        if start < 0:
            raise InputError(f"the chat template writes step {number} otherwise than it is: {step[:60]!r}")
        cursor = start + len(step)
        found.append(next(i for i, (first, last) in enumerate(chat.places) if first < cursor <= last))
    return found


def encode_replies(
    tokenizer: Tokenizer, messages: Sequence[Message], *, which: str = "all", tools: Sequence[Mapping] | None = None
) -> Replies:
    """Ids of a chat whose last message is the assistant's, and what of them is learnt.

    A token that has any character of a reply counts, as in `return_assistant_tokens_mask` of `transformers`. A template
    whose {% generation %} stops short of the token behind it that ends the reply would teach no end: that is learnt
    too.

    Args:
      which: "all" replies, or the "last" alone.
      tools: JSON schemas of functions that the assistant may call.

    Raises: TokenizerError without a template, for one that refuses the chat, that writes a chat otherwise once it goes
      on, so that replies cannot be told apart, or ends a reply with no control token; InputError as `as_text`.
    """
    source = chosen(tokenizer, None, bool(tools))
    messages = as_text(tokenizer, messages, tools)
    says = says_what_is_generated(source)
    if says:
        text, spans, places = generated(tokenizer, source, messages, False, tools, DATE, {})
        spans = [span for span in spans if span[0] < span[1]]
        if which == "last":
            spans = spans[-1:]
    else:
        text, spans, places = _by_prefixes(tokenizer, source, messages, which, tools)
    ids, found = encode_marked(tokenizer, text, places)
    control = control_ids(tokenizer) - {tokenizer.unk_id}
    learnt, ends = [0] * len(ids), []
    for first, last in spans:
        inside = [i for i, (start, end) in enumerate(found) if start < last and end > first]
        end = _end(inside, ids, text, found, control, says)
        if end is None:
            raise TokenizerError(
                f"the chat template of {tokenizer.source} ends a reply with no control token, so that a model could "
                "not learn when to stop: put {{ eos_token }} behind the assistant's content in "
                f"{TEMPLATE_PLACES}, or give a template with data.chat_template"
            )
        # What a template itself calls generated stays so, a newline behind the end too; nothing else generates it.
        for i in [*inside, end] if says else inside[: inside.index(end) + 1]:
            learnt[i] = 1
        ends.append(ids[end])
    return Replies(ids, learnt, ends, text, found)


def _end(inside: list[int], ids, text: str, found, control: set, says: bool) -> int | None:
    """The place of the control token that ends the reply at these places: the last of it but white space, or, where
    the template says what is generated, the one behind it; None where there is none."""
    full = [i for i in inside if ids[i] in control or text[slice(*found[i])].strip()]
    if full and ids[full[-1]] in control:
        return full[-1]
    behind = inside[-1] + 1 if inside and says else len(ids)
    return behind if behind < len(ids) and ids[behind] in control else None


def _by_prefixes(tokenizer, source, messages, which, tools) -> tuple[str, list[tuple[int, int]], list[int]]:
    """As `generated`: what the chat up to a reply has more than the chat before it."""

    def rendered(count: int, add_generation_prompt: bool) -> str:
        return render(tokenizer, source, messages[:count], add_generation_prompt, tools, DATE, {})

    whole, spans = rendered(len(messages), False), []
    for index, message in enumerate(messages):
        if message["role"] != "assistant" or (which == "last" and index + 1 < len(messages)):
            continue
        before, upto = rendered(index, True), rendered(index + 1, False)
        if not (whole.startswith(upto) and upto.startswith(before)):
            way = "goes on" if upto.startswith(before) else "has a reply"
            apart = "train on each reply apart (data.replies=each), or " if which == "all" else ""
            raise TokenizerError(
                f"the chat template of {tokenizer.source} writes a chat otherwise once it {way}, so that replies "
                f"cannot be told apart exactly: {apart}put {{% generation %}} and {{% endgeneration %}} around what is "
                f"the assistant's, in {TEMPLATE_PLACES}, or in a file that data.chat_template names"
            )
        spans.append(tuple(size - whole.count(TEXT, 0, size) for size in (len(before), len(upto))))
    text, _, places = take_marks(whole)
    return text, spans, places
