"""BIG-Bench Hard: instruction and examples of the subset, exact match."""

import json
import zipfile

import pytest

from fmjax.errors import DataError
from fmjax.tasks.bbh import INSTRUCTIONS
from fmjax.tasks.catalogue import get_task
from fmjax.tasks.few_shot import FewShot
from fmjax.tasks.protocol import TaskContext


def data(folder, **subsets):
    (folder / "eval_bbh").mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / "eval_bbh" / "bbh.zip", "w") as file:
        for subset, value in subsets.items():
            file.writestr(f"{subset}.json", json.dumps(value))
    return TaskContext(folder)


def examples(*pairs):
    return {"canary": "c", "examples": [{"input": one, "target": other} for one, other in pairs]}


def test_prompts_hold_the_subset_s_instruction_and_other_documents(tmp_path):
    assert len(INSTRUCTIONS) == 27
    snarks = examples(*((f"Which? {i}", f"({'AB'[i % 2]})") for i in range(4)))
    context = data(tmp_path, snarks=snarks, navigate=examples(*((f"Step {i}", "Yes") for i in range(4))))
    task = get_task("bbh")
    task.chosen = ("snarks", "navigate")
    documents = task.documents(context)
    few = FewShot.make(task, None, 0, context)
    (request,) = few.requests(documents[-1])
    assert request.prompt.startswith("Given a series of navigation instructions") and request.stop[1] == "Q"
    assert request.prompt.endswith("\n\nQ: Step 3\nA:") and request.prompt.count("Q: Step") == 4
    assert "Which?" not in request.prompt and request.prompt.count("Step 3") == 1
    assert get_task("bbh_snarks").documents(context) == documents[:4]


def test_answers_match_without_the_spaces_around_them(tmp_path):
    task = get_task("bbh_dyck_languages")
    (document,) = task.documents(data(tmp_path, dyck_languages=examples(("[ [", "] ]"))))

    def score(text):
        return task.statistics(document, [text])["exact_match"]

    assert score(" ] ]") == score("] ]\n") == 1 and score("]]") == score("") == 0
    assert task.statistics(document, ["] ]"])["documents/dyck_languages"] == 1


def test_damaged_data_are_refused(tmp_path):
    context = data(tmp_path, navigate=[], snarks={"examples": [{"input": "x"}]})
    with pytest.raises(DataError, match="navigate.json: expected a JSON object with 'examples'"):
        get_task("bbh_navigate").documents(context)
    with pytest.raises(DataError, match="snarks.json, record 1: expected 'input' and 'target'"):
        get_task("bbh_snarks").documents(context)
