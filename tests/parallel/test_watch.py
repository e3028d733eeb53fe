"""Real processes that come, stay away, die, fall silent, dawdle or disagree."""

import itertools
import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest

from fmjax.parallel.peer import Peer
from tests.processes import REPOSITORY, free_port, outputs

HOST = socket.gethostname()
ENVIRONMENT = os.environ | {"PYTHONPATH": str(REPOSITORY)}

PROCESS = """
import json, os, signal, sys, time
from fmjax.commands import cli
from fmjax.parallel.clusters import Cluster
from fmjax.parallel.watch import Watch, barrier, watching

address, count, process, does, same = sys.argv[1:]

def waits_for_ever():
    time.sleep(60)

def main(argv):
    watch = Watch(Cluster("test", address, int(count), int(process)), json.loads(same), initialization_timeout=WAIT,
                  heartbeat_timeout=3, barrier_timeout=5, stall_timeout=STALL)
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
            watch.at("step 7")
            if does == "goes on":
                watch.at("step 8")
            time.sleep(60)
        if does in ("stalls", "goes to a barrier", "moves", "meets", "comes after", "takes its time", "lingers"):
            late = 3.5 * int(process) if does == "comes after" else 0.0
            time.sleep(late)
            watch.at("step 7")
            if does == "comes after":
                time.sleep(5.0 - late)
            if does == "goes to a barrier":
                barrier("what one of them does not come to")
            if does in ("stalls", "goes to a barrier"):
                waits_for_ever()
            if does == "takes its time":
                watch.at("the tasks of step 7", limited=False)
            for step in range(8, 22):
                if does in ("moves", "comes after"):
                    watch.at(f"step {step}")
                if does == "meets":
                    barrier(f"before step {step}")
                if does != "lingers":
                    time.sleep(0.5)
        if does == "clogs":
            watch.at("step 7")
            while True:
                print("more than a pipe holds", file=sys.stderr)
        if does in ("trains", "evaluates"):
            watch.at("step 7" if does == "trains" else "batch 1 of the evaluation set 'heldout'")
            waits_for_ever()
        if does == "babbles":
            for peer in watch._peers.values():
                peer.socket.sendall(b'{"place": [1\\n')
            time.sleep(60)
        if does == "watches no longer":
            watch._take = None
            time.sleep(60)
        if does == "goes elsewhere":
            barrier("the end")
        if does == "fails":
            watch.fail("file X is not there", 2)
        for number in range(200):
            barrier(f"number {number}")
        if does == "waits":
            time.sleep(60)
        watch.leave()
    print("left", flush=True)
    if does == "lingers":
        time.sleep(7)

sys.exit(cli.run(main))
"""


def start(*does, count=None, same=None, wait=60, stall=3, apart=0):
    """A process for each of what they do; None is one that does not come."""
    program = PROCESS.replace("WAIT", str(wait)).replace("STALL", str(stall))
    address = f"127.0.0.1:{free_port(apart)}"
    return [
        subprocess.Popen(
            [sys.executable, "-c", program, address, str(count or len(does)), str(number),
             what, same[number] if same else "{}"],
            env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for number, what in enumerate(does) if what is not None
    ]  # fmt: skip


def ends(hosts):
    printed = outputs(hosts, timeout=60)
    return [host.returncode for host in hosts], printed


SCENES = {
    "one does not start": (("works", "works", None), dict(wait=5)),
    "the first does not start": ((None, "works"), dict(wait=2)),
    "all come": (("works", "works", "works"), {}),
    "none moves": (("stalls", "stalls", "stalls"), {}),
    "others do something else": (("trains", "trains", "evaluates"), {}),
    "one is missing at a barrier": (("goes to a barrier", "stalls", "goes to a barrier"), {}),
    "one fails": (("works", "fails", "waits"), {}),
    "two disagree": (("works", "works"), dict(same=['{"a": {"b": 1, "c": 2}}', '{"a": {"b": 1, "c": 3}}'])),
    "the watch of 0 breaks": (("watches no longer", "waits", "waits"), {}),
    "the watch of 1 breaks": (("waits", "watches no longer", "waits"), {}),
    "0 goes elsewhere": (("goes elsewhere", "waits", "waits"), {}),
    "2 goes elsewhere": (("waits", "waits", "goes elsewhere"), {}),
}
"""(What each process does, options of `start`)."""


class Played(NamedTuple):
    codes: list[int]
    printed: list[str]
    seconds: float


def play(does, options, apart) -> Played:
    begin = time.monotonic()
    return Played(*ends(start(*does, **options, apart=apart)), time.monotonic() - begin)


def play_missing(process, does, apart) -> list[str]:
    """What the others of three print where one of this number does this; it asserts that they end."""
    rest = "goes on" if does == "stays behind" else "waits"
    hosts = start(*(does if number == process else rest for number in range(3)), apart=apart)
    begin = time.monotonic()
    try:
        others = [host for number, host in enumerate(hosts) if number != process]
        printed = outputs(others, timeout=60)
        if does in ("dawdles", "stays behind", "babbles"):  # it is told as well
            assert hosts[process].wait(timeout=10) == 1
        assert [host.returncode for host in others] == [1, 1], printed
    finally:
        end(hosts)
    assert time.monotonic() - begin < 20
    return printed


def play_clogged(apart) -> list[int]:
    """How two end of which one hangs in printing."""
    hosts = start("stalls", "clogs", apart=apart)
    try:
        return [host.wait(timeout=45) for host in hosts]
    finally:
        end(hosts)


def play_let_be(apart):
    """Pairs that move or need not, for longer than the time-out: (how each ended, the seconds that took, whether the
    pair without any limit has ended)."""
    does = ("moves", "meets", "comes after", "takes its time", "lingers", "stalls")
    pairs = [start(one, one, stall=0 if one == "stalls" else 3, apart=apart + n) for n, one in enumerate(does)]
    *ending, unlimited = pairs
    try:
        begin = time.monotonic()
        ended = [ends(pair) for pair in ending]
        return ended, time.monotonic() - begin, [host.poll() for host in unlimited]
    finally:
        end(itertools.chain(*pairs))


def end(hosts):
    for host in hosts:
        host.kill()
        host.communicate()


MISSING = {
    "dies": "has ended without a word. What was saved stays, and the same command goes on from there",
    "falls silent": "has not been heard of for 3 s",
    "dawdles": "did not come to 'number 0' within 5 s",
    "stays behind": "did not come to step 8 within 5 s",
    "babbles": "has sent what is no message",
}
"""What the one that is missing does, and what is told of it."""


@pytest.fixture(scope="module")
def played():
    """What became of a scene. They wait for most of their time, so several are played beside each other."""
    apart = itertools.count(2)
    with ThreadPoolExecutor(5) as pool:
        found = {"let be": pool.submit(play_let_be, 40), "clogged": pool.submit(play_clogged, next(apart))}
        found |= {name: pool.submit(play, *scene, next(apart)) for name, scene in SCENES.items()}
        # The first, with which the others speak, and another.
        for one in itertools.product((0, 2), MISSING):
            found[one] = pool.submit(play_missing, *one, next(apart))
        yield lambda name: found[name].result()


def test_processes_that_all_come_leave_together(played):
    codes, printed, _ = played("all come")
    assert codes == [0, 0, 0]
    assert printed == [f"joined {HOST} {HOST} {HOST}\nleft\n"] * 3


@pytest.mark.parametrize("does", MISSING)
def test_the_one_that_is_missing_is_named_by_all_others_which_end(does, played):
    for process in (0, 2):
        for host in played((process, does)):
            told = f"process {process} of 3 (host {HOST}) {MISSING[does]}"
            assert told in host and host.count("\n") == 2, host


def test_processes_of_which_none_moves_are_ended_and_show_where_they_are(played):
    codes, printed, seconds = played("none moves")
    assert codes == [1, 1, 1] and 3 < seconds < 30
    for number, host in enumerate(printed):
        joined, first, *stack, said = host.splitlines()
        assert joined.startswith("joined") and first.startswith("Main thread")
        assert "in waits_for_ever" in stack[-1] and len(stack) < 10, host
        prefix = f"process {number}: " if number else ""
        assert said.startswith(f"{prefix}all 3 processes have been at step 7 for 3 s, and none moves: a device or")
        assert said.endswith("give a larger --stall_timeout, or 0 for no limit") and "What was saved stays" in said


def test_processes_that_move_or_need_not_are_let_be(played):
    """In many places or barriers, after the last has come, at leisure, after the end."""
    ended, seconds, unlimited = played("let be")
    for codes, printed in ended:
        assert codes == [0, 0] and printed == [f"joined {HOST} {HOST}\nleft\n"] * 2
    assert len(ended) == 5 and seconds > 5 and unlimited == [None, None]


def test_one_that_hangs_in_printing_ends_too(played):
    assert played("clogged") == [1, 1]


def test_processes_that_do_not_do_the_same_are_ended(played):
    codes, printed, _ = played("others do something else")
    assert codes == [1, 1, 1]
    told = f"process 0 of 3 (host {HOST}) is at step 7, and process 2 of 3 (host {HOST}) at batch 1 of the evaluation"
    assert all(told in host and "do all have the same command and files?" in host for host in printed), printed


def test_one_that_is_missing_at_a_barrier_is_named_though_nothing_moves(played):
    """The barrier's time-out is the longer one."""
    codes, printed, _ = played("one is missing at a barrier")
    assert codes == [1, 1, 1]
    told = f"process 1 of 3 (host {HOST}) did not come to 'what one of them does not come to' within 5 s"
    assert all(told in host and "Main thread" not in host for host in printed), printed


def test_one_that_does_not_start_is_named(played):
    codes, printed, _ = played("one does not start")
    assert codes == [1, 1]
    absent = f"process 2 of 3 did not start within 5 s; there are: 0 (host {HOST}), 1 (host {HOST})\n"
    assert printed == [absent] * 2
    codes, printed, _ = played("the first does not start")
    assert codes == [1] and "process 0 of 2 did not answer at 127.0.0.1:" in printed[0], printed


def test_an_error_of_one_is_told_by_all(played):
    codes, printed, _ = played("one fails")
    assert codes == [2, 2, 2]
    told = f"process 1 of 3 (host {HOST}): file X is not there\n"
    assert [host.split("\n", 1)[1] for host in printed] == [
        told, "process 1: file X is not there\n", f"process 2: {told}"
    ]  # fmt: skip


def test_a_watch_that_breaks_ends_all(played):
    failed = "the watch of the other processes failed: TypeError: "
    for process in (0, 1):
        codes, printed, _ = played(f"the watch of {process} breaks")
        assert codes == [1, 1, 1]
        assert "Traceback" in printed[process]
        for number, host in enumerate(printed):
            assert (failed if number == process else f"process {process} of 3 (host {HOST}): {failed}") in host


def test_different_barriers_do_not_open_each_other(played):
    for process in (0, 2):
        codes, printed, _ = played(f"{process} goes elsewhere")
        assert codes == [1, 1, 1]
        for host in printed:
            assert f"process {process} of 3 (host {HOST}) " in host and "'number 0'" in host and "'the end'" in host


def test_those_who_come_after_a_refusal_are_told():
    """Process 3 is seconds late, and hears what was wrong with process 1."""
    same = ['{"a": {"b": 1}}', '{"a": {"b": 2}}', '{"a": {"b": 1}}', '{"a": {"b": 1}}']
    hosts = start("works", "works", "works", None, same=same)
    time.sleep(2)
    arguments = list(hosts[0].args)
    arguments[5:7] = ["3", "works"]
    late = subprocess.Popen(arguments, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    begin = time.monotonic()
    codes, printed = ends([*hosts, late])
    assert codes == [2] * 4 and printed == [f"process 1 (host {HOST}) has a.b = 2, process 0 1\n"] * 4
    assert time.monotonic() - begin < 15


def test_nothing_follows_a_message_that_was_sent_in_part():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = Peer(socket.create_connection(listener.getsockname()))
        other, _ = listener.accept()
    peer.socket.settimeout(0.1)
    text = "x" * 20_000_000  # more than the system keeps for a process that does not read
    peer.send(text=text)
    assert peer.problem == "has taken nothing of what it was sent for 0.1 s"
    came = b""
    with other:
        while data := other.recv(1 << 20):
            came += data
            peer.send(text="more")
    assert came and json.dumps({"text": text}).encode().startswith(came)
    assert peer.read() is None
    peer.socket.close()


def test_processes_that_disagree_are_refused(played):
    codes, printed, _ = played("two disagree")
    assert codes == [2, 2]
    assert printed == [f"process 1 (host {HOST}) has a.c = 3, process 0 2\n"] * 2


def test_what_else_connects_is_passed_over():
    """A stranger at the port, and a process that was there before process 0."""
    hosts = start(None, "works", wait=30)
    address = hosts[0].args[3]
    time.sleep(0.5)
    first = subprocess.Popen(
        [*hosts[0].args[:4], "2", "0", *hosts[0].args[6:]], env=ENVIRONMENT,
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
