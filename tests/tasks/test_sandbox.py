"""The sandbox: programs that mean harm do none, and leave nothing behind."""

import os
import pathlib
import time

import pytest

from fmjax.errors import InputError
from fmjax.tasks import sandbox
from fmjax.tasks.sandbox import Limits, run, run_many


def has_sandbox():
    try:
        return run("pass", Limits(timeout=30)).passed
    except InputError:
        return False


pytestmark = pytest.mark.skipif(not has_sandbox(), reason="this machine gives no namespaces to this user")


def processes_with(mark: str) -> list[str]:
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if mark.encode() in path.read_bytes():
                found.append(str(path))
        except OSError:
            continue
    return found


def test_outcomes_and_their_details():
    programs = [
        "print('out'); import sys; print('err', file=sys.stderr)",
        "assert 1 == 2, 'not so'",
        "def f(:",
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "import os; os.kill(os.getpid(), 11)",
        "while True: pass",
        "import time; time.sleep(1000)",
        "x = '\\ud800'",
    ]
    passed, failed, syntax, leaves, leaves_at_once, crashed, spins, sleeps, surrogate = run_many(
        programs, Limits(timeout=1, wall_timeout=2)
    )
    assert passed.passed and (passed.stdout, passed.stderr, passed.exit_code) == ("out\n", "err\n", 0)
    assert (failed.reason, failed.detail, failed.exit_code) == ("failed", "AssertionError: not so", 1)
    assert syntax.reason == "failed" and syntax.detail.startswith("SyntaxError")
    assert (
        (leaves.reason, leaves.detail)
        == ("failed", "it exited before its end")
        == (
            leaves_at_once.reason,
            leaves_at_once.detail,
        )
    )
    assert (crashed.reason, crashed.detail) == ("failed", "ended by signal 11")
    assert spins.reason == sleeps.reason == "timed out"
    assert surrogate.passed


def test_more_processes_than_allowed_are_not_made():
    bomb = """
import os, time
made = 0
try:
    while True:
        if os.fork() == 0:
            time.sleep(9)
        made += 1
except BlockingIOError:
    print(made)
"""
    counts = run(bomb, Limits(processes=12))
    assert counts.passed and 5 <= int(counts.stdout) <= 12
    # The bomb that never gives up, whose children fork too.
    begin = time.monotonic()
    out = run("import os\nwhile True:\n  try: os.fork()\n  except OSError: pass  # fmjax-bomb", Limits(timeout=1))
    assert out.reason == "timed out" and time.monotonic() - begin < 10


def test_memory_output_and_disk_end():
    limits = Limits(timeout=10, memory_mb=200, disk_mb=4, output=10_000, wall_timeout=20)
    at_once, shared, endless, disk, many_files = run_many(
        [
            "x = bytearray(10**9)",
            # Each process stays within its own limit; all together do not.
            "import os, time\nfor _ in range(6): os.fork() or (x := b'1' * (60 * 2**20)) and time.sleep(9)\n"
            "time.sleep(9)",
            "while True: print('x' * 1000)",
            "f = open('big', 'wb')\nwhile True: f.write(b'1' * 2**20)",
            "for i in range(10**6): open(str(i), 'w').close()",
        ],
        limits,
    )
    assert at_once.reason == shared.reason == "out of memory"
    assert endless.reason == "output too long" and len(endless.stdout) <= 10_000
    assert disk.reason == many_files.reason == "failed"
    assert "File too large" in disk.detail and "No space left" in many_files.detail


def test_memory_that_processes_share_is_counted_once_and_the_uncountable_refused():
    """Pages that processes share were once counted for none of them; forks with copies still to be made, for each."""
    shares = """
import ctypes, mmap, os, time
ctypes.CDLL(None).prctl(4, {dumpable})
def hold(name):
    with open(name, "a+b") as file:
        file.truncate(60 * 2**20)
        shared = mmap.mmap(file.fileno(), 0)
    for place in range(0, len(shared), 4096):
        shared[place] = 1
    time.sleep({seconds})
for number in range(5):
    if os.fork() == 0:
        hold(f"big{{number % {files}}}")
        os._exit(0)
time.sleep({seconds} / 2)
"""
    copies = "import os, time\nx = b'1' * (60 * 2**20)\nfor _ in '12345': os.fork() or time.sleep(0.4) or os._exit(0)\n"
    # Without a file: it is in use until its last page is unmapped, whatever of it any process still shows.
    anonymous = """
import mmap, os
def fill():
    m = mmap.mmap(-1, 150 * 2**20)
    for place in range(0, len(m), 4096):
        m[place] = 1
codes = []
for _ in range(6):
    if os.fork() == 0:
        try:
            fill()
        except PermissionError:
            os._exit(7)
        os._exit(0)
    codes.append(os.waitstatus_to_exitcode(os.wait()[1]))
assert codes == [7] * 6, codes
"""
    much, hidden, little, copied, refused = run_many(
        [
            shares.format(dumpable=1, files=5, seconds=9),
            shares.format(dumpable=0, files=5, seconds=9),
            shares.format(dumpable=1, files=1, seconds=0.6),
            copies + "time.sleep(0.2)",
            anonymous,
        ],
        Limits(timeout=10, memory_mb=200, disk_mb=300),
    )
    assert much.reason == hidden.reason == "out of memory"
    assert little.passed and copied.passed and refused.passed, (little, copied, refused)


def test_locks_and_shared_values_of_correct_programs_work():
    program = """
import multiprocessing
from multiprocessing.shared_memory import SharedMemory
def add(lock, value):
    with lock:
        value.value += 1
lock, value = multiprocessing.Lock(), multiprocessing.Value("i", 0)
processes = [multiprocessing.Process(target=add, args=(lock, value)) for _ in range(3)]
for process in processes: process.start()
for process in processes: process.join()
assert value.value == 3
block = SharedMemory(create=True, size=1000)
block.close()
block.unlink()
open("/dev/shm/here", "wb").write(b"1" * 10**6)
"""
    assert run(program, Limits(disk_mb=2)).passed
    assert "No space left" in run(program.replace("10**6", "3 * 10**6"), Limits(disk_mb=2)).detail
    assert run("import os; assert os.listdir('/dev/shm') == []").passed


def test_time_is_that_of_the_processors_of_all_processes_together():
    sleeper, spinner, forks = run_many(
        [
            "import time; time.sleep(0.8)",
            "while True: pass",
            # Each stays within its own limit; all together do not, nor with those that have ended.
            "import os, time\ndef spin():\n    while time.process_time() < 0.2: pass\n"
            "for _ in range(8):\n    if os.fork() == 0: spin(); os._exit(0)\n    os.wait()",
        ],
        Limits(timeout=0.5, wall_timeout=30),
    )
    assert sleeper.passed and spinner.reason == forks.reason == "timed out"
    begin = time.monotonic()
    assert run("import time; time.sleep(1000)", Limits(wall_timeout=0.5)).reason == "timed out"
    assert time.monotonic() - begin < 10
    assert Limits(timeout=2).wall_seconds == 20


def test_a_program_that_timed_out_runs_once_more_alone(monkeypatch):
    import threading

    running, lock, tries = [0], threading.Lock(), {}

    def fake(program, limits, unsafe):
        with lock:
            running[0] += 1
            tries[program] = tries.get(program, 0) + 1
        time.sleep(0.05)
        with lock:
            alone = running[0] == 1
            running[0] -= 1
        slow = program == "never" or (program == "busy" and tries[program] == 1)
        assert alone or tries[program] == 1
        return sandbox.Outcome("timed out" if slow else "passed", "", 0, "", "")

    monkeypatch.setattr(sandbox, "run", fake)
    found = run_many(["busy", "never", "quick", "busy"])
    assert [one.reason for one in found] == ["passed", "timed out", "passed", "passed"]
    assert tries == {"busy": 2, "never": 2, "quick": 1}


def test_an_end_is_not_forged_by_what_every_program_can_know():
    forged = run("import os; os.write(3, b'done'); os._exit(0)")
    everywhere = run(
        "import os\nfor fd in range(64):\n    try: os.write(fd, b'done')\n    except OSError: pass\nos._exit(0)"
    )
    assert not forged.passed and (everywhere.reason, everywhere.detail) == ("failed", "it exited before its end")
    # Nothing of it is among a program's names, on its stdin or in its arguments.
    names = "{'__name__', '__builtins__', 'sys'}"
    assert run(f"import sys; assert sys.stdin.read() == '' and set(globals()) <= {names}").passed


@pytest.mark.parametrize(
    "attack, error",
    [
        ("import socket; socket.create_connection(('127.0.0.1', {port}), 1)", "PermissionError"),
        ("import ctypes; l = ctypes.CDLL(None, use_errno=True)\nassert l.socket(40, 1, 0) >= 0", "AssertionError"),
        ("import urllib.request as u; u.urlopen('http://127.0.0.1:{port}')", "urllib.error.URLError"),
        ("import os; os.remove('{victim}')", "FileNotFoundError"),
        ("import os; os.remove(os.__file__)", "OSError: [Errno 30]"),
        ("open('/usr/written', 'w')", "OSError: [Errno 30]"),
        ("open('/written', 'w')", "OSError: [Errno 30]"),
        ("open('/proc/sys/kernel/hostname', 'w')", "FileNotFoundError"),
        ("open('/proc/1/environ')", "FileNotFoundError"),
        ("import os; os.unshare(0x10000000) if hasattr(os, 'unshare') else 1/0", ("PermissionError", "ZeroDivision")),
        ("import ctypes; assert not ctypes.CDLL(None).mount(b'proc', b'/tmp', b'proc', 0, None)", "AssertionError"),
        ("import ctypes; assert ctypes.CDLL(None).memfd_create(b'x', 0) > 0", "AssertionError"),
        ("import os; os.setuid(0)", "OSError: [Errno 22]"),
        ("import os; os.kill({pid}, 9)", ("ProcessLookupError", "OverflowError")),
    ],
)
def test_what_reaches_outside_is_refused(tmp_path, attack, error):
    import socket

    victim = tmp_path / "victim"
    victim.write_text("here")
    with socket.create_server(("127.0.0.1", 0)) as server:
        attack = attack.replace("{victim}", str(victim)).replace("{pid}", str(os.getpid()))
        found = run(attack.replace("{port}", str(server.getsockname()[1])))
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert found.reason == "failed" and found.detail.startswith(error), found
    assert victim.read_text() == "here"


def test_deleting_everything_deletes_nothing(tmp_path):
    marker = pathlib.Path("/tmp") / f"fmjax-{os.getpid()}"
    marker.write_text("here")
    program = (
        "import json, os, shutil\n"
        "for name in ('/dev', '/etc', '/lib64', '/sandbox', json.__path__[0]):\n"
        "    shutil.rmtree(name, ignore_errors=True)\n"
        f"open('/tmp/{marker.name}', 'w').write('gone')\nprint(os.environ.get('PATH'), os.listdir('/tmp'))"
    )
    try:
        found = run(program)
        assert found.passed and found.stdout == f"/usr/bin:/bin ['{marker.name}']\n"
        assert marker.read_text() == "here" and pathlib.Path(os.__file__).exists()
        assert run("import os; assert os.listdir('.') == [], 'the last program left its files'").passed
    finally:
        marker.unlink()


def test_nothing_is_left_running():
    daemon = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for fd in (0, 1, 2): os.close(fd)
        os.execv({python!r}, ["fmjax-daemon-mark", "-S", "-c", "import time; time.sleep(100)"])
    os._exit(0)
time.sleep({wait})
"""
    import sys

    python = os.path.realpath(sys.executable)
    assert run(daemon.format(python=python, wait=0.3)).passed
    assert not processes_with("fmjax-daemon-mark")
    assert run(daemon.format(python=python, wait=100), Limits(wall_timeout=1)).reason == "timed out"
    assert not processes_with("fmjax-daemon-mark")
    # The same where it is stopped from outside, for its output.
    noisy = daemon.format(python=python, wait=0) + "while True: print('x' * 1000)"
    assert run(noisy).reason == "output too long"
    assert not processes_with("fmjax-daemon-mark")


def test_killing_the_parent_kills_nothing_of_ours():
    assert run("import os, signal, time; os.kill(os.getppid(), signal.SIGKILL); time.sleep(0.2)").passed
    assert run("import os, signal; os.kill(-1, signal.SIGKILL)").detail.startswith("ProcessLookupError")
    assert run("import os, signal; os.killpg(0, signal.SIGKILL)").detail == "ended by signal 9"


def test_signals_to_what_watches_it_change_nothing():
    assert run(
        "import os\nfor number in range(1, 65):\n    try: os.kill(1, number)\n    except OSError: pass\n"
        "import time; time.sleep(0.2)"
    ).passed
    # Without a sandbox the watcher is an ordinary process. What is killed there is one sample, not the evaluation.
    found = run("import os, time; os.kill(os.getppid(), 9); time.sleep(0.2)", unsafe=True)
    assert (found.reason, found.detail) == ("failed", "what watched it was killed")


def test_without_a_sandbox_code_is_refused_unless_told_to(monkeypatch, tmp_path):
    monkeypatch.setattr(sandbox, "INSIDE", tmp_path / "broken.py")
    sandbox.INSIDE.write_text('import os, sys; os.write(int(sys.argv[1]), b\'{"setup": "unshare: not permitted"}\')')
    monkeypatch.delenv("FMJAX_UNSAFE_CODE", raising=False)
    with pytest.raises(InputError, match="no sandbox .* unshare: not permitted.*FMJAX_UNSAFE_CODE=1"):
        sandbox.choose_unsafe()
    monkeypatch.setenv("FMJAX_UNSAFE_CODE", "1")
    assert sandbox.choose_unsafe() is True
    monkeypatch.undo()
    assert sandbox.choose_unsafe() is False
    found = run_many(["print(1)", "import time; time.sleep(9)", "assert False"], Limits(wall_timeout=1), unsafe=True)
    assert [one.reason for one in found] == ["passed", "timed out", "failed"] and found[0].stdout == "1\n"
