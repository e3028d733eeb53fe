"""What stands in a resumption's way: locks, damage, changed keys; and what does not."""

import errno
import fcntl
import logging

import pytest

from fmjax.errors import CheckpointError, ConfigError
from fmjax.training import checkpoint, resume
from fmjax.training.disk import disk_full


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_logged_and_used(tmp_path, monkeypatch, caplog, number):
    def refuse(*_):
        raise OSError(number, "cannot lock")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with caplog.at_level(logging.WARNING), resume.locked(tmp_path / "run"):
        assert "cannot be locked (cannot lock)" in caplog.text


def test_a_system_without_file_locks_trains_all_the_same(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(resume, "fcntl", None)
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
    for other in (OSError(errno.EACCES, "Permission denied"), ValueError("RESOURCE_EXHAUSTED: Out of memory"), TypeError()):
        assert not disk_full(other)


class Saves:
    """A checkpointer whose manager fails in a given way."""

    def __init__(self, folder, error, monkeypatch):
        self.checkpointer = checkpoint.Checkpointer(folder)

        def fail(*_, **__):
            raise error

        for name in ("check_for_errors", "restore"):
            monkeypatch.setattr(self.checkpointer.manager, name, fail)
        monkeypatch.setattr(self.checkpointer.manager, "all_steps", lambda: [5])
        (folder / "checkpoints" / "5").mkdir()


def test_failures_to_save_keep_their_type_unless_the_disk_is_full(tmp_path, monkeypatch):
    full = Saves(tmp_path / "full", OSError(errno.ENOSPC, "No space left on device"), monkeypatch)
    with pytest.raises(checkpoint.SaveError, match="Is the disk full"):
        full.checkpointer.check()
    other = Saves(tmp_path / "other", TypeError("not an array"), monkeypatch)
    with pytest.raises(TypeError, match="not an array"):
        other.checkpointer.check()


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
    monkeypatch.setattr(saves.checkpointer, "_restore", lambda *_: saves.checkpointer.manager.restore())
    with pytest.raises(CheckpointError if damage else type(error)) as caught:
        saves.checkpointer.restore_latest(None)
    assert ("no checkpoint in" in str(caught.value)) == damage
