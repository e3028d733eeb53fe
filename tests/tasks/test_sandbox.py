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
        programs, Limits(timeout=1)
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
    limits = Limits(timeout=10, memory_mb=200, disk_mb=4, output=10_000)
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
    assert run(daemon.format(python=python, wait=100), Limits(timeout=1)).reason == "timed out"
    assert not processes_with("fmjax-daemon-mark")
    # The same where it is stopped from outside, for its output.
    noisy = daemon.format(python=python, wait=0) + "while True: print('x' * 1000)"
    assert run(noisy).reason == "output too long"
    assert not processes_with("fmjax-daemon-mark")


def test_killing_the_parent_kills_nothing_of_ours():
    assert run("import os, signal, time; os.kill(os.getppid(), signal.SIGKILL); time.sleep(0.2)").passed
    assert run("import os, signal; os.kill(-1, signal.SIGKILL)").detail.startswith("ProcessLookupError")
    assert run("import os, signal; os.killpg(0, signal.SIGKILL)").detail == "ended by signal 9"


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
    found = run_many(["print(1)", "import time; time.sleep(9)", "assert False"], Limits(timeout=1), unsafe=True)
    assert [one.reason for one in found] == ["passed", "timed out", "failed"] and found[0].stdout == "1\n"
