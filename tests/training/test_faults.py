"""Runs that are killed, stopped, moved, damaged or starved go on as if nothing had happened, or say what did."""

import json
import resource
import shutil
import signal

import jax
import numpy as np
import pytest
from conftest import evaluations, last_logged, losses

from fmjax.checkpoint_files import complete_steps, read_item


def saved(workdir, step):
    """Every array of a checkpoint, by path, as numpy."""
    items = {name: read_item(workdir.absolute() / "checkpoints" / str(step) / name) for name in ("params", "train")}
    return {
        jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(items)[0]
    }


def assert_same_run(workdir, straight):
    """The same final state, bit for bit, the same loss at every step, the same evaluations and samples."""
    assert losses(workdir) == losses(straight)
    assert evaluations(workdir) == evaluations(straight)
    assert [row["step"] for row in evaluations(straight)] == [10, 20, 30, 40]
    assert (workdir / "samples.txt").read_text() == (straight / "samples.txt").read_text()
    ours, theirs = saved(workdir, 40), saved(straight, 40)
    assert sorted(ours) == sorted(theirs) and len(ours) > 20
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def test_killed_at_any_moment_a_run_ends_bitwise_the_same(command, straight):
    workdir = command.folder / "killed"
    being_saved = lambda: any("tmp" in p.name for p in (workdir / "checkpoints").glob("*"))

    def killed_at(moment):
        code, output = command.kill_when(workdir, moment)
        assert code == -signal.SIGKILL
        return output

    killed_at(lambda: (workdir / "config.json").exists())  # before the first step
    output = killed_at(lambda: last_logged(workdir) >= 14 and being_saved())  # during a save
    assert "ended before its first checkpoint: it begins again" in output
    complete, cleaned = complete_steps(workdir / "checkpoints"), []

    def saving_anew():
        """What the kill before left lying about has been removed, and another save is under way."""
        if not being_saved():
            cleaned.append(True)
        return cleaned and being_saved()

    killed_at(saving_anew)
    assert last_logged(workdir) > complete[-1]
    code, output = command.call(workdir)
    assert code == 0 and "resuming" in output, output
    assert_same_run(workdir, straight)


@pytest.fixture(scope="module")
def terminated(command):
    """(the workdir of a run that SIGTERM ended, its exit code, what it printed)."""
    workdir = command.folder / "terminated"
    return workdir, *command.kill_when(workdir, lambda: last_logged(workdir) >= 8, signal.SIGTERM)


def test_sigterm_saves_where_it_is_and_the_same_command_resumes(command, straight, terminated):
    ended, code, output = terminated
    assert code == 0 and "saved at step" in output and "Traceback" not in output, output
    stopped = last_logged(ended)
    assert complete_steps(ended / "checkpoints")[-1] == stopped < 40
    workdir = shutil.copytree(ended, command.folder / "resumed")
    code, output = command.call(workdir)
    assert code == 0 and f"at step {stopped} of 40" in output, output
    assert_same_run(workdir, straight)


def test_a_run_moves_to_another_mesh(command, straight):
    workdir = command.folder / "moved"
    # Eight devices sharding parameters, then two splitting layers; the same batches, sums in another order.
    silent = ("--config.train.eval_every=-1", "--config.train.sample_every=-1")
    flags = ("--config.mesh.data=1", "--config.mesh.fsdp=8", *silent)
    code, output = command.call(workdir, *flags, devices=8)
    assert code == 0, output
    for step in (35, 40):
        shutil.rmtree(workdir / "checkpoints" / str(step))
    code, output = command.call(workdir, "--config.mesh.data=1", "--config.mesh.tensor=2", *silent, devices=2)
    assert code == 0 and "resuming" in output, output
    found, expected = losses(workdir), losses(straight)
    assert sorted(found) == sorted(expected)
    for step in expected:
        assert found[step] == pytest.approx(expected[step], rel=2e-5), step


@pytest.mark.parametrize("damage", ["truncate", "remove"])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(command, straight, damage):
    workdir = command.folder / f"damaged_{damage}"
    shutil.copytree(straight, workdir)
    largest = max((workdir / "checkpoints" / "40").rglob("*"), key=lambda f: f.stat().st_size if f.is_file() else 0)
    if damage == "truncate":
        with largest.open("r+b") as file:
            file.truncate(largest.stat().st_size // 2)
    else:
        largest.unlink()
    code, output = command.call(workdir)
    assert code == 0, output
    assert "CHECKPOINT OF STEP 40 IS DAMAGED" in output and largest.name in output and "at step 35 of 40" in output
    assert (workdir / "damaged_checkpoints" / "40").is_dir()
    assert_same_run(workdir, straight)


def test_when_no_checkpoint_is_readable_the_run_says_so_and_changes_nothing(command, straight):
    workdir = command.folder / "all_damaged"
    shutil.copytree(straight, workdir)
    for manifest in workdir.glob("checkpoints/*/params/manifest.ocdbt"):
        manifest.unlink()
    before = sorted(str(p) for p in workdir.rglob("*"))
    code, output = command.call(workdir)
    assert code == 2 and "no checkpoint in" in output and "can be read" in output, output
    assert sorted(str(p) for p in workdir.rglob("*")) == before


def test_a_full_disk_is_said_and_what_was_saved_stays_readable(command, straight, terminated):
    workdir = shutil.copytree(terminated[0], command.folder / "full")
    kept = complete_steps(workdir / "checkpoints")
    # No file may grow beyond 20 kB, which is less than the parameters take: the write fails as on a full disk.
    # With a limit of 0 not even the files written before training can be.
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (20_000, 0):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, unlimited[1]))
        try:
            code, output = command.call(workdir, "--config.train.tensorboard=true")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        assert code == 1 and "could not be written" in output, output
        assert f"the last good checkpoint is step {kept[-1]}" in output, output
        assert complete_steps(workdir / "checkpoints") == kept
    code, output = command.call(workdir)
    assert code == 0, output
    assert_same_run(workdir, straight)


def test_a_resumption_that_would_be_another_run_is_refused_with_the_keys(command, straight):
    before = (straight / "config.json").read_text()
    code, output = command.call(straight, "--config.model.num_layers=3", "--config.data.sequence_length=32")
    assert code == 2 and "Traceback" not in output
    assert "model.num_layers: 2 in the run, 3 now" in output and "data.sequence_length: 64 in the run, 32 now" in output
    assert (straight / "config.json").read_text() == before


def test_changed_data_are_refused(command, straight):
    workdir = command.folder / "changed_data"
    shutil.copytree(straight, workdir)
    file = command.folder / "text" / "0.txt"
    original = file.read_text()
    try:
        file.write_text(original + " and more")
        code, output = command.call(workdir, "--config.train.steps=45")
    finally:
        file.write_text(original)
    assert code == 2 and "the data have changed since the run" in output, output


def test_more_steps_extend_a_finished_run(command, straight):
    workdir = command.folder / "extended"
    shutil.copytree(straight, workdir)
    code, output = command.call(workdir, "--config.train.steps=43")
    assert code == 0, output
    assert sorted(losses(workdir)) == list(range(1, 44)) and complete_steps(workdir / "checkpoints")[-1] == 43


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_last_good_checkpoint(command):
    workdir = command.folder / "nan"
    code, output = command.call(workdir, "--config.optimizer.learning_rate=1e30", "--config.optimizer.clip_norm=0")
    assert code == 1 and "training stopped at step" in output and "Traceback" not in output, output
    assert "no checkpoint was saved yet" in output
    assert complete_steps(workdir / "checkpoints") == []


def test_what_is_logged_is_what_is_promised(straight):
    rows = [json.loads(line) for line in (straight / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if row["step"] == 40]
    names = {name for row in last for name in row}
    assert {
        "step",
        "train/loss",
        "eval/loss",
        "perf/tokens_per_second",
        "perf/seconds_per_step",
        "perf/input_wait_share",
    } <= names
    assert "perf/mfu" not in names  # the peak of a CPU is not known, and not guessed
    for name in ("config.json", "loss.png", "tokenizer.bytes"):
        assert (straight / name).is_file()


def test_two_runs_cannot_share_a_workdir(command, straight):
    from fmjax.errors import ConfigError
    from fmjax.training.resume import locked

    with locked(straight):
        code, output = command.call(straight)
    assert code == 2 and "is in use by another run (process" in output, output
    with locked(straight), pytest.raises(ConfigError), locked(straight):
        pass


def test_what_keeps_a_run_from_beginning_is_one_message_and_leaves_nothing(command):
    code, output = command.call("/proc/run")
    assert code == 2 and output.splitlines()[-1].startswith("--workdir=/proc/run cannot be made a folder"), output
    broken = command.folder / "broken.txt"
    broken.write_bytes("the cat sees the dog\n".encode() * 20 + b"\xff\xfe")
    code, output = command.call(command.folder / "new" / "run", f"--config.data.source={broken}")
    assert code == 2 and "Traceback" not in output and not (command.folder / "new").exists(), output
    assert "tokenising" not in output and "broken.txt" in output.splitlines()[-1], output
