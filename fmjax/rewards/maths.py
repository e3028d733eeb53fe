"""Whether the final answer of a written solution is the right one."""

import re
from collections.abc import Sequence
from fractions import Fraction

_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|-?\.\d+")
_SAID = re.compile(r"(?:answer|result)\s*(?:is|:|=)\s*", re.IGNORECASE)


def verify(replies: Sequence[str], answers: Sequence[str]) -> list[float]:
    """1.0 where the final answer of a reply is the same as that of the prompt's answer, else 0.0."""
    return [float(same(final_answer(reply), final_answer(answer))) for reply, answer in zip(replies, answers)]


def final_answer(text: str) -> str:
    r"""What a solution ends with: what is in its last \boxed{...}; or else behind its last "####"; behind its last
    "answer is"; or its last number; "" where there is none of these."""
    if (boxed := _boxed(text)) is not None:
        return boxed.strip()
    if "####" in text:
        return (text.rsplit("####", 1)[1].strip().splitlines() or [""])[0].strip()
    said = list(_SAID.finditer(text))
    numbers = _NUMBER.findall(text[said[-1].end() :]) if said else []
    if numbers:
        return numbers[0]
    numbers = _NUMBER.findall(text)
    return numbers[-1] if numbers else ""


def same(found: str, wanted: str) -> bool:
    """Whether two answers are one number, or the same text but for spaces, "$" and a full stop at the end; "" is the
    same as nothing."""
    if not found or not wanted:
        return False
    ours, theirs = _number(found), _number(wanted)
    if ours is not None and theirs is not None:
        return ours == theirs
    return _plain(found) == _plain(wanted)


def _boxed(text: str) -> str | None:
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, begin = 0, start + len("\\boxed{")
    for place in range(begin, len(text)):
        if text[place] == "}" and depth == 0:
            return text[begin:place]
        depth += {"{": 1, "}": -1}.get(text[place], 0)
    return None


def _plain(text: str) -> str:
    return re.sub(r"[\s$]|\\,|\\!", "", text).rstrip(".").lower()


def _number(text: str) -> Fraction | None:
    """The exact value of "1,000", "2.50", "3/4", "\\frac{3}{4}" or "50%"; None of anything else."""
    plain = re.sub(r"\\d?frac\{(-?\d+)\}\{(\d+)\}", r"\1/\2", _plain(text)).replace(",", "").replace("\\%", "%")
    percent = plain.endswith("%")
    try:
        value = Fraction(plain.rstrip("%"))
    except (ValueError, ZeroDivisionError):
        return None
    return value / 100 if percent else value
