"""Self-consistency: the answer of most, in tasks and in `generate`."""

import pytest

from fmjax import generate
from fmjax.errors import InputError
from fmjax.inference.voting import last_match, vote
from fmjax.tasks.catalogue import get_task
from fmjax.tasks.runner import reduced


@pytest.mark.parametrize(
    "texts, expected",
    [
        (["so 4", "it is 5", "5", "no"], (1, "5", 2)),
        (["2", "3"], (0, "2", 1)),  # of equally many the first
        (["no", "none"], (0, None, 0)),
        (["1 then 7", "7 then 1", "of 1"], (1, "1", 2)),
    ],
)
def test_the_answer_of_most_is_taken(texts, expected):
    assert vote(texts, last_match(r"\d+")) == expected


def test_a_regular_expression_gives_its_group_or_the_whole():
    assert last_match(r"answer is (\w+)")("The answer is no.\nThe answer is yes.") == "yes"
    assert last_match(r"^x$")("a\nx") == "x"
    with pytest.raises(InputError, match="is not a regular expression"):
        last_match("(")
    with pytest.raises(InputError, match="there are no texts"):
        vote([], str)


def test_a_task_draws_its_answers_and_counts_that_of_most():
    task = get_task("gsm8k+vote:3")
    document = {"question": "How many?", "answer": "1 + 6 = 7\n#### 7"}
    requests = task.requests(document)
    assert [(r.sample, r.temperature) for r in requests] == [(0, 0.7), (1, 0.7), (2, 0.7)]
    assert len({r.prompt for r in requests}) == 1 and task.num_shots == 5 and task.name == "gsm8k+vote:3"
    right = task.statistics(document, ["#### 9", "six and one is $7.", "that is 3 + 4 = 7"])
    wrong = task.statistics(document, ["#### 7", "#### 8", "8"])
    assert right == {"exact_match_strict": 0.0, "exact_match_flexible": 1.0, "agreement": 2 / 3}
    assert wrong == {"exact_match_strict": 0.0, "exact_match_flexible": 0.0, "agreement": 2 / 3}
    samples = [
        {"key": str(i), "statistics": s | {"documents": 1.0}, "cluster": None} for i, s in enumerate([right, wrong])
    ]
    metrics, _ = reduced(task, samples, 0)
    assert metrics == {"exact_match_strict": 0.0, "exact_match_flexible": 0.5, "agreement": pytest.approx(2 / 3)}
    assert get_task("bbh_navigate+vote").count == 10


@pytest.mark.parametrize(
    "name, message",
    [
        ("hellaswag+vote", "does not say what of a text is its answer"),
        ("gsm8k+vote:some", "expected the number of draws"),
        ("gsm8k+vot", "no perturbation 'vot'; did you mean 'vote'"),
    ],
)
def test_what_cannot_vote_is_refused(name, message):
    with pytest.raises(InputError, match=message):
        get_task(name)
    with pytest.raises(InputError, match="--vote takes the answer of most of several"):
        generate.parse(["--model=m", "--prompt=x", "--vote=y"])
