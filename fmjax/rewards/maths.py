r"""Whether the final answer of a written solution is the right one.

A number is written with digits: "1,000", "2.50", "1e-3", "3/4", "\frac{3}{4}", "2\frac{1}{2}", "50%".
"""

import re
from collections.abc import Sequence
from fractions import Fraction

_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
_FRACTION = r"\\[dt]?frac\{[+-]?[0-9]+\}\{[0-9]+\}"
# A minus behind a digit, a letter or a bracket takes away; elsewhere it is the number's own.
_NUMBER = re.compile(
    rf"(?:(?<![\w)])-)?(?:[0-9]*{_FRACTION}|(?:{_DIGITS})(?:/[0-9]+|[eE][+-]?[0-9]+)?(?:\s?\\?%)?)(?![0-9])"
)
_SAID = re.compile(r"(?:answer|result)\s*(?:is|:|=)\s*", re.IGNORECASE)
_SUM = re.compile(r"[^A-Za-z\\=]*=([^=]*)", re.DOTALL)
_MIXED = re.compile(r"([+-]?)([0-9]*)\\[dt]?frac\{([+-]?[0-9]+)\}\{([0-9]+)\}")
_PLAIN = re.compile(r"[+-]?(?:[0-9]+(?:/[0-9]+)?|(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?)")

LONGEST = 100
"""Characters of a number; what is longer is compared as a text, and so is an exponent of more than three digits: a
reply may have any, and its value has to be a fraction in memory."""


def verify(replies: Sequence[str], answers: Sequence[str]) -> list[float]:
    """1.0 where the final answer of a reply is the prompt's answer, else 0.0."""
    return [float(_right(reply, known_answer(answer))) for reply, answer in zip(replies, answers)]


def _right(reply: str, wanted: str) -> bool:
    return same(final_answer(reply) if _number(wanted) is not None else final_text(reply), wanted)


def known_answer(text: str) -> str:
    r"""What is right, of a prompt's answer: what is in its last \boxed{...}, or else behind its last "####", or behind
    "=" of a sum, "3 + 4 = 7."; an answer that has none of these is taken whole."""
    if (marked := _marked(text)) is not None:
        return marked
    sum_, whole = _SUM.fullmatch(text), text.strip()
    if sum_ and _number(whole) is None and _number(sum_[1]) is not None:
        return sum_[1].strip()
    return whole


def final_answer(text: str) -> str:
    r"""What a solution ends with, where that is to be a number: what is in its last \boxed{...}; or else behind its
    last "####"; the first number behind its last "answer is"; or its last number; "" where there is none of these."""
    if (marked := _marked(text)) is not None:
        return marked
    said = list(_SAID.finditer(text))
    numbers = _NUMBER.findall(text[said[-1].end() :]) if said else []
    return numbers[0] if numbers else last_number(text)


def final_text(text: str) -> str:
    r"""What a solution ends with, where that is to be no number: what is in its last \boxed{...}; or else behind its
    last "####"; the rest of the sentence behind its last "answer is"; or its last line."""
    if (marked := _marked(text)) is not None:
        return marked
    if said := list(_SAID.finditer(text)):
        return re.split(r"\.\s|\n", text[said[-1].end() :])[0].strip()
    return (text.strip().splitlines() or [""])[-1].strip()


def last_number(text: str) -> str:
    """The last number of a text, as it stands there; "" where it has none."""
    found = _NUMBER.findall(text)
    return found[-1] if found else ""


def same(found: str, wanted: str) -> bool:
    """Whether two answers are one number, or the same text but for spaces, "$", capitals and a full stop at the end; ""
    is the same as nothing. "50%" is 0.5, and the same as "50" too: many answers leave the sign out."""
    if not found or not wanted:
        return False
    ours, theirs = _number(found), _number(wanted)
    if ours is None or theirs is None:
        return _plain(found) == _plain(wanted)
    signs = [_plain(text).endswith("%") for text in (found, wanted)]
    without = [value * 100 if sign else value for value, sign in zip((ours, theirs), signs)]
    return ours == theirs or (signs[0] != signs[1] and without[0] == without[1])


def _marked(text: str) -> str | None:
    """What is in the last \\boxed{...}, or else behind the last "####"."""
    if (boxed := _boxed(text)) is not None:
        return boxed.strip()
    if "####" in text:
        return (text.rsplit("####", 1)[1].strip().splitlines() or [""])[0].strip()
    return None


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
    text = re.sub(r"(?<=[0-9])\s+(?=[0-9])", "_", text)  # "2 1/2" is not 21/2
    return re.sub(r"[\s$]|\\,|\\!|\\(?=%)", "", text).rstrip(".").lower()


def _number(text: str) -> Fraction | None:
    """The exact value of a number; None of anything else."""
    if len(text) > LONGEST:
        return None
    plain = _plain(text)
    percent, plain = plain.endswith("%"), plain.removesuffix("%")
    if re.fullmatch(r"[+-]?[0-9]{1,3}(,[0-9]{3})+([./].*)?", plain):
        plain = plain.replace(",", "")
    try:
        if mixed := _MIXED.fullmatch(plain):
            sign, ones, top, bottom = mixed.groups()
            value = int(f"{sign}1") * (int(ones or 0) + Fraction(int(top), int(bottom)))
        elif _PLAIN.fullmatch(plain):
            value = Fraction(plain)
        else:
            return None
    except ZeroDivisionError:
        return None
    return value / 100 if percent else value
