"""Code tasks: pass@k against the published estimator, programs and prompts on hand-made files."""

import itertools
import json
import types

import numpy as np
import pytest

from fmjax.errors import DataError, InputError
from fmjax.tasks import sandbox
from fmjax.tasks.catalogue import get_task
from fmjax.tasks.code import MBPP, ClozeMaxMin, VisibleMaxMin, pass_at_k
from fmjax.tasks.few_shot import FewShot
from fmjax.tasks.protocol import ScoreAnswer, TaskContext
from fmjax.tasks.runner import run_tasks
from tests.tasks.quiz import MODEL
from tests.tasks.test_sandbox import has_sandbox

needs_sandbox = pytest.mark.skipif(not has_sandbox(), reason="this machine gives no namespaces to this user")


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def humaneval(tmp_path):
    row = {
        "task_id": "HumanEval/0",
        "prompt": 'def add(a, b):\n    """The sum."""\n',
        "entry_point": "add",
        "canonical_solution": "    return a + b\n",
        "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(-1, 1) == 0\n",
    }
    twice = row | {"task_id": "HumanEval/1", "prompt": row["prompt"].replace("sum", "total")}
    write_jsonl(tmp_path / "eval_humaneval" / "HumanEval.jsonl", [row, twice])
    return TaskContext(tmp_path)


@pytest.fixture
def mbpp(tmp_path):
    rows = [
        {
            "text": f"Write number {i}.",
            "code": f"def f():\r\n  return {i}",
            "task_id": i,
            "test_setup_code": "" if i % 2 else "limit = 1000",
            "test_list": [
                f"assert f() == {i}",
                "assert f() > 0",
                "assert f() < 1000" if i % 2 else "assert f() < limit",
            ],
            "challenge_test_list": [],
        }
        for i in (1, 2, 3, 4, 5, 11, 12, 510, 511)
    ]
    write_jsonl(tmp_path / "eval_mbpp" / "mbpp.jsonl", rows)
    return TaskContext(tmp_path)


@pytest.mark.parametrize("n, c, k", [(1, 0, 1), (1, 1, 1), (5, 0, 3), (5, 2, 1), (5, 2, 4), (5, 5, 5), (200, 17, 100)])
def test_pass_at_k_is_the_published_estimator(n, c, k):
    product = 1.0 if n - c < k else 1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1))
    assert pass_at_k(n, c, k) == pytest.approx(product, abs=1e-12)
    if n <= 5:  # the mean over all choices of k samples
        draws = [any(i < c for i in draw) for draw in itertools.combinations(range(n), k)]
        assert pass_at_k(n, c, k) == pytest.approx(np.mean(draws))


def test_pass_at_k_needs_k_samples():
    with pytest.raises(InputError, match="pass@3 of 0 passes in 2 samples"):
        pass_at_k(2, 0, 3)


@needs_sandbox
def test_humaneval_runs_what_was_written(humaneval):
    task = get_task("humaneval")
    first, _ = task.documents(humaneval)
    (request,) = task.requests(first)
    assert request.prompt == first["prompt"] and request.temperature == 0 and request.max_new_tokens == 1024
    assert request.stop == ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
    for body, passes in [
        ("    return a + b\n", 1),
        ("    return 3\n", 0),
        ("    exit()\n", 0),
        ("", 0),
        ("    return (", 0),
    ]:
        assert task.statistics(first, [body]) == {"pass@1": passes}
    # A program that leaves as if all were well has not passed its tests.
    assert task.statistics(first, ["    pass\nimport os\nos._exit(0)\n"]) == {"pass@1": 0}
    several = get_task("humaneval:4")
    assert several.name == "humaneval_4" and several.metrics == ("pass@1", "pass@2", "pass@4")
    requests = several.requests(first)
    assert [r.sample for r in requests] == [0, 1, 2, 3] and {(r.temperature, r.top_p) for r in requests} == {
        (0.2, 0.95)
    }
    good, bad = "    return a + b\n", "    return a - b\n"
    found = several.statistics(first, [bad, good, bad, bad])
    assert found == {"pass@1": pytest.approx(0.25), "pass@2": pytest.approx(0.5), "pass@4": 1.0}
    assert get_task("humaneval_64").metrics[-1] == "pass@64"
    with pytest.raises(InputError, match="humaneval:many: expected a number of samples"):
        get_task("humaneval:many")


def test_code_is_refused_without_a_sandbox_before_the_model_computes(humaneval, monkeypatch):
    def none(program, limits=None, unsafe=False):
        raise InputError("there is no sandbox")

    monkeypatch.setattr(sandbox, "run", none)
    monkeypatch.delenv("FMJAX_UNSAFE_CODE", raising=False)
    with pytest.raises(InputError, match="task humaneval: there is no sandbox"):
        run_tasks(types.SimpleNamespace(config={}), ["humaneval"], data_dir=humaneval.data_dir)


@needs_sandbox
def test_mbpp_prompts_and_tests(mbpp):
    task = MBPP()
    documents = task.documents(mbpp)
    assert [d["task_id"] for d in documents] == [11, 12, 510]
    few = FewShot.make(task, None, 0, mbpp)
    (request,) = few.requests(documents[1])
    shown = [
        f"You are an expert Python programmer, and here is your task: Write number {i}. Your code should pass these "
        f"tests:\n\nassert f() == {i}\nassert f() > 0\nassert f() < {'1000' if i % 2 else 'limit'}\n[BEGIN]\n"
        for i in (2, 3, 4, 12)
    ]
    solved = [f"{text}def f():\r\n  return {i}\n[DONE]\n\n" for text, i in zip(shown, (2, 3, 4))]
    assert request.prompt == "".join(solved) + shown[3]
    assert request.stop == ("[DONE]",) and few.prefix(documents[0]) == few.prefix(documents[2])
    assert task.statistics(documents[1], [documents[1]["code"]]) == {"pass@1": 1.0}
    assert task.statistics(documents[1], ["def f(): return 13"]) == {"pass@1": 0.0}
    with pytest.raises(InputError, match="num_shots=4 takes .*, and there are 3"):
        FewShot.make(task, 4, 0, mbpp).requests(documents[0])


def test_cloze_asks_for_the_word_and_what_follows(tmp_path, monkeypatch):
    rows = [
        {"idx": "maxmin-1", "nl_tokens": ["Clip", "."], "pl_tokens": "x = <mask> ( x , min ( a , 9 ) )".split()},
        {"idx": "maxmin-2", "nl_tokens": ["Top"], "pl_tokens": "y = x . max ( ) + <mask>".split()},
    ]
    folder = tmp_path / "code_codexglue"
    folder.mkdir()
    (folder / "cloze_maxmin_python.json").write_text(json.dumps(rows))
    context = TaskContext(tmp_path)
    with pytest.raises(DataError, match="take answers.txt .*maxmin/evaluator/answers .* or evaluate .*_visible"):
        ClozeMaxMin().documents(context)
    answers = folder / "cloze_maxmin_python_answers.txt"
    answers.write_text("maxmin-1<CODESPLIT>max\n")
    with pytest.raises(DataError, match="no answer max or min for 'maxmin-2'"):
        ClozeMaxMin().documents(context)
    answers.write_text("maxmin-1<CODESPLIT>max\nmaxmin-2<CODESPLIT>min\n")
    monkeypatch.setattr(ClozeMaxMin, "AFTER", 4)
    task = ClozeMaxMin()
    first, second = task.documents(context)
    assert first.context == "# Clip .\nx =" and first.options == ("max ( x , min", "min ( x , min") and first.gold == 0
    assert second.context == "# Top\ny = x . max ( ) +" and second.options == ("max", "min") and second.gold == 1
    scores = [ScoreAnswer(-2.0, False, 1), ScoreAnswer(-2.0, False, 1)]
    assert task.statistics(first, scores) == {"acc": 1.0} and task.statistics(second, scores) == {"acc": 0.0}
    (visible,) = VisibleMaxMin().documents(context)  # a method called max is not the function
    assert visible.context == "# Clip .\nx = <mask> ( x ," and visible.gold == 1
    assert run_tasks(MODEL, [task], data_dir=tmp_path)["codexglue_cloze_maxmin"].num_documents == 2
    (folder / "cloze_maxmin_python.json").write_text('[{"idx": 1}]')
    with pytest.raises(DataError, match="question 0: expected 'idx', 'nl_tokens'"):
        VisibleMaxMin().documents(context)
