"""SQuAD's exact match and F1: values of torchmetrics 1.9's copy of the official script, and by hand."""

import pytest

from fmjax.tasks.metrics import squad


@pytest.mark.parametrize(
    "prediction, golds, exact_match, f1",
    [
        ("The Panthers!", ["panthers"], 1, 1),
        ("a cat, the cat", ["cat cat cat", "dog"], 0, 0.8),
        ("308", ["308", "three hundred and eight"], 1, 1),
        ("in Paris and in Rome", ["Paris", "Rome in"], 0, 4 / 7),
        ("the", ["a"], 1, 1),
        ("", [""], 1, 1),
        ("", ["x"], 0, 0),
        ("x", [""], 0, 0),
        ("Über   die\tStraße", ["uber die straße", "über die straße"], 1, 1),
        ("308 分", ["308分"], 0, 0),
        ("don't stop", ["dont stop", "stop"], 1, 1),
    ],
)
def test_scores_are_those_of_the_official_script(prediction, golds, exact_match, f1):
    assert squad.exact_match(prediction, golds) == exact_match
    assert squad.f1(prediction, golds) == pytest.approx(f1)


def test_scores_by_hand():
    assert squad.exact_match("The  Panthers!", ["panthers"]) == 1 and squad.exact_match("Panther", ["panthers"]) == 0
    # Two shared words (a word counts as often as both have it); precision 2/2, recall 2/3.
    assert squad.f1("cat, cat", ["cat cat dog"]) == pytest.approx(0.8)
    assert squad.f1("red cat", ["blue dog", "cat"]) == pytest.approx(2 / 3)  # the best right answer
    # Nothing left after normalisation, or no answer: F1 is equality.
    assert squad.f1("the", ["a"]) == squad.f1("", []) == squad.exact_match("", []) == 1
    assert squad.f1("the", ["cat"]) == squad.f1("cat", []) == squad.f1("cat", [""]) == 0
