"""Runs Python programs that nobody has read, such as a model writes, without letting them do harm.

A program gets namespaces of its own (Linux 5.14 or newer): no network, none of the machine's processes, no files but
interpreter and libraries, read-only, and an empty folder in memory, which vanishes with it. Its time, memory, output,
files and processes are limited, and whatever it leaves running is killed. Memory shared without a file is refused
(`mmap.mmap(-1, n)`); `multiprocessing` shares through small files. `sandbox_inside` is the other side.

What is not excluded: a program shares its interpreter with the tests at its end. One that means to can make these pass
without doing what they ask: replace the functions that they call, or walk the interpreter's frames to the word that
says it ran to its end and write that to every descriptor. A score is honest where programs do not look for it.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from fmjax.errors import InputError

INSIDE = pathlib.Path(__file__).with_name("sandbox_inside.py")
GRACE = 30.0
"""Seconds beyond a program's own that starting and ending it may take on a busy machine."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a program may use.

    Attributes:
      timeout: seconds of processor time, of all its processes together: the same on an idle machine as on a busy one.
      memory_mb: MiB of memory, of each process's address space as of all processes together.
      disk_mb: MiB in its folder, and as many in /dev/shm.
      output: bytes on stdout and stderr together.
      processes: processes and threads at a time.
      open_files: of each process.
      wall_timeout: seconds from its start to its end, for programs that wait; None is ten times `timeout`.
    """

    timeout: float = 3.0
    memory_mb: int = 512
    disk_mb: int = 16
    output: int = 100_000
    processes: int = 16
    open_files: int = 64
    wall_timeout: float | None = None

    @property
    def wall_seconds(self) -> float:
        return 10 * self.timeout if self.wall_timeout is None else self.wall_timeout


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a program.

    Attributes:
      reason: "passed" (it ran to its end), "failed", "timed out", "out of memory", or "output too long".
      detail: of a failure, the last line of the traceback, or what ended the program; otherwise "".
      exit_code: of the program, negative for a signal; None where it was stopped from outside.
      stdout, stderr: what it wrote, up to the limit.
    """

    reason: str
    detail: str
    exit_code: int | None
    stdout: str
    stderr: str

    @property
    def passed(self) -> bool:
        return self.reason == "passed"


def run(program: str, limits: Limits = Limits(), *, unsafe: bool = False) -> Outcome:
    """Runs a Python program (standard library only) with nothing on its stdin.

    A program passes where it runs to its end: `exit()` before that, even with 0, is a failure.

    Args:
      unsafe: run it as an ordinary process of this user, in a temporary folder, with the limits on time, output, files
        and address space alone, where there is no sandbox.

    Raises: InputError where there is no sandbox, saying what is missing.
    """
    if not unsafe:
        return _run(program, limits, None)
    with tempfile.TemporaryDirectory(prefix="fmjax-code-") as folder:
        pathlib.Path(folder, "program.py").write_text(program, encoding="utf-8", errors="surrogatepass")
        return _run(program, limits, folder)


def run_many(programs: Sequence[str], limits: Limits = Limits(), *, unsafe: bool = False) -> list[Outcome]:
    """Outcomes of programs in their order; equal programs run once.

    As many at a time as this process may use processors. One that ran out of time runs once more, alone.
    """
    different = list(dict.fromkeys(programs))
    with ThreadPoolExecutor(max(1, min(len(different), _num_processors()))) as pool:
        found = dict(zip(different, pool.map(lambda one: run(one, limits, unsafe=unsafe), different)))
    for program, outcome in found.items():
        if outcome.reason == "timed out" and len(different) > 1:
            found[program] = run(program, limits, unsafe=unsafe)
    return [found[program] for program in programs]


def _num_processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def unsafe_allowed() -> bool:
    """Whether the variable FMJAX_UNSAFE_CODE is 1: code may run without a sandbox where there is none."""
    return os.environ.get("FMJAX_UNSAFE_CODE") == "1"


def choose_unsafe() -> bool:
    """False where the sandbox works, True where it does not and FMJAX_UNSAFE_CODE=1.

    Raises InputError where it does not and nothing allows to go without: before a model has computed anything.
    """
    try:
        found = run("pass", Limits(timeout=GRACE))
        if not found.passed:
            raise InputError(_no_sandbox(f"an empty program {found.reason} in it: {found.detail}"))
    except InputError:
        if not unsafe_allowed():
            raise
        return True
    return False


def _run(program: str, limits: Limits, folder: str | None) -> Outcome:
    if sys.platform != "linux":
        raise InputError(_no_sandbox(f"it takes Linux, and this is {sys.platform}"))
    settings = dataclasses.asdict(limits) | {"isolated": folder is None, "folder": folder}
    settings["wall_timeout"] = limits.wall_seconds
    # The interpreter itself, not a virtual environment's link to it: packages are not for the program.
    python = os.path.realpath(sys.executable)
    settings["readable"] = [sys.base_prefix, sys.base_exec_prefix, os.path.dirname(os.path.dirname(python))]
    if folder is None:
        settings["program"] = program
    read, write = os.pipe()
    with os.fdopen(read, "rb") as status:
        try:
            process = subprocess.Popen(
                [python, "-S", "-I", str(INSIDE), str(write)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=[write],
                cwd=folder or "/",
                env={},
            )
        finally:
            os.close(write)
        with process:
            try:
                stopped, out, err, said = _talk(process, status, json.dumps(settings).encode(), limits)
                if not stopped:
                    process.wait(GRACE)
            finally:
                process.terminate()
    stdout, stderr = (part.decode(errors="replace") for part in (out, err))
    if stopped:
        return Outcome(stopped, "", None, stdout, stderr)
    found = {}
    for line in said.splitlines():
        found |= json.loads(line)
    if "setup" in found or not found:
        raise InputError(_no_sandbox(found.get("setup") or stderr.strip() or "it ended without an answer"))
    return _outcome(found, stdout, stderr)


def _talk(process, status, given: bytes, limits: Limits) -> tuple[str, bytes, bytes, bytes]:
    """Gives the settings and reads to the end: (why it was stopped or "", stdout, stderr, what the watcher said)."""
    found = {status: b"", process.stdout: b"", process.stderr: b""}
    end = time.monotonic() + limits.wall_seconds + GRACE
    with contextlib.suppress(BrokenPipeError):  # it says on stderr why it ended
        process.stdin.write(given)
        process.stdin.close()
    with selectors.DefaultSelector() as selector:
        for pipe in found:
            selector.register(pipe, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select(max(0.0, end - time.monotonic())):
                data = os.read(key.fd, 65536)
                found[key.fileobj] += data
                if not data:
                    selector.unregister(key.fileobj)
            out, err = found[process.stdout], found[process.stderr]
            if len(out) + len(err) > limits.output:
                return "output too long", out[: limits.output], err[: max(0, limits.output - len(out))], b""
            if time.monotonic() > end:
                return "timed out", out, err, b""
    return "", out, err, found[status]


def _outcome(found: dict, stdout: str, stderr: str) -> Outcome:
    lines = stderr.strip().splitlines() or [""]
    if reason := found.get("reason"):
        return Outcome(reason, "", None, stdout, stderr)
    if "code" not in found:
        return Outcome("failed", "what watched it was killed", None, stdout, stderr)
    code = found["code"]
    if code == 0 and found["done"]:
        return Outcome("passed", "", 0, stdout, stderr)
    if code == 0:
        return Outcome("failed", "it exited before its end", 0, stdout, stderr)
    if lines[-1].startswith("MemoryError"):
        return Outcome("out of memory", lines[-1], code, stdout, stderr)
    if code == -24:  # SIGXCPU
        return Outcome("timed out", "", code, stdout, stderr)
    return Outcome("failed", f"ended by signal {-code}" if code < 0 else lines[-1], code, stdout, stderr)


def _no_sandbox(why: str) -> str:
    return (
        f"there is no sandbox to run a model's code in: {why}; it takes Linux 5.14 or newer that lets this user make "
        "namespaces (in a container: run it with --privileged, or allow unshare and mount). To run the code without "
        "one, which may do anything that you may do on this machine, set FMJAX_UNSAFE_CODE=1"
    )
