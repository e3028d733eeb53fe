"""Two evaluations compared document by document, each found as it was, and what a comparison leaves out."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

import fmjax
from fmjax import evaluate
from fmjax.commands import cli
from fmjax.errors import InputError
from fmjax.tasks.compare import Difference, compare, notes, table
from fmjax.tasks.protocol import Task
from tests.tasks.quiz import MODEL, PARAMS


def test_a_comparison_says_what_it_leaves_out_and_needs_the_task_as_it_was(tmp_path):
    icl = "icl_mapping"
    fmjax.evaluate(MODEL, [icl, "icl_linear"], output=tmp_path / "both", limit=2)
    fmjax.evaluate(MODEL, [icl], output=tmp_path / "one", limit=2)
    report = json.loads((tmp_path / "one" / "results.json").read_text()) | {"complete": False}
    (tmp_path / "one" / "results.json").write_text(json.dumps(report))
    assert notes(tmp_path / "both", tmp_path / "one") == [
        "left out, as the first alone has them: icl_linear",
        "the second was interrupted: not all of its tasks are there",
    ]
    for name in ("both", "one"):
        report = json.loads((tmp_path / name / "results.json").read_text())
        report["task_versions"][icl] = "0-old"
        (tmp_path / name / "results.json").write_text(json.dumps(report))
    with pytest.raises(InputError, match="are of version 0-old, and the task as it is now of version"):
        compare(tmp_path / "both", tmp_path / "one")


def test_two_evaluations_are_compared_document_by_document(tmp_path, capsys):
    (tmp_path / "quiz.py").write_text(
        "from tests.tasks.quiz import Quiz as Base\n\n\nclass Quiz(Base):\n    name = 'quiz'\n"
    )
    other = dataclasses.replace(MODEL, params=jax.tree.map(lambda x: x * 1.5, PARAMS))
    for name, model in [("a", MODEL), ("b", other)]:
        fmjax.evaluate(model, ["quiz"], output=tmp_path / name, task_path=[tmp_path / "quiz.py"])
    argv = ["--compare", str(tmp_path / "a"), str(tmp_path / "b"), f"--task_path={tmp_path / 'quiz.py'}"]
    assert cli.run(evaluate.main, [*argv, f"--output={tmp_path / 'c'}"]) == 0
    printed = capsys.readouterr().out
    assert "acc_norm" in printed and (tmp_path / "c" / "compare.png").stat().st_size > 5000
    found = {d.metric: d for d in compare(tmp_path / "a", tmp_path / "b", task_path=[tmp_path / "quiz.py"])}
    rows = [
        [json.loads(line) for line in (tmp_path / n / "samples" / "quiz.jsonl").read_text().splitlines()] for n in "ab"
    ]
    differences = np.asarray([y["statistics"]["acc"] - x["statistics"]["acc"] for x, y in zip(*rows)])
    assert found["acc"].difference == pytest.approx(differences.mean())
    pages = differences.reshape(8, 3).mean(axis=1)  # documents of one page are one cluster
    assert found["acc"].stderr == pytest.approx(pages.std() / math.sqrt(8), rel=0.15)
    assert "note:" not in printed
    assert ("\n* more than two standard errors" in printed) == any(abs(d.z or 0) > 2 for d in found.values())
    # What else differs is said, and only what both have is compared.
    other = dict(num_shots=2, limit=9, seed=4)
    fmjax.evaluate(MODEL, ["quiz"], output=tmp_path / "d", task_path=[tmp_path / "quiz.py"], **other)
    assert cli.run(evaluate.main, ["--compare", str(tmp_path / "a"), str(tmp_path / "d"), argv[-1]]) == 0
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if line.startswith("note: ")] == [
        "note: task quiz: 0 examples in the prompts of the first, 2 of the second",
        "note: seed 0 of the first, 4 of the second: other examples in prompts, other draws, other training of probes",
        "note: limit: all documents of the first, 9 of the second; compared is what both have",
    ]
    assert "quiz  acc        9 " in printed
    same = compare(tmp_path / "a", tmp_path / "a", task_path=[tmp_path / "quiz.py"])
    assert all(d.difference == 0 and d.stderr == 0 for d in same)
    assert cli.run(evaluate.main, ["--compare", str(tmp_path / "a"), str(tmp_path)]) == 2
    assert "is not the output of an evaluation" in capsys.readouterr().err
    (tmp_path / "results.json").write_text('{"results": {}}')
    with pytest.raises(InputError, match="is not of an evaluation: it has no 'task_versions'"):
        compare(tmp_path / "a", tmp_path)


class Partly(Task):
    """Five documents, two of them equal; how well they are answered stands in a file."""

    metrics = ("acc",)
    uses = ()

    def __init__(self, wanted="no"):
        self.name = f"partly_{wanted}"
        self.wanted = wanted

    def documents(self, context):
        self.values = json.loads(context.file("partly", "values.json").read_text())
        return [{"text": text} for text in ("a", "a", "b", "c", "d")]

    def requests(self, document):
        return []

    def cluster(self, document):
        return ("page", document["text"])

    def statistics(self, document, answers):
        return {f"acc/{document['text']}": self.values.pop(0), "count": 1.0}

    def reduce(self, totals):
        kinds = {name[4:]: value for name, value in totals.items() if name.startswith("acc/")}
        return {"acc": sum(kinds.values()) / totals["count"]} | {f"acc_{k}": v for k, v in kinds.items() if v}


def test_a_comparison_finds_tasks_documents_and_metrics_as_they_were(tmp_path):
    """An argument, an import path, equal documents, clusters that JSON turns into lists, metrics of one side alone."""
    name = "tests.tasks.test_compare:Partly"
    (tmp_path / "partly.py").write_text(
        "from tests.tasks.test_compare import Partly as Base\n\n\nclass Partly(Base):\n    name = 'partly'\n"
    )
    options = dict(task_path=[tmp_path / "partly.py"])
    for folder, values in (("one", [1.0, 0.0, 1.0, 0.0, 1.0]), ("two", [1.0, 1.0, 0.0, 0.0, 1.0])):
        (tmp_path / "partly").mkdir(exist_ok=True)
        (tmp_path / "partly" / "values.json").write_text(json.dumps(values))
        fmjax.evaluate(MODEL, ["partly:yes"], output=tmp_path / folder, data_dir=tmp_path, **options)
        fmjax.evaluate(MODEL, [name], output=tmp_path / f"path_{folder}", data_dir=tmp_path)
    report = json.loads((tmp_path / "one" / "results.json").read_text())
    assert report["tasks"] == {"partly_yes": "partly:yes"}
    found = {d.metric: d for d in compare(tmp_path / "one", tmp_path / "two", **options)}
    # b is none of the second's, c of neither's.
    assert list(found) == ["acc", "acc_a", "acc_d"] and found["acc"].task == "partly_yes"
    assert found["acc"].num_documents == 5 and found["acc"].difference == 0
    assert (found["acc_a"].first, found["acc_a"].second) == (1.0, 2.0)
    again = compare(tmp_path / "path_one", tmp_path / "path_two")
    assert [dataclasses.replace(d, task="partly_yes") for d in again] == list(found.values())
    # What was read is stated, and a comparison says where it was not the same.
    changed = "partly/values.json held something else for the second than for the first"
    assert notes(tmp_path / "one", tmp_path / "two") == [f"task partly_yes: {changed}"]
    for folder, read in (("one", {"x": {"sha256": "1"}, "y": {}}), ("two", {"x": {"sha256": "2"}})):
        details = {"partly_yes": {"read": read, "judge": folder}}
        (tmp_path / folder / "results.json").write_text(json.dumps(report | {"details": details}))
    assert notes(tmp_path / "one", tmp_path / "two") == [
        "task partly_yes: judge: one of the first, two of the second",
        "task partly_yes: only the first read y",
        "task partly_yes: x held something else for the second than for the first",
    ]


def test_the_star_has_a_legend_and_large_numbers_no_decimals():
    clear = Difference("quiz", "acc", 0.5, 0.75, 0.1, 40)
    vague = Difference("text", "word_perplexity", 497213.123, 400000.0, None, 40)
    shown = table([clear, vague]).split("\n")
    assert shown[2].split() == ["quiz", "acc", "40", "0.5000", "0.7500", "+0.2500", "0.1000", "*"]
    assert shown[3].split() == ["text", "word_perplexity", "40", "497213", "400000", "-97213.1"]
    assert shown[4:] == ["* more than two standard errors"]
    assert "more than two" not in table([vague])
