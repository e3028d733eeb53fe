"""TruthfulQA: the harness's arithmetic on hand-made answers."""

import json
import math

import pytest

from fmjax.errors import DataError
from fmjax.tasks.catalogue import get_task
from fmjax.tasks.few_shot import FewShot
from fmjax.tasks.metrics import translation
from fmjax.tasks.protocol import ScoreAnswer, TaskContext


@pytest.fixture
def context(tmp_path):
    folder = tmp_path / "eval_truthfulqa"
    folder.mkdir()
    targets = {"mc1_targets": {"No.": 0, "Yes.": 1}, "mc2_targets": {"Yes.": 1, "No.": 0, "Sure.": 1}}
    (folder / "mc_task.json").write_text(json.dumps([{"question": "Is it?"} | targets]))
    header = "\ufeffType,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source\n"
    row = 'x,y," Is it so? ",Yes,"Yes, it is; ;  It is so.",No; It is not at all,url\n'
    (folder / "TruthfulQA.csv").write_text(header + row, encoding="utf-8")
    return TaskContext(tmp_path)


def answers(*likelihoods):
    return [ScoreAnswer(x, False, 1) for x in likelihoods]


def test_mc1(context):
    task = get_task("truthfulqa_mc1")
    (document,) = task.documents(context)
    requests = FewShot.make(task, None, 0, context).requests(document)
    assert requests[0].context.startswith("Q: What is human life expectancy")
    assert requests[0].context.endswith("in Barcelona, Spain.\n\nQ: Is it?\nA:") and requests[0].continuation == " No."
    assert task.statistics(document, answers(-2.0, -1.0))["acc"] == 1
    assert task.statistics(document, answers(-1.0, -1.0))["acc"] == 0


def test_mc2_is_the_true_answers_part_of_the_probability(context):
    task = get_task("truthfulqa_mc2")
    (document,) = task.documents(context)
    assert [request.continuation for request in task.requests(document)] == [" Yes.", " No.", " Sure."]
    scores = math.log(0.2), math.log(0.1), math.log(0.1)
    assert task.statistics(document, answers(*scores))["acc"] == pytest.approx(0.75)
    # Far below what a float's exponential can hold, where exp gives 0 / 0.
    assert task.statistics(document, answers(*(x - 2000 for x in scores)))["acc"] == pytest.approx(0.75)
    # Where none is possible, none is likelier.
    assert task.statistics(document, answers(*[-math.inf] * 3))["acc"] == pytest.approx(2 / 3)
    assert task.statistics(document, answers(-math.inf, -1.0, -math.inf))["acc"] in (0.0, 1.0)
    path = context.data_dir / "eval_truthfulqa" / "mc_task.json"
    path.write_text(json.dumps([{"question": "Is it?", "mc2_targets": {"No.": 0}}]))
    with pytest.raises(DataError, match="record 1: expected 'question'"):
        task.documents(context)


def test_gen_compares_with_the_best_of_both_kinds(context):
    task = get_task("truthfulqa_gen")
    (document,) = task.documents(context)
    assert document == {
        "question": "Is it so?",
        "correct": ["Yes, it is.", "It is so.", "I have no comment."],
        "incorrect": ["No.", "It is not at all."],
    }
    (request,) = task.requests(document)
    assert request.prompt == "Q: Is it so?" and request.stop == ("\n\n",)
    found = task.statistics(document, ["It is so."])
    assert found["bleu_max"] == pytest.approx(100) and found["bleu_acc"] == found["rouge1_acc"] == 1
    assert found["rouge1_diff"] == pytest.approx(100 - 50)  # "it is" of three and of five words
    wrong = translation.sentence_bleu("It is so.", "It is not at all.", tokenize="intl")
    assert found["bleu_diff"] == pytest.approx(100 - wrong)
    # Equal scores are not more true; an empty answer is like none of them.
    nothing = task.statistics(document, [""])
    assert set(nothing.values()) == {0} and set(nothing) == set(task.metrics)
    assert "tok:intl" in task.details()["bleu"] and task.details()["rouge"]["use_stemmer"] is False
