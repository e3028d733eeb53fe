"""What stands in a resumption's way: locks, damage, changed keys; and what does not."""

import contextlib
import dataclasses
import errno
import fcntl
import json
import logging
import resource

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fmjax import config as configs
from fmjax import file_lock
from fmjax.checkpoint_files import complete_steps
from fmjax.config_values import json_copy
from fmjax.errors import CheckpointError, ConfigError
from fmjax.training import checkpoint, optimizer, resume
from fmjax.training.disk import disk_full
from fmjax.training.optimizer import Adafactor
from fmjax.training.state import TrainState


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_logged_and_used(tmp_path, monkeypatch, caplog, number):
    def refuse(*_):
        raise OSError(number, "cannot lock")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with caplog.at_level(logging.WARNING), resume.locked(tmp_path / "run"):
        assert "cannot be locked (cannot lock)" in caplog.text


def test_a_system_without_file_locks_trains_all_the_same(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(file_lock, "fcntl", None)
    with caplog.at_level(logging.WARNING), resume.locked(tmp_path / "run"):
        assert (tmp_path / "run").is_dir() and "no file locks" in caplog.text


def test_the_lock_names_its_holder(tmp_path):
    with resume.locked(tmp_path), pytest.raises(ConfigError, match=r"in use by another run \(process \d+\)"):
        with resume.locked(tmp_path):
            pass


def test_only_a_full_disk_is_called_one():
    assert disk_full(OSError(errno.ENOSPC, "")) and disk_full(OSError(errno.EDQUOT, ""))
    assert disk_full(ValueError("RESOURCE_EXHAUSTED: write failed [OS error 28: ENOSPC No space left on device]"))
    wrapped = RuntimeError("saving failed")
    wrapped.__cause__ = OSError(errno.EFBIG, "File too large")
    assert disk_full(wrapped)
    for other in (
        OSError(errno.EACCES, "Permission denied"),
        ValueError("RESOURCE_EXHAUSTED: Out of memory"),
        TypeError(),
    ):
        assert not disk_full(other)


class Saves:
    """A checkpointer whose manager fails in a given way."""

    def __init__(self, folder, error, monkeypatch):
        self.checkpointer = checkpoint.Checkpointer(folder)

        def fail(*_, **__):
            raise error

        for name in ("wait_until_finished", "restore"):
            monkeypatch.setattr(self.checkpointer.manager, name, fail)
        monkeypatch.setattr(self.checkpointer.manager, "all_steps", lambda: [5])
        (folder / "checkpoints" / "5").mkdir()
        self.checkpointer._started = 5


def test_failures_to_save_keep_their_type_unless_the_disk_is_full(tmp_path, monkeypatch):
    full = Saves(tmp_path / "full", OSError(errno.ENOSPC, "No space left on device"), monkeypatch)
    with pytest.raises(checkpoint.SaveError, match="Is the disk full"):
        full.checkpointer.check()
    other = Saves(tmp_path / "other", TypeError("not an array"), monkeypatch)
    with pytest.raises(TypeError, match="not an array"):
        other.checkpointer.check()


def test_a_save_that_fails_deletes_no_older_checkpoint(tmp_path, monkeypatch):
    """Whenever its failure is asked for."""
    folder = tmp_path / "checkpoints"
    saver = checkpoint.Checkpointer(tmp_path, keep_last=1)
    zero = jnp.zeros((), jnp.int32)
    state = TrainState(zero + 1, zero, {"w": jnp.ones(3)}, {"m": jnp.ones(3)}, None)
    saver.save(state, {})
    saver.finish()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    noise = np.random.default_rng(0).normal(size=50_000)
    try:
        with pytest.raises(checkpoint.SaveError, match="the last good checkpoint is step 1"):
            saver.save(dataclasses.replace(state, step=zero + 2, params={"w": jnp.asarray(noise)}), {})
            while True:
                saver.check()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        with contextlib.suppress(Exception):
            saver.manager.close()
    assert complete_steps(folder) == [1]


def small_state(step, moments):
    number = jnp.asarray(step, jnp.int32)
    return TrainState(number, number, {"w": jnp.ones((2, 3))}, {"v_row": {"w": jnp.ones(moments)}}, None)


def test_a_checkpoint_with_other_arrays_than_the_run_has_is_refused_by_their_name_and_stays(tmp_path):
    """As where the optimizer's code has changed: that is no damage, and an older checkpoint is not better."""
    saver = checkpoint.Checkpointer(tmp_path, keep_last=2)
    for step in (1, 2):
        saver.save(small_state(step, 3), {})
    saver.finish()
    message = "opt_state/v_row/w' is of shape \\(3,\\) there, and of shape \\(2, 3\\) here .*init_from"
    with pytest.raises(CheckpointError, match=message):
        saver.restore_latest(small_state(0, (2, 3)))
    missing = dataclasses.replace(small_state(0, 3), params={"other": jnp.ones(1), "w": jnp.ones((2, 3))})
    with pytest.raises(CheckpointError, match="of 'params', 'other' is missing there, and of shape \\(1,\\) here"):
        saver.restore_latest(missing)
    carrying = dataclasses.replace(small_state(0, 3), carry={"queue": jnp.ones(2)})
    with pytest.raises(CheckpointError, match="it holds no carry, and this run has one \\(carry/queue\\).*init_from"):
        saver.restore_latest(carrying)
    assert complete_steps(tmp_path / "checkpoints") == [1, 2]
    restored, _ = saver.restore_latest(small_state(0, 3))
    assert int(restored.step) == 2
    saver.save(dataclasses.replace(carrying, step=jnp.int32(3)), {})
    saver.finish()
    with pytest.raises(CheckpointError, match="it holds a carry, and this run has none \\(carry/queue\\)"):
        saver.restore_latest(small_state(0, 3))
    assert not (tmp_path / "damaged_checkpoints").exists()
    saver.manager.close()


def test_adafactor_s_state_of_whole_stacks_is_refused_by_name(tmp_path, monkeypatch):
    """As checkpoints have it from before its moments were those of each layer."""
    params = {"w": jnp.ones((16, 8, 4)), "norm": jnp.ones((16, 8))}
    axes = {"w": ("layers", "embed", "mlp"), "norm": ("layers", "embed")}
    adafactor = Adafactor(learning_rate=0.1, min_dim_size_to_factor=4)
    zero = jnp.zeros((), jnp.int32)
    now = TrainState(zero, zero, params, adafactor.make(10, axes).init(params), None)
    monkeypatch.setattr(optimizer, "_factored_rms", lambda axes, **options: optax.scale_by_factored_rms(**options))
    before = dataclasses.replace(now, step=zero + 1, opt_state=adafactor.make(10, axes).init(params))
    saver = checkpoint.Checkpointer(tmp_path)
    saver.save(before, {})
    saver.finish()
    message = "of 'train', 'opt_state/.*/v/norm' is of shape .* there, and of shape .* here .*--config.train.init_from="
    with pytest.raises(CheckpointError, match=message):
        saver.restore_latest(now)
    assert complete_steps(tmp_path / "checkpoints") == [1]
    saver.manager.close()


def test_the_first_process_decides_which_checkpoint_all_restore(tmp_path, monkeypatch):
    saver = checkpoint.Checkpointer(tmp_path, keep_last=2)
    for step in (1, 2):
        saver.save(small_state(step, 3), {})
    saver.finish()
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(checkpoint, "from_first_process", lambda _: b'[1, {"2": "torn"}]')
    monkeypatch.setattr(saver.manager, "all_steps", lambda: pytest.fail("a process of its own looked"))
    restored, _ = saver.restore_latest(small_state(0, 3))
    assert int(restored.step) == 1 and (tmp_path / "checkpoints" / "2").is_dir()
    monkeypatch.undo()
    saver.manager.close()


@pytest.mark.parametrize(
    "error, damage",
    [
        (ValueError(""), True),
        (FileNotFoundError(errno.ENOENT, "No such file"), True),
        (CheckpointError("torn"), True),
        (MemoryError(), False),
        (ValueError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes"), False),
        (OSError(errno.EIO, "Input/output error"), False),
        (ValueError("UNKNOWN: reading failed [OS error 5: EIO Input/output error]"), False),
    ],
    ids=repr,
)
def test_only_what_lies_with_the_files_is_called_damage(tmp_path, monkeypatch, error, damage):
    saves = Saves(tmp_path, error, monkeypatch)
    monkeypatch.setattr(saves.checkpointer, "_newest", lambda _, damaged: (None if damaged else 5, damaged))
    monkeypatch.setattr(saves.checkpointer, "_restore", lambda *_: saves.checkpointer.manager.restore())
    with pytest.raises(CheckpointError if damage else type(error)) as caught:
        saves.checkpointer.restore_latest(None)
    assert ("no checkpoint in" in str(caught.value)) == damage


CONFIG = {
    "train": {"steps": 20, "batch_size": 8},
    "model": {"name": "llama", "num_layers": 1, "hidden_size": 16, "num_heads": 2},
    "objective": {"name": "causal_lm"},
    "data": {"source": "a.txt", "tokenizer": "bytes"},
    "optimizer": {"name": "adamw", "learning_rate": 1e-3, "schedule": {"name": "cosine"}},
}


def changed(**overrides):
    return configs.resolve(configs.apply_overrides(CONFIG, {k.replace("__", "."): v for k, v in overrides.items()}))


def test_a_resumption_may_change_how_things_are_computed_but_not_what(tmp_path):
    configs.save_config(changed(), tmp_path / "config.json")
    free = {"model__remat": "full", "model__unroll": "2", "objective__chunk_size": "64",
            "objective__sample_prompts": "a,b",
            "data__source": "moved/a.txt", "data__eval_source": "b.txt", "train__eval_every": "5", "mesh__fsdp": "2",
            "train__max_minutes": "5"}  # fmt: skip
    resume.check_config(tmp_path, changed(**free))
    for key, value in {
        "model__dropout": "0.1",
        "objective__z_loss": "1",
        "data__sequence_length": "9",
        "seed": "1",
    }.items():
        with pytest.raises(ConfigError, match=key.replace("__", r"\.")):
            resume.check_config(tmp_path, changed(**{key: value}))


@pytest.mark.parametrize(
    "overrides, free",
    [
        ({}, True),
        ({"model__dropout": "0.1"}, False),  # its masks are drawn for a part of the batch
        ({"objective__name": "tests.training.test_resume:Negatives"}, False),  # whose rows meet within a part
    ],
)
def test_the_parts_of_a_batch_may_change_where_nothing_depends_on_them(tmp_path, overrides, free):
    configs.save_config(changed(**overrides), tmp_path / "config.json")
    again = changed(**overrides, train__accumulate_steps="4")
    refused = pytest.raises(ConfigError, match="train.accumulate_steps: 1 in the run, 4 now")
    with contextlib.nullcontext() if free else refused:
        resume.check_config(tmp_path, again)


@dataclasses.dataclass(frozen=True)
class Negatives:
    """An objective that says nothing of its rows."""

    def inputs(self, batch):
        return {}

    def __call__(self, apply_fn, params, batch, key, train):
        return {}


def test_a_run_saved_before_a_field_existed_resumes_with_its_default(tmp_path):
    saved = changed().to_dict()
    for section, key in (("optimizer", "eps"), ("model", "rope_theta"), ("train", "ema_decay")):
        del saved[section][key]
    del saved["optimizer"]["schedule"]["final_fraction"]
    (tmp_path / "config.json").write_text(json.dumps(json_copy(saved)))
    resume.check_config(tmp_path, changed())
    for key, value in {"optimizer__eps": "1e-3", "optimizer__schedule__final_fraction": "0.5"}.items():
        with pytest.raises(ConfigError, match=key.replace("__", r"\.")):
            resume.check_config(tmp_path, changed(**{key: value}))


def test_what_a_plugin_leaves_free_are_fields_of_it():
    for registry in configs.PLUGINS.values():
        for name in registry.table:
            plugin = registry.get(name)
            assert set(getattr(plugin, "RESUME_FREE", ())) <= {field.name for field in dataclasses.fields(plugin)}
