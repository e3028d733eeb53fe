"""Self-consistency (Wang et al. 2022, https://arxiv.org/abs/2203.11171): of several drawn texts, the answer of most."""

import collections
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from fmjax.errors import InputError


class Vote(NamedTuple):
    """What several texts come to.

    Attributes:
      index: of the first text that has the answer of most.
      answer: that answer; None where no text has one.
      count: texts that have it.
    """

    index: int
    answer: str | None
    count: int


def vote(texts: Sequence[str], answer: Callable[[str], str | None]) -> Vote:
    """The answer that most texts have; of equally many the one that comes first. Texts without an answer have no vote.

    Args:
      answer: from a text to its answer; None where it has none.

    Raises InputError without texts.
    """
    if not texts:
        raise InputError("there are no texts to vote")
    found = [answer(text) for text in texts]
    counts = collections.Counter(one for one in found if one is not None)
    if not counts:
        return Vote(0, None, 0)
    chosen, count = counts.most_common(1)[0]
    return Vote(found.index(chosen), chosen, count)


def last_match(pattern: str) -> Callable[[str], str | None]:
    """From a text to what the last match of a regular expression has in its first group, or in whole without groups.

    Raises InputError for what is no regular expression.
    """
    try:
        compiled = re.compile(pattern, re.MULTILINE)
    except re.error as error:
        raise InputError(f"{pattern!r} is not a regular expression ({error})") from None

    def answer(text: str) -> str | None:
        matches = list(compiled.finditer(text))
        return matches[-1][1 if compiled.groups else 0].strip() if matches else None

    return answer
