"""Epochs of a rollout: its batches are made once and shown again, in the same order."""

import contextlib
import types

import jax
import numpy as np
import pytest

from fmjax.errors import ConfigError
from fmjax.training.experience import Experience


def test_two_epochs_show_the_same_batches_twice():
    asked = []

    def collect(model, prompts, key):
        asked.append(prompts["x"].tolist())
        return {"x": prompts["x"]}

    objective = types.SimpleNamespace(rollout_steps=4, epochs=2, num_prompts=lambda rows: rows, collect=collect)
    program = types.SimpleNamespace(
        objective=objective, inference=contextlib.nullcontext, key_for=lambda *_: None, score_step=None,
        row={"x": jax.ShapeDtypeStruct((), np.int32)},
    )  # fmt: skip
    prompts = [{"x": np.int32(value)} for value in range(12)]
    batches = Experience(program, prompts, 3, [0, 1, 2])
    seen = []
    for step in range(8):
        if batches.due(step):
            batches.collect(step, None)
        seen.append(next(batches)["x"].tolist())
    assert asked == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
    assert seen == [[0, 1, 2], [3, 4, 5]] * 2 + [[6, 7, 8], [9, 10, 11]] * 2
    with pytest.raises(ConfigError, match="inside a rollout"):
        batches.collect(5, None)
