"""Tasks of classification: their files, prompts and training documents, and how well confidences are calibrated."""

import types

import numpy as np
import pytest

from fmjax.errors import DataError, InputError
from fmjax.tasks.calibration import expected_calibration_error
from fmjax.tasks.catalogue import get_task
from fmjax.tasks.classification import SST2, AGNews, SST2Probe
from fmjax.tasks.protocol import ScoreAnswer, TaskContext
from fmjax.tasks.runner import run_tasks
from tests.tasks.short_texts import MODEL


def test_calibration_errors_are_the_arithmetic_of_their_bins():
    from sklearn.calibration import calibration_curve

    rng = np.random.default_rng(1)
    confidences = rng.random(500)
    correct = rng.random(500) < confidences**2
    for equal_mass in (False, True):
        accuracy, mean = calibration_curve(
            correct, confidences, n_bins=10, strategy=("uniform", "quantile")[equal_mass]
        )
        counts = np.full(10, 50) if equal_mass else np.histogram(confidences, 10, (0, 1))[0]
        want = (np.abs(accuracy - mean) * counts).sum() / 500
        found = expected_calibration_error(confidences, correct, equal_mass=equal_mass, num_bins=10)
        assert found == pytest.approx(want, abs=1e-12 if not equal_mass else 0.005)
        order = rng.permutation(500)
        assert found == expected_calibration_error(
            confidences[order], correct[order], equal_mass=equal_mass, num_bins=10
        )
    # Two bins by hand: 0.5 belongs to the lower one; equal confidences split with the wrong ones first.
    assert expected_calibration_error([0.5, 0.9], [1, 0], num_bins=2) == pytest.approx((abs(1 - 0.5) + 0.9) / 2)
    found = expected_calibration_error([0.5, 0.5, 0.9], [1, 0, 1], equal_mass=True, num_bins=2)
    assert found == pytest.approx((abs(1 - 1.0) + abs(1 - 0.9)) / 3)
    for equal_mass in (False, True):
        with pytest.raises(InputError, match="there are none"):
            expected_calibration_error([], [], equal_mass=equal_mass)
    assert expected_calibration_error([1.0], [1], num_bins=15) == 0.0 == expected_calibration_error([0.0], [0])


def test_sst2_prompt_and_confidence(data):
    task, context = SST2(), TaskContext(data)
    document = task.documents(context)[0]
    assert document == {"text": 'a "quoted\tfilm', "label": 1} and len(task.training(context)) == 32
    asked = f"{document['text']}\nQuestion: Is this sentence positive or negative?\nAnswer:"
    assert [(r.context, r.continuation) for r in task.requests(document)] == [
        (asked, " negative"),
        (asked, " positive"),
    ]
    found = task.statistics(document, [ScoreAnswer(x, False, 1) for x in (-1.0, -1.0)])
    assert found == {"acc": 0.0, "confidence": 0.5}  # the first of equal ones
    metrics = run_tasks(MODEL, [task], data_dir=data, num_shots=0)["sst2"].metrics
    assert {"acc", "ece", "ece_mass", "ece_stderr"} <= set(metrics)


def test_probe_task_counts_its_training_documents(data):
    context = TaskContext(data, seed=3)
    small, large = (get_task(f"sst2_probe:{count}").chosen(context) for count in (8, 16))
    assert large[:8] == small and small != get_task("sst2_probe:8").chosen(TaskContext(data, seed=4))
    assert len(SST2Probe().chosen(context)) == 32
    # The order of the file does not matter, also where documents are equal.
    task = get_task("sst2_probe:16")
    found = [*task.training(context), *task.training(context)[:5]]
    task.training = lambda context: found
    chosen = task.chosen(context)
    task.training = lambda context: found[::-1]
    assert task.chosen(context) == chosen and SST2Probe().version == "2"
    result = run_tasks(MODEL, ["sst2_probe:16"], data_dir=data)["sst2_probe:16"]
    again = run_tasks(MODEL, ["sst2_probe:16"], data_dir=data, limit=5)["sst2_probe:16"]
    # Equal but for the rounding of sums, whose order is that of a batch of another shape.
    found, wanted = ([s["answers"] for s in samples] for samples in (again.samples, result.samples[:5]))
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert result.metrics["acc"] == np.mean([s["statistics"]["acc"] for s in result.samples])
    with pytest.raises(InputError, match="only 32 training documents"):
        run_tasks(types.SimpleNamespace(config={}), ["sst2_probe:33"], data_dir=data)  # nothing is asked
    with pytest.raises(InputError, match="expected a number of training documents, got 'many'"):
        get_task("sst2_probe:many")


def test_ag_news_says_where_its_training_set_is_missing_and_halves_under_another_name(data):
    task, context = AGNews(), TaskContext(data)
    assert len(task.documents(context)) == 7
    assert task.documents(context)[1] == {"text": 'Title 1\na b, "c" 1', "label": 1}
    for name in ("ag_news", "ag_news_probe"):
        with pytest.raises(DataError, match=f"train.csv beside .* evaluate {name.replace('news', 'news_half')},"):
            get_task(name).training(context)
    half, probe = get_task("ag_news_half"), get_task("ag_news_half_probe:2")
    tests, training = half.documents(context), half.training(context)
    assert [len(tests), len(training)] == [3, 4] and probe.training(context) == training
    assert {one["text"] for one in [*tests, *training]} == {one["text"] for one in task.documents(context)}
    file = data / "eval_ag_news" / "test.csv"
    lines = file.read_text()
    file.write_text("".join(lines.splitlines(keepends=True)[::-1]))
    assert half.documents(context) == tests
    file.write_text(lines)
    (data / "eval_ag_news" / "train.csv").write_text('"4","t","x"\n')
    assert [len(task.documents(context)), len(task.training(context))] == [7, 1]
    (data / "eval_ag_news" / "train.csv").write_text('"5","t","x"\n')
    with pytest.raises(DataError, match="record 1: expected a class from 1 to 4"):
        task.training(context)
    (data / "eval_ag_news" / "train.csv").unlink()
