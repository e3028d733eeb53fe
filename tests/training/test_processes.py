"""Two processes, as on two hosts: one run, each reading its own rows."""

import pytest
from conftest import losses

from tests import two_processes


def test_two_processes_train_as_one(command):
    flags = ["--config.mesh.fsdp=2", "--config.train.steps=8", "--config.optimizer.schedule.warmup_steps=2"]
    code, output = command.run(command.folder / "one_process", *flags, devices=4)
    assert code == 0, output
    workdir = command.folder / "two_processes"
    flags = [f"--config={command.folder}/config.py", f"--workdir={workdir}", *flags]
    two_processes.run("fmjax.train", [flags, flags], devices=2, cache=command.folder / "cache")
    found, expected = losses(workdir), losses(command.folder / "one_process")
    assert sorted(found) == list(range(1, 9))
    assert found == pytest.approx(expected, rel=1e-5)
