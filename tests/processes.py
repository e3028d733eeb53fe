"""Several processes on this machine, as on several hosts, that run a command of fmjax together."""

import os
import pathlib
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence

from fmjax.parallel.clusters import FIRST_PORT, NUM_PORTS

REPOSITORY = pathlib.Path(__file__).parents[1]


def free_port(apart: int = 0) -> int:
    """One that the system gives to nobody by itself, as it gives the ports of outgoing connections.

    Each number `apart` gives another one, though none of them is taken yet.
    """
    # Test processes side by side, whose numbers are neighbours, look in places far from each other.
    for port in range(FIRST_PORT + os.getpid() * 97 % 2048 + 16 * apart, FIRST_PORT + NUM_PORTS):
        with socket.socket() as s:
            try:
                s.bind(("", port))
                return port
            except OSError:
                continue
    raise OSError("no port is free")


def slurm(port: int, process: int, count: int) -> dict[str, str]:
    """What Slurm tells the tasks of a step on this machine, whose job number leads to `port`."""
    job = (port - FIRST_PORT) * pow(31, -1, NUM_PORTS) % NUM_PORTS
    values = {"JOB_ID": job, "STEP_ID": 0, "STEP_NODELIST": "127.0.0.1", "STEP_NUM_TASKS": count, "NTASKS": count}
    values |= {"STEP_TASKS_PER_NODE": count, "PROCID": process, "LOCALID": process, "NODEID": 0}
    return {f"SLURM_{name}": str(value) for name, value in values.items()}


def open_mpi(port: int, process: int, count: int) -> dict[str, str]:
    """What Open MPI 4 tells the processes of a job on this machine, whose number leads to `port`."""
    values = {"SIZE": count, "RANK": process, "LOCAL_SIZE": count, "LOCAL_RANK": process}
    uri = {"OMPI_MCA_orte_hnp_uri": f"{(port - FIRST_PORT) * 4096}.0;tcp://127.0.0.1,10.0.0.1:1"}
    return uri | {f"OMPI_COMM_WORLD_{name}": str(value) for name, value in values.items()}


def start(
    command: str, flags: Sequence[Sequence[str]], devices: int, cache: pathlib.Path, launcher: Callable | None = None,
    folders: Sequence[pathlib.Path] | None = None,
) -> list[subprocess.Popen]:
    """The processes of one command.

    Args:
      command: the module, such as "fmjax.train".
      flags: of each process.
      devices: of each process.
      cache: folder for FMJAX_CACHE.
      launcher: `slurm` or `open_mpi`, whose variables the processes find; None gives them `--coordinator` and so on.
      folders: where each is started; None is the repository for all.
    """
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "FMJAX_CACHE": str(cache)}
    environment["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    port, count, hosts = free_port(), len(flags), []
    for process, own in enumerate(flags):
        together = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={count}", f"--process_id={process}"]
        told = {} if launcher is None else launcher(port, process, count)
        hosts.append(
            subprocess.Popen(
                [sys.executable, "-m", command, *own, *(() if launcher else together)],
                env=environment | told, cwd=folders[process] if folders else REPOSITORY,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )
        )  # fmt: skip
    return hosts


def outputs(hosts: Sequence[subprocess.Popen], timeout: float = 200) -> list[str]:
    """What each process printed, both streams, once all have ended; none outlives this call."""
    try:
        return [host.communicate(timeout=timeout)[0] for host in hosts]
    finally:
        for host in hosts:
            host.kill()


def without_gloo(text: str) -> str:
    """What a process printed besides Gloo's greetings, whose pieces several threads may write in any order."""
    pieces = r"\[Gloo\] Rank | is connected to | peer ranks\. |Expected number of connected peer ranks is : "
    lines = re.sub(pieces, "", text).splitlines(True)
    return "".join(line for line in lines if not re.fullmatch(r"[\d\s]*", line))


def run(command: str, flags: Sequence[Sequence[str]], devices: int, cache: pathlib.Path) -> list[str]:
    """What each process printed; asserts that all ended well. Arguments as in `start`."""
    hosts = start(command, flags, devices, cache)
    printed = outputs(hosts)
    assert [host.returncode for host in hosts] == [0] * len(hosts), printed
    return printed
