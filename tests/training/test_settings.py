"""Values that no run could work with are refused, by name, when the config is resolved."""

import errno
import os
import pathlib

import pytest

from fmjax import config as configs
from fmjax.errors import ConfigError, InputError
from fmjax.training.loop import train
from tests.test_config import BASE as DIGITS

BASE = DIGITS | {
    "train": {"steps": 20, "batch_size": 8},
    "optimizer": {"name": "adamw", "learning_rate": 1e-3, "schedule": None},
}


def resolve(overrides):
    return configs.resolve(configs.apply_overrides(BASE, overrides))


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"seed": "-1"}, "seed = -1 must be at least 0"),
        ({"seed": "4294967296"}, "seed = 4294967296 must be at least 0 and less than 2"),
        ({"train.profile_steps": "(0,2)"}, r"train.profile_steps = \(0, 2\) must be"),
        ({"train.final_tasks_limit": "-1"}, "train.final_tasks_limit = -1 must be 0 or more"),
        ({"train.final_tasks_limit": "3"}, "train.final_tasks_limit = 3 is not read: train.final_tasks is empty"),
        ({"mesh.replicate": "('(',)"}, r"mesh.replicate: '\(' is not a regular expression"),
        ({"optimizer.no_decay": "('(',)"}, r"optimizer.no_decay: '\(' is not a regular expression"),
        ({"optimizer.mu_dtype": "foo"}, "optimizer.mu_dtype = 'foo' must be a float type"),
        ({"optimizer.mu_dtype": "int32"}, "optimizer.mu_dtype = 'int32' must be a float type"),
        ({"optimizer.b1": "1.0"}, r"optimizer.b1 = 1.0 must be in \[0, 1\)"),
        ({"optimizer.b2": "-0.1"}, r"optimizer.b2 = -0.1 must be in \[0, 1\)"),
        ({"optimizer.name": "sgd", "optimizer.momentum": "1.5"}, r"optimizer.momentum = 1.5 must be in \[0, 1\)"),
        (
            {"optimizer.schedule.name": "cosine", "optimizer.schedule.final_fraction": "2"},
            "final_fraction = 2.0 must be in",
        ),
        (
            {"optimizer.schedule.name": "wsd", "optimizer.schedule.decay_fraction": "0"},
            "decay_fraction = 0 leaves nothing",
        ),
        (
            {"optimizer.schedule.name": "wsd", "optimizer.schedule.decay_fraction": "1.5"},
            "decay_fraction = 1.5 must be in",
        ),
        (
            {"optimizer.schedule.name": "wsd", "optimizer.schedule.warmup_steps": "17"},
            "warmup_steps = 17 and a decay of 4 steps .* are more than train.steps = 20",
        ),
    ],
)
def test_values_out_of_range_are_named(overrides, message):
    with pytest.raises(ConfigError, match=message):
        resolve(overrides)


def test_the_edges_of_the_ranges_are_accepted():
    resolve(
        {"seed": "4294967295", "train.profile_steps": "(1,1)", "optimizer.b1": "0", "optimizer.mu_dtype": "bfloat16"}
    )
    config = resolve({"optimizer.schedule.name": "wsd", "optimizer.schedule.warmup_steps": "16"})
    assert config.optimizer.schedule.warmup_steps == 16  # over `"schedule": None`


def test_files_that_are_no_config_or_no_folder_are_named(tmp_path):
    text = tmp_path / "README.md"
    text.write_text("# not Python")
    with pytest.raises(ConfigError, match="is not a Python file"):
        configs.load_config_file(str(text))
    for workdir in (text, text / "below", tmp_path / ("long" * 100), tmp_path / "made" / ("long" * 100)):
        with pytest.raises(ConfigError, match="cannot be made a folder to write to: .*: '.*'"):
            train(resolve({}), workdir, cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == [text]


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO])
def test_a_folder_that_the_system_does_not_let_one_make_or_write_to_is_one_message(tmp_path, monkeypatch, number):
    def refuse(path, *_, **__):
        raise OSError(number, os.strerror(number), str(path))

    for method in ("mkdir", "open"):
        with monkeypatch.context() as patch, pytest.raises(ConfigError, match=f"{os.strerror(number)}: '.*run"):
            patch.setattr(pathlib.Path, method, refuse)
            train(resolve({}), tmp_path / "run", cache_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_run_that_fails_before_it_writes_anything_leaves_no_folder(tmp_path):
    (tmp_path / "there").mkdir()
    text = {"data.name": "text", "data.source": "missing.txt", "data.tokenizer": "bytes", "data.sequence_length": "8"}
    for workdir in (tmp_path / "runs" / "one", tmp_path / "there" / "one", tmp_path / "there"):
        with pytest.raises(InputError, match="missing.txt"):
            train(resolve(text), workdir, cache_dir=tmp_path / "cache")
    assert [path.name for path in tmp_path.rglob("*") if "cache" not in str(path)] == ["there", ".lock"]
