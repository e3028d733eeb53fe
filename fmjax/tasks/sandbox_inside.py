"""The inside of `fmjax.tasks.sandbox`: a script that a bare interpreter runs, once for each program.

Three processes. This one makes the namespaces. Its child is the first process in them, the watcher: it builds the file
system, gives up its rights, and waits for the program's end, its time or its memory. The grandchild is limited and
becomes the program. When the watcher ends, the kernel kills everything that is left in its process namespace.

Usage: script STATUS_FD, with the settings as JSON on stdin. To STATUS_FD go lines of JSON: {"setup": why} where there
is no sandbox; otherwise {"started": true} before the program begins, and its outcome.
"""

import contextlib
import ctypes
import fcntl
import json
import math
import os
import platform
import resource
import signal
import struct
import sys
import time

NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 8, 0x1000, 0x4000, 0x40000
MOUNT_RDONLY, MOUNT_NOSUID, RECURSIVE, AT_FDCWD, DETACH, MOUNT_SETATTR = 1, 2, 0x8000, -100, 2, 442
SET_PDEATHSIG, SET_DUMPABLE, SET_SECCOMP, SET_NO_NEW_PRIVS = 1, 4, 22, 38
NOBODY, INSIDE_ID = 65534, 1000

LIBRARIES = ("/usr", "/lib", "/lib32", "/lib64", "/nix/store", "/etc/ld.so.cache")
DEVICES = ("/dev/null", "/dev/full", "/dev/random", "/dev/urandom")  # not zero: mapped, it is what MMAP refuses
PROGRAM, FOLDER, SHARED = "/program.py", "/sandbox", "/dev/shm"

# System calls that a program is refused, by their numbers on x86_64 and aarch64: sockets, which reach beyond a network
# namespace (vsock); memory that no limit of a process counts; what only attacks on the kernel or other processes need.
REFUSED = {
    "socket": (41, 198), "shmget": (29, 194), "msgget": (68, 186), "mq_open": (240, 180), "memfd_create": (319, 279),
    "memfd_secret": (447, 447), "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "mount": (165, 40), "umount2": (166, 39), "unshare": (272, 97), "setns": (308, 268), "bpf": (321, 280),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219), "perf_event_open": (298, 241),
    "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
}  # fmt: skip
# And memory shared without a file, which stays in use after it is unmapped in part, where no process shows it.
MMAP, SHARED_ANONYMOUS = (9, 222), 0x21
# Of a machine: column of REFUSED, audit number of the architecture, number of pivot_root.
MACHINES = {"x86_64": (0, 0xC000003E, 155), "aarch64": (1, 0xC00000B7, 41)}

# The word at the end tells an end of the program from `exit()` halfway. It and the descriptor that it goes to come on
# stdin, are others in every run, and are nowhere in the program's own names.
RUNNER = """
def run(path):
    from os import close, dup2, open as open_file, read, write
    done, word = read(0, 100).split()
    null = open_file("/dev/null", 0)
    dup2(null, 0)
    close(null)
    with open(path, encoding="utf-8") as file:
        source = file.read()
    exec(compile(source, path, "exec"), {{"__name__": "__main__"}})
    write(int(done), word)
run({path!r})
"""

libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    status = int(sys.argv[1])
    os.set_inheritable(status, False)
    settings = json.load(sys.stdin)
    call("prctl", SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if not settings["isolated"]:
        answer(status, watch(settings, settings["folder"], None, status))
        return
    ids = os.getuid(), os.getgid()
    try:
        if platform.machine() not in MACHINES:
            raise OSError(f"no filter of system calls for {platform.machine()}")
        call("unshare", NEWNS | NEWUTS | NEWIPC | NEWPID | NEWNET | (NEWUSER if ids[0] else 0))
        if ids[0]:
            map_ids(os.open("/proc", os.O_RDONLY), *ids)
    except OSError as error:
        answer(status, {"setup": str(error)})
        return
    signal.signal(signal.SIGTERM, lambda *_: os.kill(watcher, signal.SIGKILL))
    watcher = os.fork()
    if watcher == 0:
        # The first process of a namespace gets from within it only the signals that it has a handler for: none.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        try:
            answer(status, isolated(settings, not ids[0], status))
        except OSError as error:
            answer(status, {"setup": str(error)})
        os._exit(0)
    os.close(status)
    os.waitpid(watcher, 0)  # returns when nothing in the namespace lives


def call(name: str, *arguments) -> int:
    """A function of the C library. Raises OSError naming it."""
    found = getattr(libc, name)(*(a.encode() if isinstance(a, str) else a for a in arguments))
    if found < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return found


def answer(status: int, found: dict) -> None:
    os.write(status, json.dumps(found).encode() + b"\n")


def isolated(settings: dict, is_root: bool, status: int) -> dict:
    """The watcher's work, from the first process of the new namespaces on."""
    call("prctl", SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    proc = make_file_system(settings)
    if is_root:
        # Root is exempt from the limit on processes, and so is whoever may become root.
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        # Both were lost with the change of user.
        call("prctl", SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        call("prctl", SET_DUMPABLE, 1, 0, 0, 0)
        call("unshare", NEWUSER)
        map_ids(proc, NOBODY, NOBODY)
    write_at(proc, "sys/user/max_user_namespaces", "0")
    call("prctl", SET_DUMPABLE, 0, 0, 0, 0)
    os.chdir(FOLDER)
    return watch(settings, FOLDER, proc, status)


def map_ids(proc: int, user: int, group: int) -> None:
    """Gives the new user namespace one user and one group, those that this process has outside."""
    write_at(proc, "self/setgroups", "deny")
    write_at(proc, "self/uid_map", f"{INSIDE_ID} {user} 1")
    write_at(proc, "self/gid_map", f"{INSIDE_ID} {group} 1")


def write_at(folder: int, name: str, text: str) -> None:
    fd = os.open(name, os.O_WRONLY, dir_fd=folder)
    os.write(fd, text.encode())
    os.close(fd)


def make_file_system(settings: dict) -> int:
    """Nothing but interpreter, libraries and program to read, and two small folders in memory to write: the program's
    own, and that of the C library's semaphores.

    Returns: an open /proc of the new namespace, which the program itself does not see.
    """
    call("mount", None, "/", None, MS_REC | MS_PRIVATE, None)
    call("mount", "tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=16m")
    os.mkdir("/tmp/old")
    call("syscall", MACHINES[platform.machine()][2], b"/tmp", b"/tmp/old")
    os.chdir("/")
    for path in dict.fromkeys((*LIBRARIES, *settings["readable"])):
        if os.path.exists(f"/old{path}") and not os.path.exists(path):
            bind(path)
            set_mount(path, MOUNT_RDONLY | MOUNT_NOSUID, RECURSIVE)
    for path in DEVICES:
        bind(path)
    with open(PROGRAM, "w", encoding="utf-8", errors="surrogatepass") as file:
        file.write(settings["program"])
    for folder in ("/proc", FOLDER, SHARED):
        os.mkdir(folder)
    if not os.path.exists("/tmp"):  # an interpreter may lie there
        os.symlink(FOLDER, "/tmp")
    for folder in (FOLDER, SHARED):
        size = f"mode=777,size={settings['disk_mb']}m,nr_inodes=1k"
        call("mount", "tmpfs", folder, "tmpfs", MS_NOSUID | MS_NODEV, size)
    # Before the old one is gone: a user namespace may mount /proc only where it sees one already.
    call("mount", "proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, None)
    proc = os.open("/proc", os.O_RDONLY)
    call("umount2", "/proc", DETACH)
    call("umount2", "/old", DETACH)
    os.rmdir("/old")
    set_mount("/", MOUNT_RDONLY | MOUNT_NOSUID, 0)
    return proc


def bind(path: str) -> None:
    """Shows a file or folder of the machine at its own place."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.path.isdir(f"/old{path}"):
        os.mkdir(path)
    else:
        os.close(os.open(path, os.O_CREAT))
    call("mount", f"/old{path}", path, None, MS_BIND | MS_REC, None)


def set_mount(path: str, attributes: int, flags: int) -> None:
    block = ctypes.create_string_buffer(struct.pack("QQQQ", attributes, 0, 0, 0), 32)
    call("syscall", MOUNT_SETATTR, AT_FDCWD, path, flags, block, ctypes.c_size_t(32))


def watch(settings: dict, folder: str, proc, status: int) -> dict:
    """Starts the program and waits until it ends or has used up its time or memory, then kills what is left."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    word = os.urandom(16).hex().encode()
    read, done = os.pipe()
    # Anywhere among the descriptors that the program may have.
    place = 3 + int.from_bytes(os.urandom(4), "big") % max(1, settings["open_files"] - 3)
    told, tell = os.pipe()
    answer(status, {"started": True})
    program = os.fork()
    if program == 0:
        done = fcntl.fcntl(done, fcntl.F_DUPFD, place)
        os.write(tell, b"%d %s" % (done, word))
        become_program(settings, folder, told, isolated=proc is not None)
    for fd in (done, told, tell):
        os.close(fd)
    os.set_blocking(read, False)
    found = wait(program, settings, proc)
    if proc is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program, signal.SIGKILL)
    if found.get("code") == 0:
        found["done"] = reads(read) == word
    return found


def wait(program: int, settings: dict, proc) -> dict:
    end = time.monotonic() + settings["wall_timeout"]
    while True:
        # Children that lost their parent come here too.
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == program:
                return {"code": os.waitstatus_to_exitcode(ended[1])}
        if time.monotonic() > end or processor_time(proc) > settings["timeout"]:
            return {"reason": "timed out"}
        if proc is not None and memory_in_use(proc) > settings["memory_mb"] * 2**20:
            return {"reason": "out of memory"}
        signal.sigtimedwait([signal.SIGCHLD], 0.02)


def reads(fd: int) -> bytes:
    try:
        return os.read(fd, 100)
    except BlockingIOError:
        return b""


def processor_time(proc) -> float:
    """Seconds of processor time of all processes but the watcher, ended ones included; without a namespace of their
    own only of the ended, and `RLIMIT_CPU` stops the others."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    ticks = 0
    for text in others(proc, "stat"):
        # Behind the name in parentheses, which may hold anything: its own and its waited-for children's times.
        ticks += sum(map(int, text.rpartition(b")")[2].split()[11:15]))
    return ended.ru_utime + ended.ru_stime + ticks / os.sysconf("SC_CLK_TCK")


def memory_in_use(proc: int) -> int:
    """Bytes that all processes but the watcher have in memory, or swapped out, for themselves or shared among them."""
    kinds = (b"Pss_Anon:", b"Pss_Shmem:", b"SwapPss:")
    # Without the right to read the first, a shared page counts once for each process.
    instead = (b"RssAnon:", b"RssShmem:", b"VmSwap:")
    total = 0
    for text in others(proc, "smaps_rollup", "status"):
        rows = [line.split() for line in text.splitlines()]
        total += sum(int(row[1]) for row in rows if row and row[0] in (*kinds, *instead))
    return total * 1024


def others(proc, *names: str):
    """The contents of the first readable of these files of each process but the watcher."""
    for process in os.listdir(proc) if proc is not None else ():
        for name in names if process.isdigit() and process != "1" else ():
            try:
                fd = os.open(f"{process}/{name}", os.O_RDONLY, dir_fd=proc)
            except OSError:
                continue  # it has ended, or is not for the watcher
            try:
                text = os.read(fd, 65536)
            except OSError:
                continue
            finally:
                os.close(fd)
            if text:
                yield text
                break


def become_program(settings: dict, folder: str, told: int, isolated: bool) -> None:
    """Replaces this process by an interpreter that runs the program within its limits."""
    try:
        os.setsid()
        os.dup2(told, 0)
        memory, seconds = settings["memory_mb"] * 2**20, math.ceil(settings["timeout"]) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))  # first the signal that says why
        limits = {"AS": memory, "FSIZE": settings["disk_mb"] * 2**20, "CORE": 0, "MSGQUEUE": 0}
        limits["NOFILE"] = settings["open_files"]
        if isolated:
            limits["NPROC"] = settings["processes"] + 2  # the two outside the program
        for name, limit in limits.items():
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (limit, limit))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        call("prctl", SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        if isolated:
            refuse_system_calls()
        code = RUNNER.format(path=PROGRAM if isolated else os.path.join(folder, "program.py"))
        # Strings hash alike in every run, so that a program that depends on the order of a set always does the same.
        environment = {
            "PATH": "/usr/bin:/bin",
            "HOME": folder,
            "TMPDIR": folder,
            "PYTHONHASHSEED": "0",
            "LANG": "C.UTF-8",
        }
        os.execve(sys.executable, [sys.executable, "-S", "-s", "-P", "-B", "-c", code], environment)
    except BaseException as error:
        os.write(2, f"the program was not started: {error}\n".encode())
    os._exit(125)


def refuse_system_calls() -> None:
    """A seccomp filter: EPERM for what is in REFUSED, the end for calls of another architecture."""
    column, architecture, _ = MACHINES[platform.machine()]
    load, equal, at_least, mask, give = 0x20, 0x15, 0x35, 0x54, 0x06
    allowed, refused, killed = 0x7FFF0000, 0x00050001, 0x80000000
    lines = [(load, 0, 0, 4), (equal, 1, 0, architecture), (give, 0, 0, killed), (load, 0, 0, 0)]
    lines += [(at_least, 0, 1, 0x40000000), (give, 0, 0, killed)]  # x32, the other calls of x86_64
    for numbers in REFUSED.values():
        lines += [(equal, 0, 1, numbers[column]), (give, 0, 0, refused)]
    # The flags are the fourth argument, of which the lower half comes first.
    lines += [(equal, 0, 4, MMAP[column]), (load, 0, 0, 40), (mask, 0, 0, SHARED_ANONYMOUS)]
    lines += [(equal, 0, 1, SHARED_ANONYMOUS), (give, 0, 0, refused), (give, 0, 0, allowed)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in lines))
    block = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(lines), ctypes.addressof(code)))
    call("prctl", SET_SECCOMP, 2, block, 0, 0)


if __name__ == "__main__":
    main()
