"""A record of answers that were judged: ranked ones to the same chat, or one that was liked or not."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from fmjax.data.chats.records import BadChat, Messages, check_turns, question, read_message, read_tools, said
from fmjax.errors import DataError

SHAPES = (
    "'chosen' and 'rejected' (texts or messages) with 'prompt', 'messages', 'conversations' or 'instruction', or as "
    "two whole chats that differ in the last reply; a list 'responses' (or 'completions', 'answers') with 'scores' "
    "(higher is better) or 'ranks' (1 is best) and what it answers"
)
LABELLED = (
    "a boolean 'label' with 'prompt' and 'completion', or with 'messages' whose last one is judged; or 'chosen' and "
    "'rejected', one record each"
)
_ANSWERS = ("responses", "completions", "answers")
_TURN = re.compile(r"\n\n(Human|Assistant): ?")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Answers to the same chat, with what was said of them.

    Attributes:
      prompt: messages up to the answers.
      answers: the assistant's message, each.
      scores: a finite number each; higher is better, equal ones were not told apart.
      margin: by how much more the better answer has to score, for a reward model; 0 where nothing says it.
      reference_logprobs: of each answer under a reference model, computed before; None where there are none.
      where: of the record, for messages: file and row.
      tools: JSON schemas of functions that the assistant may call; None for none.
    """

    prompt: Messages
    answers: Messages
    scores: tuple[float, ...]
    where: str
    margin: float = 0.0
    reference_logprobs: tuple[float, ...] | None = None
    tools: list | None = None

    @property
    def messages(self) -> Messages:
        """All that is said."""
        return [*self.prompt, *self.answers]

    def chats(self) -> list[Messages]:
        """The chat that ends with each answer."""
        return [[*self.prompt, answer] for answer in self.answers]


def read_comparison(record: Any, where: str) -> Comparison:
    """The ranked answers of a record.

    Raises: DataError where the record has none of the shapes; BadChat where its chats take no turns (`check_turns`) or
    no answer is better than another.
    """
    _check_object(record, where, SHAPES)
    listed = next((name for name in _ANSWERS if isinstance(record.get(name), list)), None)
    if record.get("chosen") is not None and record.get("rejected") is not None:
        prompt, answers = _pair(record, where)
        scores: tuple[float, ...] = (1.0, 0.0)
    elif listed and (scored := next((n for n in ("scores", "ranks") if record.get(n) is not None), None)):
        prompt = _prompt(record, where)
        answers = [_answer(one, f"{where}, {listed}[{i}]") for i, one in enumerate(record[listed])]
        sign = 1.0 if scored == "scores" else -1.0
        scores = tuple(sign * score for score in _numbers(record[scored], len(answers), f"{where}, {scored}"))
    else:
        raise _unknown(record, where, SHAPES)
    if len(answers) < 2 or len(set(scores)) < 2:
        raise BadChat(f"{where}: none of {len(answers)} answers is better than another (scores {list(scores)})")
    found = Comparison(
        prompt, answers, scores, where, _margin(record, where), _reference(record, len(answers), where),
        read_tools(record, where),
    )  # fmt: skip
    for chat in found.chats():
        check_turns(chat, where)
    return found


def read_labelled(record: Any, where: str) -> list[Comparison]:
    """Answers that were liked (score 1) or not (score 0), each by itself.

    Raises: as `read_comparison`.
    """
    _check_object(record, where, LABELLED)
    if record.get("label") is None and record.get("chosen") is not None and record.get("rejected") is not None:
        pair = read_comparison(record, where)
        return [dataclasses.replace(pair, answers=[a], scores=(s,)) for a, s in zip(pair.answers, pair.scores)]
    label = record.get("label")
    if not isinstance(label, bool):
        raise _unknown(record, where, LABELLED)
    if record.get("completion") is not None:
        prompt, answer = _prompt(record, where), _answer(record["completion"], f"{where}, completion")
    else:
        chat = _prompt(record, where)
        prompt, answer = chat[:-1], chat[-1]
    check_turns([*prompt, answer], where)
    return [Comparison(prompt, [answer], (float(label),), where, tools=read_tools(record, where))]


def _check_object(record: Any, where: str, shapes: str) -> None:
    if not isinstance(record, Mapping):
        raise DataError(f"{where}: expected an object, found {type(record).__name__}; it has {shapes}")


def _unknown(record: Mapping, where: str, shapes: str) -> DataError:
    found = ", ".join(map(str, record)) or "nothing"
    return DataError(f"{where}: no judged answers. Found the fields {found}; expected {shapes}")


def _pair(record: Mapping, where: str) -> tuple[Messages, Messages]:
    """(prompt, [chosen, rejected])."""
    both = [record["chosen"], record["rejected"]]
    if all(isinstance(one, str) and _TURN.match(one) for one in both):
        both = [_transcript(one) for one in both]
    if all(isinstance(one, list) for one in both):
        chats = [said(one, "assistant", f"{where}, {n}") for one, n in zip(both, ("chosen", "rejected"))]
        if all(len(chat) > 1 for chat in chats):  # whole chats
            if chats[0][:-1] != chats[1][:-1]:
                raise BadChat(f"{where}: 'chosen' and 'rejected' are chats that differ before their last reply")
            return chats[0][:-1], [chat[-1] for chat in chats]
        both = [one[0] if len(one) == 1 else one for one in both]
    prompt = _prompt(record, where)
    return prompt, [_answer(one, f"{where}, {name}") for one, name in zip(both, ("chosen", "rejected"))]


def _transcript(text: str) -> Messages:
    """Of a text as HH-RLHF has them: "\\n\\nHuman: ...\\n\\nAssistant: ..."."""
    parts = _TURN.split(text)[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[name], "content": text.strip()} for name, text in zip(parts[::2], parts[1::2])]


def _prompt(record: Mapping, where: str) -> Messages:
    """What the answers of a record answer."""
    found = question(record, where)
    if found is None:
        raise _unknown(record, where, SHAPES)
    return found


def _answer(one: Any, where: str) -> dict[str, Any]:
    """The assistant's message that a text or a message is."""
    message = {"role": "assistant", "content": one} if isinstance(one, str) else read_message(one, where)
    if message["role"] != "assistant":
        raise BadChat(f"{where}: the answer is of the {message['role']}, expected one of the assistant")
    return message


def _numbers(found: Any, count: int, where: str) -> list[float]:
    """So many finite numbers. Raises DataError for anything else."""
    is_number = lambda x: isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)
    if not isinstance(found, list) or len(found) != count or not all(map(is_number, found)):
        raise DataError(f"{where}: expected {count} finite numbers, one an answer, found {str(found)[:80]}")
    return [float(one) for one in found]


def _margin(record: Mapping, where: str) -> float:
    margin = record.get("margin")
    return 0.0 if margin is None else _numbers([margin], 1, f"{where}, margin")[0]


def _reference(record: Mapping, count: int, where: str) -> tuple[float, ...] | None:
    """Log-probabilities under a reference model: `reference_logprobs`, or as TRL calls those of a pair."""
    found = record.get("reference_logprobs")
    pair = [record.get("ref_chosen_logps"), record.get("ref_rejected_logps")]
    if found is None and None not in pair and count == 2:
        found = pair
    return None if found is None else tuple(_numbers(found, count, f"{where}, reference_logprobs"))
