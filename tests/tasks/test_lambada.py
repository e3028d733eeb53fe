"""LAMBADA as published; OpenAI's form is tested with the runner."""

from fmjax.tasks.catalogue import get_task
from fmjax.tasks.protocol import Score, TaskContext


def test_passages_as_published(tmp_path, monkeypatch):
    (tmp_path / "eval_lambada").mkdir()
    (tmp_path / "eval_lambada" / "lambada_test_plain_text.txt").write_text("he said , `` go '' \nshe left\n")
    task = get_task("lambada_standard")
    first, second = task.documents(TaskContext(tmp_path))
    assert task.requests(first) == [Score("he said , `` go", " ''")] and second == {"text": "she left"}
    monkeypatch.setattr(TaskContext, "tfds", lambda self, words, instead: [{"passage": f"{words}\n"}])
    assert task.documents(TaskContext()) == [{"text": "lambada:test"}]
