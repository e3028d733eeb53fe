"""GSM8K: the numbers that the harness's two filters find and compare."""

import json

import pytest

from fmjax.tasks.catalogue import get_task
from fmjax.tasks.few_shot import FewShot
from fmjax.tasks.protocol import TaskContext

GOLD = "She has 2 * 617 = <<2*617=1234>>1234 eggs.\n#### 1,234"


@pytest.mark.parametrize(
    "text, strict, flexible",
    [
        (GOLD, 1, 1),
        (" That is 1234.\n#### 1234", 1, 1),
        ("#### $1234", 0, 1),  # the strict form knows no dollar sign
        ("#### 1,234. and 5 more", 1, 0),
        ("#### 5\n#### 1234", 0, 1),  # the first of several, and the last number
        ("The answer is $1,234.", 0, 1),
        ("The answer is -1234", 0, 0),
        ("####1234", 0, 1),
        ("1234 hens lay 7", 0, 0),
        ("", 0, 0),
        ("none", 0, 0),
    ],
)
def test_extraction(text, strict, flexible):
    found = get_task("gsm8k").statistics({"question": "How many?", "answer": GOLD}, [text])
    assert found == {"exact_match_strict": strict, "exact_match_flexible": flexible}


def test_prompts_show_five_training_problems(tmp_path):
    (tmp_path / "eval_gsm8k").mkdir()
    for split, count in (("train", 8), ("test", 1)):
        rows = [json.dumps({"question": f"{split} {i}?", "answer": f"so\n#### {i}"}) for i in range(count)]
        (tmp_path / "eval_gsm8k" / f"{split}.jsonl").write_text("\n".join(rows))
    task, context = get_task("gsm8k"), TaskContext(tmp_path)
    (document,) = task.documents(context)
    (request,) = FewShot.make(task, None, 0, context).requests(document)
    assert request.prompt.count("Question: train") == 5 and request.prompt.count("\n\n") == 5
    assert request.prompt.endswith("\n\nQuestion: test 0?\nAnswer:") and "?\nAnswer: so\n#### " in request.prompt
    assert request.stop[0] == "Question:" and request.temperature == 0
