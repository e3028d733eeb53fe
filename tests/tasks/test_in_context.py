"""In-context learning: its curve for a model that learns and for one that does not, and nothing to guess from."""

import numpy as np
import pytest

from fmjax.tasks.in_context import SHOTS, Linear, Mapping
from fmjax.tasks.protocol import ScoreAnswer, TaskContext


def looks_up(context):
    """Answers of a model that knows what it was shown: the letter's image, or the line through two points."""
    *shown, question = context.split("\n")
    if "->" in question:
        return dict(line.split(" -> ") for line in shown).get(question.removesuffix(" ->"))
    points = dict(tuple(map(int, line.removeprefix("f(").split(") = "))) for line in shown)
    if len(points) < 2:
        return None
    (x, y), (u, v), *_ = points.items()
    slope = (v - y) // (u - x)
    return str(y + slope * (int(question.removeprefix("f(").removesuffix(") =")) - x))


# What may be likely without examples: a number's size, its length, its place among the options, a digit.
PRIORS = {
    "nearest to the mean function": lambda x, option: abs(int(option) - (3 * x + 4.5)),
    "shortest": lambda x, option: len(option),
    "smallest": lambda x, option: int(option),
    "largest": lambda x, option: -int(option),
    "first": lambda x, option: 0,
    "even": lambda x, option: int(option) % 2,
    "a multiple": lambda x, option: int(option) % max(x, 1),
}


@pytest.mark.parametrize("prior", PRIORS)
def test_no_prior_answers_linear_functions_without_their_examples(prior):
    count = 4000
    right = 0
    for document in Linear(count=count).documents(TaskContext()):
        x = int(document["question"].removeprefix("f(").removesuffix(") ="))
        scores = [PRIORS[prior](x, option) for option in document["options"]]
        right += int(np.argmin(scores)) == document["gold"]
        assert len(set(document["options"])) == 5
    assert right / count == pytest.approx(1 / 5, abs=4 * (0.2 * 0.8 / count) ** 0.5)


@pytest.mark.parametrize("kind, chance", [(Mapping, 1 / 8), (Linear, 1 / 5)])
def test_in_context_learning_rises_for_a_model_that_can_and_stays_at_chance_for_one_that_cannot(kind, chance):
    task = kind(count=1000)
    documents = task.documents(TaskContext())
    assert documents == kind(count=1000).documents(TaskContext())
    curves = []
    for model in (looks_up, lambda context: None):
        rows = [
            task.statistics(d, [ScoreAnswer(float(r.continuation[1:] == model(r.context)), False, 1) for r in requests])
            for d, requests in ((d, task.requests(d)) for d in documents)
        ]
        curves.append(task.reduce({k: sum(r[k] for r in rows) for k in rows[0]} | {"documents": len(rows)}))
    can, cannot = curves
    for shots in SHOTS:
        known = 1 - (7 / 8) ** shots if kind is Mapping else 1 - (1 / 9) ** max(shots - 1, 0)
        assert can[f"acc_{shots}"] == pytest.approx(known + (1 - known) * chance, abs=0.045)
        assert cannot[f"acc_{shots}"] == pytest.approx(chance, abs=0.045)
    assert can["gain"] > 0.7 and cannot["gain"] == 0.0
