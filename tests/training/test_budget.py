"""A run that may take so many minutes: how many steps it is given, and that it is then the run of those steps."""

import json
import types

import jax
import numpy as np
import pytest
from conftest import losses

from fmjax import config as configs
from fmjax.checkpoint_files import read_item
from fmjax.errors import ConfigError
from fmjax.training import budget, loop
from fmjax.training.checks import check_outputs
from fmjax.training.settings import TrainConfig

pytestmark = pytest.mark.usefixtures("one_device")


class Clock:
    """A machine whose first step takes 7 s and each after it `seconds`."""

    def __init__(self, seconds: float):
        self.seconds, self.now, self.steps = seconds, 100.0, 0

    def __call__(self) -> float:
        return self.now

    def step(self) -> None:
        self.now += self.seconds if self.steps else 7.0
        self.steps += 1


@pytest.mark.parametrize("seconds, counted", [(0.001, 20), (0.3, 10), (2.0, 2), (60.0, 2)])
def test_a_step_is_measured_without_the_first(seconds, counted):
    clock = Clock(seconds)
    assert budget.seconds_per_step(clock.step, clock) == pytest.approx(seconds)
    assert clock.steps == 2 + counted


def test_a_run_has_the_steps_wanted_or_those_that_fit_after_compiling_again():
    fit = lambda wanted, per_step: budget.steps_in_time(wanted, 3.0, 30.0, 10.0, per_step)
    assert fit(700, 0.2) == 700  # 140 s of 150
    assert fit(700, 0.5) == 280  # 10 s of them are compiling
    assert fit(700, 0.22) == 636
    assert fit(300, 0.501) == 279
    with pytest.raises(ConfigError, match="train.max_minutes = 3 leaves no time for a step"):
        budget.steps_in_time(700, 3.0, 175.0, 10.0, 18.5)


def test_a_run_that_took_long_to_prepare_has_a_tenth_of_its_minutes_and_says_so(caplog):
    with caplog.at_level("WARNING", logger="fmjax"):
        assert budget.steps_in_time(700, 3.0, 140.0, 10.0, 1.0) == 30 and not caplog.text
        for passed in (155.0, 175.0, 400.0):
            assert budget.steps_in_time(700, 3.0, passed, 10.0, 0.1) == 180
            assert f"{passed:.0f} s have passed" in caplog.text and "longer than train.max_minutes = 3" in caplog.text


def test_a_limit_that_is_none_is_refused():
    for minutes in (-1.0, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match="train.max_minutes"):
            TrainConfig(steps=1, batch_size=1, max_minutes=minutes)


class Rollouts:
    rollout_steps = 2

    def num_prompts(self, num_rows):
        return num_rows

    def collect(self, *arguments):
        raise NotImplementedError


def test_a_limit_is_refused_where_rows_are_made_on_the_way():
    settings = TrainConfig(steps=4, batch_size=2, checkpoint_every=2, max_minutes=1.0)
    with pytest.raises(ConfigError, match="train.max_minutes = 1: a step says nothing .* Rollouts makes"):
        check_outputs(settings, Rollouts(), None, types.SimpleNamespace(codecs={}))


def config(folder, **train):
    (folder / "text").mkdir(exist_ok=True)
    for name in ("train", "validation"):
        (folder / "text" / f"{name}.txt").write_text(f"{name} " + "the cat sees a red bird and the old dog " * 40)
    return configs.resolve({
        "train": {"batch_size": 8, "log_every": 1, "checkpoint_every": 3, "tensorboard": False} | train,
        "model": {"name": "llama", "num_layers": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2,
                  "max_length": 32, "vocab_size": 264},
        "objective": {"name": "causal_lm"},
        "data": {"source": str(folder / "text"), "sequence_length": 16, "tokenizer": "bytes"},
        "optimizer": {"name": "adamw", "learning_rate": 1e-2, "schedule": {"name": "linear", "warmup_steps": 2}},
    })  # fmt: skip


def test_a_limited_run_is_the_run_of_its_steps_and_keeps_them_when_it_resumes(tmp_path, monkeypatch, caplog):
    run = lambda name, **train: loop.train(
        config(tmp_path, **train), tmp_path / name, cache_dir=tmp_path, progress=False
    )
    run("known", steps=7)
    monkeypatch.setattr(budget, "steps_in_time", lambda wanted, *_: 7 if wanted == 900 else wanted)
    save, stopped = loop.Run._save, []

    def killed(self, state):
        save(self, state)
        if self.step == 3 and not stopped:
            self.checkpointer.finish()
            stopped.append(self.step)
            raise KeyboardInterrupt

    monkeypatch.setattr(loop.Run, "_save", killed)
    with pytest.raises(KeyboardInterrupt):
        run("limited", steps=900, max_minutes=5.0)
    saved = json.loads((tmp_path / "limited" / "config.json").read_text())["train"]
    assert stopped and (saved["steps"], saved["max_minutes"]) == (7, 5.0)
    monkeypatch.setattr(budget, "steps_in_time", lambda *_: 5)
    with caplog.at_level("INFO", logger="fmjax"):
        run("limited", steps=900, max_minutes=5.0)
    assert "resuming" in caplog.text and "keeps its 7 steps" in caplog.text
    assert losses(tmp_path / "limited") == losses(tmp_path / "known")
    for item in ("params", "train"):
        read = [read_item(tmp_path / name / "checkpoints" / "7" / item) for name in ("limited", "known")]
        jax.tree.map(np.testing.assert_array_equal, *read)
