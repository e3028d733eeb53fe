"""Several processes on this machine, as on several hosts, that run a command of fmjax together."""

import os
import pathlib
import socket
import subprocess
import sys
from collections.abc import Sequence

REPOSITORY = pathlib.Path(__file__).parents[1]


def free_port() -> int:
    """One that the system gives to nobody by itself, as it gives the ports of outgoing connections."""
    for port in range(61440 + os.getpid() % 2048, 65536):
        with socket.socket() as s:
            try:
                s.bind(("", port))
                return port
            except OSError:
                continue
    raise OSError("no port is free")


def start(command: str, flags: Sequence[Sequence[str]], devices: int, cache: pathlib.Path) -> list[subprocess.Popen]:
    """The processes of one command.

    Args:
      command: the module, such as "fmjax.train".
      flags: of each process.
      devices: of each process.
      cache: folder for FMJAX_CACHE.
    """
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "FMJAX_CACHE": str(cache)}
    environment["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    together = [f"--coordinator=127.0.0.1:{free_port()}", f"--num_processes={len(flags)}"]
    return [
        subprocess.Popen(
            [sys.executable, "-m", command, *own, *together, f"--process_id={process}"],
            env=environment, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for process, own in enumerate(flags)
    ]  # fmt: skip


def outputs(hosts: Sequence[subprocess.Popen], timeout: float = 200) -> list[str]:
    """What each process printed, both streams, once all have ended; none outlives this call."""
    try:
        return [host.communicate(timeout=timeout)[0] for host in hosts]
    finally:
        for host in hosts:
            host.kill()


def run(command: str, flags: Sequence[Sequence[str]], devices: int, cache: pathlib.Path) -> list[str]:
    """What each process printed; asserts that all ended well. Arguments as in `start`."""
    hosts = start(command, flags, devices, cache)
    printed = outputs(hosts)
    assert [host.returncode for host in hosts] == [0] * len(hosts), printed
    return printed
