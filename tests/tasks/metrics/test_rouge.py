"""ROUGE: what variant and stemmer change, and the library's own scores."""

import sys

import pytest
from rouge_score.rouge_scorer import RougeScorer

from fmjax.errors import InputError
from fmjax.tasks.metrics import rouge

VARIANTS = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def test_scores_are_the_library_s_in_percent():
    reference, prediction = "Ann invites Bob.\nHe is going to the party.", "Bob goes to a party.\nAnn invited him."
    for use_stemmer in (False, True):
        want = RougeScorer(list(VARIANTS), use_stemmer=use_stemmer).score(reference, prediction)
        found = rouge.rouge(prediction, reference, VARIANTS, use_stemmer=use_stemmer)
        assert found == {name: pytest.approx(100 * score.fmeasure) for name, score in want.items()}


def test_variant_and_stemmer_change_the_score():
    def score(prediction, reference, use_stemmer=False):
        return rouge.rouge(prediction, reference, VARIANTS, use_stemmer=use_stemmer)

    # Sentences in another order: the longest common subsequence of the whole is half, of sentences all.
    swapped = score("c d\na b", "a b\nc d")
    assert swapped["rougeL"] == pytest.approx(50) and swapped["rougeLsum"] == swapped["rouge1"] == pytest.approx(100)
    assert swapped["rouge2"] == pytest.approx(200 / 3)  # "ab", "cd" of three pairs each
    assert score("cats", "cat")["rouge1"] == 0 and score("cats", "cat", True)["rouge1"] == 100
    assert set(score("", "a b").values()) == set(score("a", "").values()) == set(score("", "").values()) == {0}


def test_lines_and_details(monkeypatch):
    assert rouge.lines(" One. Two?  Three! 3.5 is one ") == "One.\nTwo?\nThree!\n3.5 is one"
    details = rouge.details(True, "by rule")
    assert details["library"].startswith("rouge-score 0.") and details["use_stemmer"] is True
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    monkeypatch.delitem(sys.modules, "rouge_score")
    with pytest.raises(InputError, match="pip install 'fmjax"):
        rouge.rouge("a", "a", VARIANTS, use_stemmer=True)
