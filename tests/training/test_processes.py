"""Several processes with several devices each, as on several hosts: one run, each reading its own rows."""

import dataclasses
import shutil
import signal
import socket
import time

import jax
import numpy as np
import pytest
from conftest import evaluations, last_logged, losses

import fmjax
from fmjax.checkpoint_files import complete_steps, read_item
from tests import processes

STEPS = 12
FLAGS = [
    f"--config.train.steps={STEPS}", "--config.train.checkpoint_every=4", "--config.train.eval_every=6",
    "--config.train.eval_batches=1", "--config.train.sample_every=0", "--config.objective.sample_prompts=()",
    "--config.model.num_layers=1", "--config.optimizer.schedule.warmup_steps=2", "--config.mesh.fsdp=2",
]  # fmt: skip


LIMIT = "--config.train.max_minutes=30"  # they measure a step together, and agree on what it takes


def start(command, workdir, num_processes, devices, launcher=None):
    flags = [f"--config={command.folder}/config.py", f"--workdir={workdir}", *FLAGS, LIMIT]
    return processes.start("fmjax.train", [flags] * num_processes, devices, command.folder / "cache", launcher)


def run(command, workdir, num_processes, devices, launcher=None):
    """What each process printed. Only the first says anything, but for Gloo."""
    hosts = start(command, workdir, num_processes, devices, launcher)
    printed = processes.outputs(hosts)
    assert [host.returncode for host in hosts] == [0] * num_processes, printed
    assert [processes.without_gloo(other) for other in printed[1:]] == [""] * (num_processes - 1)
    return printed[0]


@pytest.fixture(scope="module")
def one(command):
    """The workdir of one process with all four devices."""
    workdir = command.folder / "one_process"
    code, output = command.call(workdir, *FLAGS, LIMIT, devices=4)
    assert code == 0, output
    return workdir


@pytest.fixture(scope="module")
def two(command):
    """The workdir of two processes that nothing disturbed."""
    workdir = command.folder / "two_processes"
    printed = run(command, workdir, 2, 2)
    assert f"step {STEPS}" in printed and f"{STEPS} of train.steps = {STEPS} steps, of" in printed
    return workdir


def assert_close(workdir, expected):
    found, wanted = losses(workdir), losses(expected)
    assert sorted(found) == list(range(1, STEPS + 1))
    assert found == pytest.approx(wanted, rel=1e-5)
    evaluated = [row["eval/loss"] for row in evaluations(workdir)]
    assert len(evaluated) == 2
    assert evaluated == pytest.approx([row["eval/loss"] for row in evaluations(expected)], rel=1e-5)


def test_two_processes_train_as_one(one, two):
    assert_close(two, one)
    assert complete_steps(two / "checkpoints") == [4, 8, 12]
    assert not (two / ".shared").exists()
    saved = [read_item(workdir / "checkpoints" / str(STEPS) / "params") for workdir in (two, one)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), *saved)


def test_what_one_process_saved_two_resume_from_the_newest_that_is_whole(command, one):
    workdir = command.folder / "of_one_process"
    shutil.copytree(one, workdir)
    (workdir / "checkpoints" / "12" / "params" / "manifest.ocdbt").unlink()
    printed = run(command, workdir, 2, 2, processes.slurm)
    assert "CHECKPOINT OF STEP 12 IS DAMAGED" in printed and f"resuming {workdir} at step 8 of {STEPS}" in printed
    assert (workdir / "damaged_checkpoints" / "12").is_dir()
    assert_close(workdir, one)


@pytest.mark.parametrize("differing", ["data", "init_from"])
def test_processes_that_read_other_files_do_not_train(command, one, tmp_path, differing):
    """Of parameters that are split over processes each reads its own part, so it is the files that are compared."""
    words = (command.folder / "text" / "0.txt").read_text()
    for number in (0, 1):
        (tmp_path / f"host{number}").mkdir()
        name = "text.txt" if differing == "data" else "other.txt"
        (tmp_path / f"host{number}" / name).write_text(f"{words} {number}\n" * 20)
        model = fmjax.load(one)
        params = jax.tree.map(lambda x: x + number, model.params)
        dataclasses.replace(model, params=params).save(tmp_path / f"host{number}" / "model", format="fmjax")
    flags = [f"--config={command.folder}/config.py", f"--workdir={tmp_path}/run"]
    flags.append("--config.data.source=text.txt" if differing == "data" else "--config.train.init_from=model")
    folders = [tmp_path / "host0", tmp_path / "host1"]
    hosts = processes.start("fmjax.train", [[*flags, *FLAGS]] * 2, 2, command.folder / "cache", folders=folders)
    printed = processes.outputs(hosts)
    assert [host.returncode for host in hosts] == [2, 2], printed
    what = {"data": ("data.data", "'text.txt@"), "init_from": ("model files.train.init_from", "'")}[differing]
    host = socket.gethostname()
    told = f"process 1 of 2 (host {host}): {what[0]} on host {host} is {what[1]}"
    assert told in printed[0] and "it reads other files" in printed[1] and "Traceback" not in printed[0], printed
    assert not (tmp_path / "run" / "config.json").exists()


def test_one_killed_ends_the_other_and_the_same_command_resumes_bitwise(command, two):
    """That of several others each names it, `tests/parallel/test_watch.py` shows."""
    workdir = command.folder / "killed_process"
    hosts = start(command, workdir, 2, 2, processes.open_mpi)
    deadline = time.time() + 120
    while not (last_logged(workdir) >= 6 and 4 in complete_steps(workdir / "checkpoints")):
        assert time.time() < deadline and all(host.poll() is None for host in hosts), processes.outputs(hosts, 5)
        time.sleep(0.005)
    hosts[1].send_signal(signal.SIGKILL)
    killed = time.time()
    printed = processes.outputs(hosts, timeout=30)
    assert time.time() - killed < 20
    assert [host.returncode for host in hosts] == [1, -signal.SIGKILL], printed
    message = f"process 1 of 2 (host {socket.gethostname()}) has ended without a word"
    assert message in printed[0] and "Traceback" not in printed[0], printed[0]
    assert "resuming" in run(command, workdir, 2, 2, processes.open_mpi)
    assert losses(workdir) == losses(two)
    assert evaluations(workdir) == evaluations(two)
    for item in ("params", "train"):
        read = [read_item(folder / "checkpoints" / str(STEPS) / item) for folder in (workdir, two)]
        jax.tree.map(np.testing.assert_array_equal, *read)
