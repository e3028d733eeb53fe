"""SQuAD and XQuAD: prompts by language, the best right answer, passages as clusters."""

import json

import pytest

from fmjax.errors import DataError
from fmjax.tasks.catalogue import get_task
from fmjax.tasks.protocol import TaskContext
from fmjax.tasks.squad import _from_tfds


def written(folder, name, value):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(value))
    return TaskContext(folder)


def passages():
    asked = [
        {"id": "1", "question": "Who?", "answers": [{"text": "the cat", "answer_start": 0}, {"text": "a tom cat"}]},
        {"id": "2", "question": "When?", "answers": []},
    ]
    paragraphs = [{"context": "The cat sat.", "qas": asked}, {"context": "It left.", "qas": asked[:1]}]
    return {"version": "1.1", "data": [{"title": "T", "paragraphs": paragraphs}]}


def test_documents_and_scores(tmp_path):
    context = written(tmp_path, "eval_xquad/xquad.de.json", passages())
    task = get_task("xquad_de")
    who, when, other = task.documents(context)
    (request,) = task.requests(who)
    assert request.prompt == "Kontext: The cat sat.\n\nFrage: Who?\n\nAntwort:" and request.stop == ("\n",)
    assert task.example(who).endswith("Antwort: the cat") and task.example(when).endswith("Antwort: ")
    assert task.statistics(who, [" Tom, the cat!"]) == {"exact_match": 1, "f1": 1}
    assert task.statistics(who, ["cat dog"]) == {"exact_match": 0, "f1": pytest.approx(2 / 3)}
    assert task.statistics(when, [""])["f1"] == 1 and task.statistics(when, ["now"])["f1"] == 0
    assert task.cluster(who) == task.cluster(when) != task.cluster(other)
    assert task.key(who) != task.key(other)


def test_languages_and_sources(tmp_path):
    for name in ("xquad", "xquad_en"):
        (request,) = get_task(name).requests({"context": "C", "question": "Q", "answers": []})
        assert request.prompt == "Context: C\n\nQuestion: Q\n\nAnswer:"
    assert get_task("xquad_zh").place[2] == "xquad/zh:validation"
    context = written(tmp_path, "eval_squad/dev-v1.1.json", passages())
    documents = get_task("squad").documents(context)
    assert len(documents) == 3
    record = {"context": "The cat sat.", "question": "Who?", "answers": {"text": ["the cat", "a tom cat"]}, "id": "1"}
    assert _from_tfds(record) == documents[0]


def test_another_format_is_refused(tmp_path):
    for value in ([], {"data": [{"paragraphs": [{"context": "no questions"}]}]}):
        with pytest.raises(DataError, match="xquad.en.json': expected 'data' with 'paragraphs'"):
            get_task("xquad").documents(written(tmp_path, "eval_xquad/xquad.en.json", value))
