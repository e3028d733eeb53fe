"""Cache folders are whole or absent: killed, concurrent and damaged builds."""

import errno
import multiprocessing
import os
import pathlib
import signal
import time

import pytest

from fmjax.data.prepared import build_once, content_hash, fingerprint
from fmjax.errors import DataError


def _slow_build(target, log, seconds):
    def build(folder):
        with open(log, "a") as file:
            file.write("built\n")
        (folder / "half").write_text("one")
        time.sleep(seconds)
        (folder / "other").write_text("two")

    build_once(target, build)


def test_two_processes_build_once(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    target, log = tmp_path / "thing", tmp_path / "log"
    processes = [spawn.Process(target=_slow_build, args=(target, log, 0.5)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert log.read_text() == "built\n"
    assert sorted(file.name for file in target.iterdir()) == ["half", "other", "sizes.json"]


def test_a_build_killed_half_way_is_done_again_and_swept_up(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    target, log = tmp_path / "thing", tmp_path / "log"
    process = spawn.Process(target=_slow_build, args=(target, log, 60))
    process.start()
    while not list(tmp_path.glob(".thing.partial-*/half")):
        assert process.is_alive() and not target.exists()
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not target.exists()
    _slow_build(target, log, 0)
    assert (target / "other").read_text() == "two"
    assert not list(tmp_path.glob(".thing.partial-*"))


def test_a_failing_build_leaves_nothing(tmp_path):
    def build(folder):
        (folder / "half").write_text("one")
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        build_once(tmp_path / "thing", build)
    assert not (tmp_path / "thing").exists() and not list(tmp_path.glob(".thing.partial-*"))


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path):
    def build(folder):
        (folder / "half").write_text("one")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DataError, match="cannot be written .No space left on device.*FMJAX_CACHE"):
        build_once(tmp_path / "thing", build)
    assert not (tmp_path / "thing").exists() and not list(tmp_path.glob(".thing.partial-*"))


def unwritable_places(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    yield tmp_path / "file" / "thing"
    yield tmp_path / "file" / "deep" / "thing"
    if pathlib.Path("/proc/self").exists():
        yield pathlib.Path("/proc/fmjax/thing")  # refused even to root


def test_a_cache_that_cannot_be_written_is_one_message(tmp_path):
    for target in unwritable_places(tmp_path):
        with pytest.raises(DataError, match=f"the cache {target.parent} cannot be written .*FMJAX_CACHE"):
            build_once(target, lambda folder: None)
        whole = tmp_path / "whole"
        whole.write_text("text")
        os.utime(whole, (1e9, 1e9))
        assert content_hash(whole, target.parent) == content_hash(whole, tmp_path)  # only slower


def test_what_a_build_cannot_read_is_not_blamed_on_the_cache(tmp_path):
    def build(folder):
        raise PermissionError(errno.EACCES, "Permission denied", "/elsewhere/source.txt")

    with pytest.raises(PermissionError, match="elsewhere"):
        build_once(tmp_path / "cache" / "thing", build)
    with pytest.raises(DataError, match="gone.txt cannot be read: No such file"):
        content_hash(tmp_path / "gone.txt", tmp_path)


@pytest.mark.parametrize("damage", ["cut", "lost", "no list"])
def test_a_damaged_folder_is_rebuilt_with_a_warning(tmp_path, damage, caplog):
    def build(content):
        def fill(folder):
            (folder / "deep").mkdir()
            (folder / "deep" / "a").write_text(content)

        return build_once(tmp_path / "thing", fill)

    target = build("new")
    assert build("again") == target and (target / "deep" / "a").read_text() == "new" and not caplog.text
    if damage == "cut":
        (target / "deep" / "a").write_text("ne")
    else:
        (target / "deep" / "a" if damage == "lost" else target / "sizes.json").unlink()
    build("again")
    assert (target / "deep" / "a").read_text() == "again"
    assert "is damaged" in caplog.text and ("2 bytes instead of 3" in caplog.text) == (damage == "cut")


def test_fingerprints_tell_parts_apart():
    assert fingerprint("ab", "c") != fingerprint("a", "bc")
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})


def test_content_hash_follows_the_content_and_remembers(tmp_path):
    file = tmp_path / "file"
    file.write_text("one")
    first = content_hash(file, tmp_path)
    file.write_text("two")  # the same size, at once
    assert content_hash(file, tmp_path) != first
    os.utime(file, (1e9, 1e9))
    remembered = content_hash(file, tmp_path)
    file.write_text("ten")
    os.utime(file, (1e9, 1e9))  # indistinguishable by size and time: the remembered hash shows it was not read again
    assert content_hash(file, tmp_path) == remembered
