"""A fork's view: a model, an objective and data from a package outside fmjax, named by import path, train as they are."""

import pathlib

import pytest

from fmjax import config as configs
from fmjax.errors import ConfigError
from fmjax.training.loop import train
from fmjax.training.metrics import read_metrics

HERE = pathlib.Path(__file__).parent


@pytest.fixture
def my_lab(monkeypatch):
    monkeypatch.syspath_prepend(HERE)


def config_with(**sections):
    return configs.resolve({
        "train": {"steps": 60, "batch_size": 16, "log_every": 20, "eval_every": 30, "checkpoint_every": 30, "ema_decay": 0.5},
        "mesh": {"data": 2, "fsdp": 4},
        "model": {"name": "my_lab.models:Bilinear", "rank": 6},
        "objective": {"name": "my_lab.objectives:Huber", "delta": 2.0},
        "data": {"name": "my_lab.data:RatedPairs"},
        "optimizer": {"name": "adamw", "learning_rate": 0.01},
    } | sections)  # fmt: skip


def test_a_fork_trains_evaluates_and_resumes_without_touching_the_core(my_lab, tmp_path):
    start = train(config_with(), tmp_path / "run", cache_dir=tmp_path, progress=False)
    assert (tmp_path / "run" / "checkpoints" / "60").is_dir()
    before = read_metrics(tmp_path / "run" / "metrics.jsonl")
    more = config_with(train=config_with().train.to_dict() | {"steps": 300})
    end = train(more, tmp_path / "run", cache_dir=tmp_path, progress=False)
    # It went on from step 60: what was written before stands as it was, and only later steps follow.
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert rows[: len(before)] == before and {row["step"] for row in before} == {1, 20, 30, 40, 60}
    assert min(row["step"] for row in rows[len(before) :]) == 61
    assert end["eval/loss"] < 0.2 * start["eval/loss"]
    assert "perf/tokens_per_second" not in end and "perf/examples_per_second" in end


def test_a_fork_is_told_what_it_got_wrong(my_lab):
    with pytest.raises(ConfigError, match="unknown config key 'model.rnak'; did you mean 'rank'"):
        config_with(model={"name": "my_lab.models:Bilinear", "rnak": 6})
    with pytest.raises(ConfigError, match="has no 'Bilinaer'; did you mean 'Bilinear'"):
        config_with(model={"name": "my_lab.models:Bilinaer"})
