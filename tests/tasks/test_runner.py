"""The runner's promises: scores that depend on nothing but model, task and seed; examples; what it refuses."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.errors import DataError, InputError
from fmjax.inference import scoring
from fmjax.tasks.answers import ANSWERERS
from fmjax.tasks.calibration import softmax
from fmjax.tasks.few_shot import FewShot
from fmjax.tasks.multiple_choice import Choices, LetteredChoice, MultipleChoice
from fmjax.tasks.protocol import Rolling, Score, ScoreAnswer, Task, TaskContext
from fmjax.tasks.runner import run_tasks
from fmjax.tasks.sample_log import read_samples, write_samples
from tests.tasks.quiz import MODEL, PARAMS, Quiz, on_eight_devices, questions


def test_scores_depend_on_model_task_and_seed_alone(monkeypatch):
    """Batch size, devices, order, limit: same per-document log-likelihoods (1e-4), same accuracies."""
    want = run_tasks(MODEL, [Quiz()], num_shots=2, seed=3)["quiz"]
    by_key = {s["key"]: s for s in want.samples}

    def same(result, count=24):
        assert len(result.samples) == count
        for sample in result.samples:
            other = by_key[sample["key"]]
            assert sample["requests"] == other["requests"] and sample["statistics"] == other["statistics"]
            np.testing.assert_allclose(
                [a.loglikelihood for a in sample["answers"]], [a.loglikelihood for a in other["answers"]], atol=1e-4
            )
        return result.metrics

    turned = Quiz(questions()[::-1], questions()[::-1])
    assert same(run_tasks(MODEL, [turned], num_shots=2, seed=3)["quiz"]) == want.metrics
    same(run_tasks(MODEL, [Quiz()], num_shots=2, seed=3, limit=7)["quiz"], 7)
    assert same(run_tasks(on_eight_devices(), [Quiz()], num_shots=2, seed=3)["quiz"]) == want.metrics
    original = scoring.iter_scores
    monkeypatch.setattr(scoring, "iter_scores", lambda *a, **k: original(*a, tokens_per_batch=200, **k))
    assert same(run_tasks(MODEL, [Quiz()], num_shots=2, seed=3)["quiz"]) == want.metrics


def test_examples_depend_on_seed_and_document_and_never_hold_it():
    task, context = Quiz(), TaskContext()
    few = FewShot.make(task, 3, 0, context)
    chosen = {task.key(d): few.examples(d) for d in task.given}
    for key, examples in chosen.items():
        assert len({task.key(e) for e in examples}) == 3 and key not in {task.key(e) for e in examples}
    assert len({tuple(map(task.key, e)) for e in chosen.values()}) > 20  # not one set for all
    document = task.given[5]
    assert FewShot.make(task, 3, 0, context).prefix(document) == few.prefix(document)
    assert FewShot.make(task, 3, 1, context).prefix(document) != few.prefix(document)
    assert few.prefix(document).count("\n\n") == 3
    assert few.requests(document)[1] == Score(few.prefix(document) + document.context, f" {document.options[1]}")
    # A pool of copies of the document has no example to give.
    task.examples = lambda context: [document] * 5
    with pytest.raises(InputError, match="there are 0"):
        FewShot.make(task, 1, 0, context).examples(document)


@pytest.mark.parametrize("kind", [MultipleChoice, LetteredChoice])
def test_an_example_never_asks_what_its_document_asks(kind):
    """Of the same question with other options, or with another right one, an example would show the answer."""

    class Twins(kind):
        name = "twins"

        def documents(self, context):
            return [Choices(f"Which {i // 3}", (f"{i}", "b"), i % 2) for i in range(9)]

        def examples(self, context):
            return self.documents(context)

    task, context = Twins(), TaskContext()
    for seed in range(5):
        few = FewShot.make(task, 6, seed, context)
        for document in task.documents(context):
            shown = few.examples(document)
            assert len({task.key(one) for one in shown}) == 6
            assert document.context not in {one.context for one in shown}
    with pytest.raises(InputError, match="num_shots=7 .*, and there are 6"):
        FewShot.make(task, 7, 0, context).examples(task.documents(context)[0])
    task.examples_in_order = True
    repeated = [task.documents(context)[8]] * 2
    few = FewShot.make(task, 2, 0, context)
    assert [one.options[0] for one in few.examples(task.documents(context)[1])] == ["3", "4"]
    assert [one.options[0] for one in few.examples(task.documents(context)[8])] == ["0", "1"]
    task.examples = lambda context: repeated  # fixed examples are shown as they are
    assert FewShot.make(task, 2, 0, context).examples(task.documents(context)[0]) == repeated


def test_choices_ties_and_lengths():
    task = Quiz()
    answers = [ScoreAnswer(x, False, 1) for x in (-4.0, -4.0, -5.0)]
    first_of_equal = task.statistics(Choices("q", ("aa", "bb", "cccccc"), 0), answers)
    assert first_of_equal == {"acc": 1.0, "acc_norm": 0.0, "acc_bytes": 0.0}  # -5/6 is the best per character
    accents = task.statistics(Choices("q", ("éééé", "bbbbb"), 0), [ScoreAnswer(x, False, 1) for x in (-4.0, -4.5)])
    assert accents == {"acc": 1.0, "acc_norm": 0.0, "acc_bytes": 1.0}  # 4 characters but 8 bytes
    with pytest.raises(DataError, match="number 3, and there are 3 options"):
        Choices("q", ("a", "b", "c"), 3)
    lettered = LetteredChoice()
    assert lettered.question(Choices("What?", ("x", "y"), 1)) == "What?\nA. x\nB. y\nAnswer:"
    assert lettered.example(Choices("What?", ("x", "y"), 1)).endswith("Answer: B")


def test_what_cannot_be_scored_whole_is_said_before_another_task_computes(monkeypatch):
    class Long(Quiz):
        name = "long"

    long = Long([Choices("q", ("a", "b" * 129), 0)])
    monkeypatch.setattr("fmjax.tasks.runner.answer", lambda *a, **k: pytest.fail("a task was run"))
    with pytest.raises(InputError, match="task long: a continuation has 130 tokens, more than .* context of 128"):
        run_tasks(MODEL, [Quiz(), long])


class Read(Task):
    name, metrics = "read", ("loglikelihood",)

    def documents(self, context):
        return ["some text"]

    def requests(self, document):
        return [Rolling(document)]

    def statistics(self, document, answers):
        return {"loglikelihood": answers[0].loglikelihood}


def test_a_model_that_gives_nan_has_no_scores():
    broken = dataclasses.replace(MODEL, params=jax.tree.map(lambda x: x * jnp.nan, PARAMS))
    first = questions()[0]
    with pytest.raises(InputError, match=f"task quiz: the model gives NaN for .* of ' .*' after '{first.context}'"):
        run_tasks(broken, [Quiz([first])])
    with pytest.raises(InputError, match="task read: the model gives NaN for .* of the text that begins 'some text'"):
        run_tasks(broken, [Read()])
    with pytest.raises(InputError, match="NaN has no probability"):
        softmax([0.0, math.nan])


def test_minus_infinity_is_a_score_and_is_written_as_json_has_it(monkeypatch, tmp_path):
    def impossible(model, requests, *rest):
        for index, request in enumerate(requests):
            yield index, ScoreAnswer(-1.0 if request.continuation == " b" else -math.inf, False, 1)

    class Odds(Quiz):
        name, metrics = "odds", ("acc", "best")

        def statistics(self, document, answers):
            values = [answer.loglikelihood for answer in answers]
            return {"acc": super().statistics(document, answers)["acc"], "best": max(values), "worst": min(values)}

    monkeypatch.setitem(ANSWERERS, Score, impossible)
    found = run_tasks(MODEL, [Odds([Choices("q", ("a", "b"), 1), Choices("q", ("a", "c"), 0)])])
    assert found["odds"].metrics["acc"] == 1.0
    write_samples(found, tmp_path / "samples")
    lines = (tmp_path / "samples" / "odds.jsonl").read_text().splitlines()
    rows = [json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON")) for line in lines]
    assert [[one[0] for one in row["answers"]] for row in rows] == [["-Infinity", -1.0], ["-Infinity"] * 2]
    read = [row["statistics"] for row in read_samples(tmp_path, "odds").values()]
    assert read == [sample["statistics"] for sample in found["odds"].samples] and read[1]["best"] == -math.inf


def test_a_file_may_not_call_its_task_as_a_subset_of_another(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from tests.tasks.quiz import Quiz as Base\n\n\nclass Quiz(Base):\n    name = 'mmlu_anatomy'\n"
    )
    with pytest.raises(InputError, match="two tasks are called 'mmlu_anatomy': one of fmjax, one of .*mine.py"):
        run_tasks(MODEL, ["mmlu_anatomy"], task_path=[tmp_path / "mine.py"])
