"""Processes that watch each other: who has come, who is still there, who keeps the others waiting.

Before `jax.distributed` starts, every process connects to process 0, at the address where JAX's own service will be,
and says its number and host. The connections stay. A process that dies closes its own, and the others end at once; one
whose host has gone silent is missed after the time-out. JAX by itself aborts every process, naming no host, only after
its own time-outs, or leaves them waiting in a collective.

Messages are lines of JSON. This module needs neither JAX nor a device.
"""

import contextlib
import json
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, NoReturn

from fmjax.errors import InputError, RunError
from fmjax.parallel.clusters import Cluster

RESUME = "What was saved stays, and the same command goes on from there"
GRACE = 3.0
"""Seconds that a process with an error of its own gives the news that another one's end was its cause."""


class MissingProcess(RunError):
    """A process did not come."""


class _Peer:
    """A connection to another process."""

    def __init__(self, connection: socket.socket):
        self.socket = connection
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.heard = time.monotonic()
        self.left = False
        self._buffer = b""
        self._sending = threading.Lock()

    def send(self, **message) -> None:
        """A process that is gone is noticed by reading, not here."""
        with self._sending, contextlib.suppress(OSError):
            self.socket.sendall(json.dumps(message).encode() + b"\n")

    def read(self) -> list[dict] | None:
        """The messages that have come, waiting for some; None at the end."""
        try:
            data = self.socket.recv(65536)
        except TimeoutError:
            return []
        except OSError:
            data = b""
        if not data:
            return None
        self.heard = time.monotonic()
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def first(self, timeout: float) -> dict | None:
        """The first message; None where the other side is not one of us, or says nothing for so long."""
        deadline = time.monotonic() + timeout
        try:
            while (left := deadline - time.monotonic()) > 0:
                self.socket.settimeout(left)
                messages = self.read()
                if messages is None or messages:
                    return messages[0] if messages and isinstance(messages[0], dict) else None
        except ValueError:
            pass
        return None


class Watch:
    """One process's part in the watch.

    Args:
      cluster: whose processes these are; all values known.
      same: what must be equal in all processes: JSON-able, dicts of dicts.
      initialization_timeout: seconds that a process may come after the first one.
      heartbeat_timeout: seconds of silence after which a process counts as gone.
      barrier_timeout: seconds that a process may come to a barrier, or to a step, after the first one.

    Attributes:
      hosts: name of each process's host.

    The constructor returns in every process when all are there. It raises MissingProcess, naming it, when one has not
    come, and InputError where two say they are the same or `same` differs.
    """

    def __init__(
        self,
        cluster: Cluster,
        same: Mapping[str, Any],
        *,
        initialization_timeout: float,
        heartbeat_timeout: float,
        barrier_timeout: float,
    ):
        self.process, self.count = cluster.process_id, cluster.num_processes
        self.hosts = ["?"] * self.count
        self._heartbeat_timeout, self._barrier_timeout = heartbeat_timeout, barrier_timeout
        self._arrived: dict[int, tuple[str, float, set[int]]] = {}
        self._barriers = self._passed = 0
        self._steps, self._moved = [0] * self.count, time.monotonic()
        self._changed = threading.Condition()
        self._ending = threading.Lock()
        host, _, port = cluster.coordinator.rpartition(":")
        hello = {
            "process": self.process,
            "count": self.count,
            "host": socket.gethostname(),
            "same": json.loads(json.dumps(same)),
        }
        self._peers: dict[int, _Peer] = {}
        deadline = time.monotonic() + initialization_timeout
        if self.process == 0:
            self._call_roll(int(port), hello, deadline, initialization_timeout)
        else:
            self._answer(host.strip("[]"), int(port), hello, deadline, initialization_timeout)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def name(self, process: int) -> str:
        return f"process {process} of {self.count} (host {self.hosts[process]})"

    # The roll call.

    def _call_roll(self, port: int, hello: dict, deadline: float, timeout: float) -> None:
        self.hosts[0] = hello["host"]
        family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
        try:
            listener = socket.create_server(
                ("", port), family=family, dualstack_ipv6=family == socket.AF_INET6, backlog=1024
            )
        except OSError as error:
            raise InputError(
                f"process 0 cannot listen at port {port}: {error.strerror}; is another run there?"
            ) from None
        with listener:
            while len(self._peers) < self.count - 1:
                listener.settimeout(max(deadline - time.monotonic(), 0.01))
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    self._refuse(MissingProcess(self._absent(timeout)))
                self._admit(_Peer(connection), hello)
        for peer in self._peers.values():
            peer.send(hosts=self.hosts)

    def _admit(self, peer: _Peer, own: dict) -> None:
        hello = peer.first(5)
        if hello is None or hello.keys() != own.keys():
            peer.socket.close()
            return
        process, host = hello["process"], hello["host"]
        problem = None
        if hello["count"] != self.count:
            problem = f"was told of {hello['count']} processes, process 0 of {self.count}"
        elif process in self._peers or not 0 < process < self.count:
            problem = f"has a number that is taken, by host {self.hosts[process]}"
        elif own["same"] != hello["same"]:
            from fmjax.config import differing_keys  # which needs the mesh, which needs this module

            name, ours, theirs = differing_keys(own["same"], hello["same"])[0]
            problem = f"has {name} = {theirs!r}, process 0 {ours!r}"
        if problem:
            self._peers[-1] = peer
            self._refuse(InputError(f"process {process} (host {host}) {problem}"))
        self._peers[process] = peer
        self.hosts[process] = host

    def _refuse(self, error: Exception) -> NoReturn:
        for peer in self._peers.values():
            peer.send(end=str(error), code=2 if isinstance(error, InputError) else 1)
        raise error

    def _absent(self, timeout: float) -> str:
        missing = [str(process) for process in range(1, self.count) if process not in self._peers]
        here = ", ".join(f"{process} (host {self.hosts[process]})" for process in [0, *sorted(self._peers)])
        noun = "process" if len(missing) == 1 else "processes"
        return f"{noun} {', '.join(missing)} of {self.count} did not start within {timeout:g} s; there are: {here}"

    def _answer(self, host: str, port: int, hello: dict, deadline: float, timeout: float) -> None:
        while (left := deadline - time.monotonic()) > 0:
            try:
                peer = _Peer(socket.create_connection((host, port), timeout=min(left, 10)))
            except OSError:
                time.sleep(min(0.1, left))
                continue
            # On one machine a socket can be connected to itself.
            if peer.socket.getsockname() != peer.socket.getpeername():
                peer.send(**hello)
                # Process 0 may have begun to wait later than this one.
                message = peer.first(timeout + 10)
                if message and "end" in message:
                    raise (InputError if message["code"] == 2 else MissingProcess)(message["end"])
                if message:
                    self.hosts, self._peers = message["hosts"], {0: peer}
                    return
            peer.socket.close()
            time.sleep(0.1)
        raise MissingProcess(
            f"process 0 of {self.count} did not answer at {host}:{port} within {timeout:g} s; this is process "
            f"{self.process} (host {hello['host']})"
        )

    # The watch.

    def _run(self) -> None:
        selector = selectors.DefaultSelector()
        for process, peer in self._peers.items():
            peer.socket.settimeout(5)
            peer.heard = time.monotonic()
            selector.register(peer.socket, selectors.EVENT_READ, process)
        interval = min(self._heartbeat_timeout / 4, 1.0)
        beaten = 0.0
        while not self._closed.is_set() and selector.get_map():
            for key, _ in selector.select(interval):
                messages = self._peers[key.data].read()
                for message in messages or ():
                    self._take(key.data, message)
                if messages is None:
                    selector.unregister(key.fileobj)
                    if not self._peers[key.data].left:
                        self._end(f"{self.name(key.data)} has ended without a word. {RESUME}")
            now = time.monotonic()
            if now - beaten >= interval:
                beaten = now
                for peer in self._peers.values():
                    peer.send(step=self._steps[self.process])
            self._check_times(now)

    def _take(self, process: int, message: dict) -> None:
        if "at" in message:
            self._arrive(process, *message["at"])
        elif "passed" in message:
            with self._changed:
                self._passed = message["passed"]
                self._changed.notify_all()
        elif "step" in message:
            self._note_step(process, message["step"])
        elif "failed" in message:
            self._end(f"{self.name(process)}: {message['failed']}", message["code"])
        elif "end" in message:
            self._end(message["end"], message["code"])
        elif "bye" in message:
            self._peers[process].left = True

    def _check_times(self, now: float) -> None:
        for process, peer in self._peers.items():
            if not peer.left and now - peer.heard > self._heartbeat_timeout:
                self._end(f"{self.name(process)} has not been heard of for {self._heartbeat_timeout:g} s. {RESUME}")
        with self._changed:
            waiting = list(self._arrived.values())
        for name, since, arrived in waiting:
            if now - since > self._barrier_timeout:
                missing = " and ".join(self.name(p) for p in range(self.count) if p not in arrived)
                self._end(f"{missing} did not come to {name!r} within {self._barrier_timeout:g} s. {RESUME}")

        behind = [p for p in range(self.count) if self._steps[p] < max(self._steps)]
        if self.process == 0 and behind and now - self._moved > self._barrier_timeout:
            missing = " and ".join(map(self.name, behind))
            last = max(self._steps)
            self._end(f"{missing} did not come to step {last} within {self._barrier_timeout:g} s. {RESUME}")

    def _note_step(self, process: int, step: int) -> None:
        if step > max(self._steps):
            self._moved = time.monotonic()
        self._steps[process] = step

    def _arrive(self, process: int, number: int, name: str) -> None:
        """In process 0: counts who has come to a barrier, and opens it."""
        with self._changed:
            _, _, arrived = self._arrived.setdefault(number, (name, time.monotonic(), set()))
            arrived.add(process)
            if len(arrived) < self.count:
                return
            del self._arrived[number]
            self._passed = number
            self._changed.notify_all()
        for peer in self._peers.values():
            peer.send(passed=number)

    def barrier(self, name: str) -> None:
        """Returns when all processes have come here; ends all of them, naming who has not, after the time-out."""
        self._barriers += 1
        if self.process == 0:
            self._arrive(0, self._barriers, name)
        else:
            self._peers[0].send(at=[self._barriers, name])
        with self._changed:
            self._changed.wait_for(lambda: self._passed >= self._barriers)

    def at_step(self, step: int) -> None:
        """Says that this process begins a step in which all compute together; the next heartbeat carries it."""
        self._note_step(self.process, step)

    def fail(self, text: str, code: int, details: str = "") -> NoReturn:
        """Ends all processes for an error in this one, unless it turns out to be another one's end that caused it.

        Args:
          text: the error, for all processes.
          code: exit code of all.
          details: printed in this one before the text, such as a traceback.
        """
        if code == 1:
            time.sleep(GRACE)
        told = {"end": f"{self.name(0)}: {text}"} if self.process == 0 else {"failed": text}
        self._end(text, code, details, told)

    def _end(self, text: str, code: int = 1, details: str = "", told: dict | None = None) -> NoReturn:
        """Says why, tells the others, and ends this process where it stands: its main thread may wait for ever."""
        with self._ending:  # never released: whoever comes second waits for the end
            if self.process == 0 or told:
                for peer in self._peers.values():
                    peer.send(**told or {"end": text}, code=code)
            prefix = f"process {self.process}: " if self.process else ""
            print(f"{details}{prefix}{text}", file=sys.stderr, flush=True)
            sys.stdout.flush()
            self._let_go()
            os._exit(code)

    def _let_go(self) -> None:
        """Process 0 goes last: JAX's service goes with it, at which JAX in the others aborts."""
        deadline = time.monotonic() + 2
        for peer in self._peers.values():
            with contextlib.suppress(OSError):
                peer.socket.shutdown(socket.SHUT_WR)
                peer.socket.settimeout(0.1)
            while self.process == 0 and peer.read() is not None and time.monotonic() < deadline:
                pass

    def leave(self) -> None:
        """The end of the watch, when all processes have come to it."""
        self.barrier("the end of the command")
        for peer in self._peers.values():
            peer.send(bye=1)
        self._closed.set()


_open: Watch | None = None


def barrier(name: str) -> None:
    """`Watch.barrier` of the processes that `fmjax.parallel.launch` brought together; nothing where there are none."""
    if _open is not None:
        _open.barrier(name)


def at_step(step: int) -> None:
    """`Watch.at_step`, likewise."""
    if _open is not None:
        _open.at_step(step)


@contextlib.contextmanager
def watching(watch: Watch):
    """Makes `watch` the one that `barrier` means."""
    global _open
    _open = watch
    try:
        yield
    finally:
        _open = None
