"""Whether the program in a reply passes tests: a verifier for rewards, in the sandbox that tasks of code run in."""

import functools
import re
from collections.abc import Sequence

from fmjax.tasks.sandbox import Limits, choose_unsafe, run_many

LIMITS = Limits(timeout=3.0)
_BLOCK = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)


def verify(replies: Sequence[str], answers: Sequence[str]) -> list[float]:
    """1.0 where the program of a reply, followed by the prompt's tests (its answer), runs to its end, else 0.0.

    Raises InputError where there is no sandbox (`fmjax.tasks.sandbox`).
    """
    programs = [f"{program_in(reply)}\n{tests}\n" for reply, tests in zip(replies, answers)]
    return [float(outcome.passed) for outcome in run_many(programs, LIMITS, unsafe=_unsafe())]


def program_in(reply: str) -> str:
    """The last block of code in a reply, between ``` and ```; all of it where there is none."""
    blocks = _BLOCK.findall(reply)
    return blocks[-1] if blocks else reply


@functools.cache
def _unsafe() -> bool:
    return choose_unsafe()
