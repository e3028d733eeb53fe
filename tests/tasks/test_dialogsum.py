"""DialogSum: ROUGE over three references, and what is recorded of it."""

import json

import pytest
from rouge_score.rouge_scorer import RougeScorer

from fmjax.tasks.catalogue import get_task
from fmjax.tasks.few_shot import FewShot
from fmjax.tasks.protocol import TaskContext


@pytest.fixture
def context(tmp_path):
    (tmp_path / "eval_dialogsum").mkdir()
    row = {
        "fname": "t",
        "dialogue": "#Person1#: Hi!",
        "summary1": "Bob greets.",
        "summary2": "A greeting. It is short.",
    }
    path = tmp_path / "eval_dialogsum" / "dialogsum.test.jsonl"
    path.write_text(json.dumps(row | {"summary3": "Nobody answers Bob."}))
    rows = [json.dumps({"dialogue": f"#Person1#: {i}", "summary": f"It is {i}."}) for i in range(3)]
    path.with_name("dialogsum.dev.jsonl").write_text("\n".join(rows))
    return TaskContext(tmp_path)


def test_rouge_is_the_mean_and_the_best_of_three_references(context):
    task = get_task("dialogsum")
    (document,) = task.documents(context)
    found = task.statistics(document, [" Bob greeted."])
    scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
    scores = [scorer.score(summary, "Bob greeted.") for summary in document["summaries"]]
    for name in ("rouge1", "rougeL"):
        values = [100 * score[name].fmeasure for score in scores]
        assert values[0] == 100 and 0 < values[1] < 100
        assert found[name] == pytest.approx(sum(values) / 3) and found[f"{name}_max"] == pytest.approx(100)
    assert set(found) == set(task.metrics)
    assert set(task.statistics(document, [""]).values()) == {0}
    swapped = task.statistics(document | {"summaries": ["One here. Two there."]}, ["Two there. One here."])
    assert swapped["rougeLsum"] == pytest.approx(100) and swapped["rougeL"] == pytest.approx(50)


def test_prompts_and_details(context):
    task = get_task("dialogsum")
    (document,) = task.documents(context)
    (request,) = FewShot.make(task, 1, 0, context).requests(document)
    assert request.prompt.endswith("\n\nSummarize the following dialogue.\n\n#Person1#: Hi!\n\nSummary:")
    assert "\n\nSummary: It is " in request.prompt
    assert task.details()["rouge"]["use_stemmer"] is True and "sentences" in str(task.details())
