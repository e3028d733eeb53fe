"""Two processes, as on two hosts: one run, each reading its own rows."""

import os
import socket
import subprocess
import sys

import pytest
from conftest import REPOSITORY, losses

HOST = """
import sys, jax
address, process = sys.argv[1:3]
jax.distributed.initialize(address, 2, int(process))
from fmjax import cli, train
sys.exit(cli.run(train.main, sys.argv[3:]))
"""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_two_processes_train_as_one(command):
    flags = ["--config.mesh.fsdp=2", "--config.train.steps=8", "--config.optimizer.schedule.warmup_steps=2"]
    code, output = command.run(command.folder / "one_process", *flags, devices=4)
    assert code == 0, output
    workdir = command.folder / "two_processes"
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2", "FMJAX_CACHE": str(command.folder / "cache")}
    environment["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    shared = [f"127.0.0.1:{free_port()}"]
    hosts = [
        subprocess.Popen(
            [sys.executable, "-c", HOST, *shared, str(i), f"--config={command.folder}/config.py", f"--workdir={workdir}", *flags],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for i in range(2)
    ]  # fmt: skip
    outputs = [host.communicate(timeout=200)[0] for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], outputs
    found, expected = losses(workdir), losses(command.folder / "one_process")
    assert sorted(found) == list(range(1, 9))
    assert found == pytest.approx(expected, rel=1e-5)
