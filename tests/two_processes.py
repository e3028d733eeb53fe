"""Two processes on this machine, as on two hosts, that run a command of fmjax together."""

import os
import pathlib
import socket
import subprocess
import sys
from collections.abc import Sequence

REPOSITORY = pathlib.Path(__file__).parents[1]

HOST = """
import importlib, sys, jax
address, process, name = sys.argv[1:4]
jax.distributed.initialize(address, 2, int(process))
from fmjax import cli
sys.exit(cli.run(importlib.import_module(name).main, sys.argv[4:]))
"""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def run(command: str, flags: Sequence[Sequence[str]], devices: int, cache: pathlib.Path) -> list[str]:
    """What each process printed, both streams; asserts that both ended well.

    Args:
      command: the module, such as "fmjax.train".
      flags: of each process.
      devices: of each process.
      cache: folder for FMJAX_CACHE.
    """
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "FMJAX_CACHE": str(cache)}
    environment["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    address = f"127.0.0.1:{free_port()}"
    hosts = [
        subprocess.Popen(
            [sys.executable, "-c", HOST, address, str(process), command, *own],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for process, own in enumerate(flags)
    ]  # fmt: skip
    try:
        outputs = [host.communicate(timeout=200)[0] for host in hosts]
    finally:
        for host in hosts:
            host.kill()
    assert [host.returncode for host in hosts] == [0, 0], outputs
    return outputs
