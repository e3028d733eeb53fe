"""A reward model on judged answers: accuracy, calibration, and both by kind."""

import json

import jax
import numpy as np
import pytest
from small_models import byte_model

import fmjax
from fmjax.tasks.calibration import expected_calibration_error


def scored(model, pairs):
    """A reward that likes long replies."""
    return [float(len(reply)) / 2 for _, reply in pairs]


def test_accuracy_and_calibration_of_a_reward_by_hand(tmp_path):
    records = [
        {"prompt": "a", "responses": ["xxxx", "x", "xxx"], "ranks": [1, 2, 3], "task": "one"},
        {"prompt": "b", "chosen": "xx", "rejected": "xxxx", "task": "two"},
        {"prompt": "c", "chosen": "xx", "rejected": "yy", "task": "two"},
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, records)))
    model = byte_model()
    model.functions["reward"] = jax.tree_util.Partial(scored)
    name = f"preferences:{tmp_path / 'pairs.jsonl'}"
    found = fmjax.evaluate(model, tasks=[name])["results"][name]
    margins = np.array([1.5, 0.5, -1.0, -1.0, 0.0])  # four and one, four and three, one and three; then the pairs
    right, sure = np.array([1, 1, 0, 0, 0.5]), 1 / (1 + np.exp(-np.abs(margins)))
    assert found["acc"] == pytest.approx(0.5) and found["margin"] == pytest.approx(margins.mean())
    assert found["ece"] == pytest.approx(expected_calibration_error(sure, right))
    assert found["acc/one"] == pytest.approx(2 / 3) and found["acc/two"] == pytest.approx(0.25)
    assert found["ece/two"] == pytest.approx(expected_calibration_error(sure[3:], right[3:]))
