"""Real processes that come, stay away, die, fall silent, dawdle or disagree."""

import os
import socket
import subprocess
import sys
import time

import pytest

from tests.processes import REPOSITORY, free_port, outputs

HOST = socket.gethostname()

PROCESS = """
import json, os, signal, sys, time
from fmjax import cli
from fmjax.parallel.clusters import Cluster
from fmjax.parallel.watch import Watch, barrier, watching

address, count, process, does, same = sys.argv[1:]

def main(argv):
    watch = Watch(Cluster("test", address, int(count), int(process)), json.loads(same), initialization_timeout=WAIT,
                  heartbeat_timeout=3, barrier_timeout=5)
    print("joined", *watch.hosts, flush=True)
    with watching(watch):
        barrier("first")
        if does == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if does == "falls silent":
            os.kill(os.getpid(), signal.SIGSTOP)
        if does == "dawdles":
            time.sleep(60)
        if does in ("goes on", "stays behind"):
            watch.at_step(7 + (does == "goes on"))
            time.sleep(60)
        if does == "fails":
            watch.fail("file X is not there", 2)
        for number in range(200):
            barrier(f"number {number}")
        if does == "waits":
            time.sleep(60)
        watch.leave()
    print("left")

sys.exit(cli.run(main))
"""


def start(*does, count=None, same=None, wait=60):
    """A process for each of what they do; None is one that does not come."""
    address = f"127.0.0.1:{free_port()}"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS.replace("WAIT", str(wait)), address, str(count or len(does)), str(number),
             what, same[number] if same else "{}"],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for number, what in enumerate(does) if what is not None
    ]  # fmt: skip


def ends(hosts):
    printed = outputs(hosts, timeout=60)
    return [host.returncode for host in hosts], printed


def test_processes_that_all_come_leave_together():
    codes, printed = ends(start("works", "works", "works"))
    assert codes == [0, 0, 0]
    assert printed == [f"joined {HOST} {HOST} {HOST}\nleft\n"] * 3


@pytest.mark.parametrize(
    "does, message",
    [
        ("dies", "has ended without a word. What was saved stays, and the same command goes on from there"),
        ("falls silent", "has not been heard of for 3 s"),
        ("dawdles", "did not come to 'number 0' within 5 s"),
        ("stays behind", "did not come to step 8 within 5 s"),
    ],
)
@pytest.mark.parametrize("process", [0, 2])
def test_the_one_that_is_missing_is_named_by_all_others_which_end(does, message, process):
    rest = "goes on" if does == "stays behind" else "waits"
    hosts = start(*(does if number == process else rest for number in range(3)))
    begin = time.monotonic()
    others = [host for number, host in enumerate(hosts) if number != process]
    try:
        printed = outputs(others, timeout=60)
        if does in ("dawdles", "stays behind"):  # it is told as well
            assert hosts[process].wait(timeout=10) == 1
    finally:
        hosts[process].kill()
        hosts[process].communicate()
    assert time.monotonic() - begin < 20
    assert [host.returncode for host in others] == [1, 1], printed
    for host in printed:
        assert f"process {process} of 3 (host {HOST}) {message}" in host and host.count("\n") == 2, host


def test_one_that_does_not_start_is_named():
    codes, printed = ends(start("works", "works", None, wait=3))
    assert codes == [1, 1]
    absent = f"process 2 of 3 did not start within 3 s; there are: 0 (host {HOST}), 1 (host {HOST})\n"
    assert printed == [absent] * 2
    codes, printed = ends(start(None, "works", wait=2))
    assert codes == [1] and "process 0 of 2 did not answer at 127.0.0.1:" in printed[0], printed


def test_an_error_of_one_is_told_by_all():
    codes, printed = ends(start("works", "fails", "waits"))
    assert codes == [2, 2, 2]
    told = f"process 1 of 3 (host {HOST}): file X is not there\n"
    assert [host.split("\n", 1)[1] for host in printed] == [
        told, "process 1: file X is not there\n", f"process 2: {told}"
    ]  # fmt: skip


def test_processes_that_disagree_are_refused():
    codes, printed = ends(start("works", "works", same=['{"a": {"b": 1, "c": 2}}', '{"a": {"b": 1, "c": 3}}']))
    assert codes == [2, 2]
    assert printed == [f"process 1 (host {HOST}) has a.c = 3, process 0 2\n"] * 2


def test_what_else_connects_is_passed_over():
    """A stranger at the port, and a process that was there before process 0."""
    hosts = start(None, "works", wait=30)
    address = hosts[0].args[3]
    time.sleep(0.5)
    first = subprocess.Popen(
        [*hosts[0].args[:4], "2", "0", *hosts[0].args[6:]], env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    host, port = address.split(":")
    for _ in range(50):
        try:
            with socket.create_connection((host, int(port)), timeout=1) as stranger:
                stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
            break
        except OSError:
            time.sleep(0.02)
    codes, printed = ends([first, *hosts])
    assert codes == [0, 0], printed
