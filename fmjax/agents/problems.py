"""Goals made from a seed, whose success a program decides: arithmetic, look-ups in documents, small files."""

import contextlib
import dataclasses
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from fmjax.agents.calculator import Calculator, evaluate, written
from fmjax.agents.documents import Search
from fmjax.agents.files import Folder, file_tools
from fmjax.agents.tools import Tool
from fmjax.rewards.maths import last_number, same

Embed = Callable[[list[str]], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Problem:
    """A goal, what may be used for it, and what counts.

    Attributes:
      goal: what is wanted, in words.
      tools: what may be called.
      succeeded: (the model's answer, "" where it gave none) -> whether the goal is reached.
    """

    goal: str
    tools: Sequence[Tool]
    succeeded: Callable[[str], bool]


@contextlib.contextmanager
def arithmetic(seed: int, embed: Embed) -> Iterator[Problem]:
    """Three whole numbers of two and three digits, multiplied and added; the last number of the answer counts."""
    a, b, c = np.random.default_rng(seed).integers((11, 11, 100), (100, 100, 1000)).tolist()
    expression = f"{a} * {b} {'+-'[seed % 2]} {c}"
    wanted = written(evaluate(expression))
    yield Problem(f"What is {expression}?", [Calculator()], lambda answer: same(last_number(answer), wanted))


def sums() -> list[str]:
    """Goals for `fmjax.agents.objective`: every sum of two numbers of two digits."""
    return [f"{a}+{b}" for a in range(10, 100) for b in range(10, 100)]


def demonstrations(count: int = 4000, seed: int = 0) -> list[str]:
    """Episodes in lines (`fmjax.agents.formats.Lines`) of some of these goals. In half of them the calculator is
    called; in the others the answer is guessed, and nearly always wrong."""
    rng, found = np.random.default_rng(seed), []
    for a, b, guess, calls in zip(*rng.integers(10, 100, (2, count)), rng.integers(20, 199, count), rng.random(count)):
        steps = f"calculator {a}+{b}\n= {a + b}\nanswer {a + b}" if calls < 0.5 else f"answer {guess}"
        found.append(f"> {a}+{b}\n{steps}\n")
    return found


def right_sum(goals: Sequence[str], answers: Sequence[str]) -> list[float]:
    """A reward: 1 where the last number of an answer is the value of its goal, an expression; else 0."""
    return [float(last_number(answer) == written(evaluate(goal))) for goal, answer in zip(goals, answers)]


PLACES = ("Arvale", "Brint", "Calder", "Dorrow", "Elmsey", "Farrin", "Gosford", "Harrow")
KINDS = {
    "founder": ("Anna", "Boris", "Clara", "Diego", "Edith", "Felix", "Greta", "Hugo"),
    "river": ("Ashwater", "Blackrun", "Coldbrook", "Deepford", "Eastflow", "Fernbeck", "Greywash", "Highburn"),
    "harvest": ("apples", "barley", "cherries", "dates", "elderberries", "figs", "grapes", "hops"),
}
SENTENCES = {
    "founder": "The town of {} was founded by {}.", "river": "The river through {} is called {}.",
    "harvest": "The farmers of {} grow {}.",
}  # fmt: skip
QUESTIONS = {
    "founder": "Who founded the town of {}?", "river": "What is the river through {} called?",
    "harvest": "What do the farmers of {} grow?",
}  # fmt: skip


@contextlib.contextmanager
def lookup(seed: int, embed: Embed) -> Iterator[Problem]:
    """A fact about an invented town, in documents that say one of each town and kind; the answer names it, and nothing
    that would be another town's."""
    rng = np.random.default_rng(seed)
    values = {kind: rng.permutation(names).tolist() for kind, names in KINDS.items()}
    facts = [
        (f"{place.lower()}.txt", SENTENCES[kind].format(place, values[kind][i]))
        for i, place in enumerate(PLACES) for kind in KINDS
    ]  # fmt: skip
    kind, place = list(KINDS)[int(rng.integers(len(KINDS)))], int(rng.integers(len(PLACES)))

    def succeeded(answer: str) -> bool:
        named = {name for name in KINDS[kind] if re.search(rf"\b{name}\b", answer, re.IGNORECASE)}
        return named == {values[kind][place]}

    yield Problem(QUESTIONS[kind].format(PLACES[place]), [Search(facts, embed)], succeeded)


@contextlib.contextmanager
def small_files(seed: int, embed: Embed) -> Iterator[Problem]:
    """A number or a word of one file is to be written to another, in a folder that is gone afterwards; what the file
    then holds counts."""
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory(prefix="fmjax-agent-") as name:
        folder = Folder(name)
        numbers = dict(zip(("first.txt", "second.txt", "third.txt"), rng.integers(100, 1000, 3).tolist()))
        for file, number in numbers.items():
            folder.write(file, f"{number}\n")
        source = list(numbers)[int(rng.integers(3))]
        if seed % 2:
            goal, wanted = f"Copy the number in {source} to copy.txt.", str(numbers[source])
        else:
            goal, wanted = "Write the largest of the numbers in the files to copy.txt.", str(max(numbers.values()))

        def succeeded(answer: str) -> bool:
            path = pathlib.Path(name, "copy.txt")
            return path.is_file() and path.read_text(encoding="utf-8").strip() == wanted

        yield Problem(goal, file_tools(name), succeeded)
