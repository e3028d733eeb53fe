"""In-context learning: functions drawn at random, which nothing but the examples in the prompt tells.

As Garg et al. 2022 (https://arxiv.org/abs/2208.01066) for regression, here in text. Each document has a function of its
own and asks the same question after 0, 1, 2, 4, ... examples, so one run gives the learning curve: a model that learns
from its context rises from chance, one that cannot stays there, whatever it has memorised.
"""

import numpy as np

from fmjax.errors import InputError
from fmjax.tasks.protocol import Score, Task

SHOTS = (0, 1, 2, 4, 8, 16)


class InContext(Task):
    """Base of the family. A member draws a function's examples, its question and the options.

    `acc_K`: accuracy after K examples, the first of equally likely options counting as the likeliest; `gain`: accuracy
    after most examples less that after none. Chance is 1 / number of options, whatever a model that does not read the
    examples goes by.

    Args:
      count: number of functions.
    """

    metrics = ("gain", *(f"acc_{shots}" for shots in SHOTS))
    needs = "nothing: the documents are drawn"

    def __init__(self, count: int | str = 200):
        if not str(count).isdigit() or int(count) < 1:
            raise InputError(f"task {self.name}: expected a number of functions, got {count!r}")
        self.count = int(count)
        if self.count != 200:
            self.name = f"{self.name}:{count}"

    def draw(self, rng: np.random.Generator) -> dict:
        """{"examples": lines, "question": a line without its answer, "options": texts, "gold": number of the right}."""
        raise NotImplementedError

    def documents(self, context):
        return [self.draw(np.random.default_rng([20221, number])) for number in range(self.count)]

    def requests(self, document):
        found = []
        for shots in SHOTS:
            context = "".join(f"{line}\n" for line in document["examples"][:shots]) + document["question"]
            found += [Score(context, f" {option}") for option in document["options"]]
        return found

    def statistics(self, document, answers):
        size = len(document["options"])
        parts = [answers[start : start + size] for start in range(0, len(answers), size)]
        best = [int(np.argmax([answer.loglikelihood for answer in part])) for part in parts]
        return {f"acc_{shots}": float(i == document["gold"]) for shots, i in zip(SHOTS, best)}

    def reduce(self, totals):
        found = {f"acc_{shots}": totals[f"acc_{shots}"] / totals["documents"] for shots in SHOTS}
        return {"gain": found[f"acc_{SHOTS[-1]}"] - found["acc_0"]} | found


LETTERS = "abcdefgh"


class Mapping(InContext):
    """Letters to letters, each of 8 to any of 8. The examples' letters and the question's are drawn with replacement,
    so a model that looks up the question's letter knows it with probability 1 - (7/8)**K after K examples, and is right
    with probability 1 - 7/8 * (7/8)**K."""

    name = "icl_mapping"
    description = "letters mapped at random, learnt from K examples in the prompt: accuracy by K"

    def draw(self, rng):
        images = rng.integers(0, len(LETTERS), len(LETTERS))
        asked, *shown = rng.integers(0, len(LETTERS), 1 + SHOTS[-1])
        return {
            "examples": [f"{LETTERS[i]} -> {LETTERS[images[i]]}" for i in shown],
            "question": f"{LETTERS[asked]} ->",
            "options": list(LETTERS),
            "gold": int(images[asked]),
        }


class Linear(InContext):
    """y = a * x + b with a from 1 to 5, b and x from 0 to 9. The options are the answers of five functions drawn so,
    all different, and which of these functions is shown is drawn last: without examples no option is likelier than
    another by its size, length or neighbours. One example leaves some of them, two different ones decide."""

    name = "icl_linear"
    version = "2"
    description = "linear functions drawn at random, learnt from K examples in the prompt: accuracy by K"

    def draw(self, rng):
        asked = int(rng.integers(0, 10))
        functions: dict[int, tuple[int, int]] = {}  # by their answers
        while len(functions) < 5:
            slope, offset = int(rng.integers(1, 6)), int(rng.integers(0, 10))
            functions.setdefault(slope * asked + offset, (slope, offset))
        answers = list(functions)
        gold = int(rng.integers(len(answers)))
        slope, offset = functions[answers[gold]]
        others = [x for x in range(10) if x != asked]
        shown = [others[i] for i in rng.integers(0, len(others), SHOTS[-1])]
        return {
            "examples": [f"f({x}) = {slope * x + offset}" for x in shown],
            "question": f"f({asked}) =",
            "options": [str(answer) for answer in answers],
            "gold": gold,
        }
