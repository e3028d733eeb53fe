"""The processes of a command find each other: each connects to process 0 and says its number, host and settings."""

import json
import socket
import time
from collections.abc import Mapping
from typing import Any, NoReturn

from fmjax.config_values import differing_keys
from fmjax.errors import InputError, RunError
from fmjax.parallel.clusters import Cluster
from fmjax.parallel.peer import Peer

LINGER = 5.0
"""Seconds after a refusal in which process 0 still tells those who come."""


class MissingProcess(RunError):
    """A process did not come."""


def gather(cluster: Cluster, same: Mapping[str, Any], timeout: float) -> tuple[list[str], dict[int, Peer]]:
    """Returns in every process when all are there: the name of each one's host, and the connections.

    Args:
      cluster: whose processes these are; all values known.
      same: what must be equal in all processes: JSON-able, dicts of dicts.
      timeout: seconds that a process may come after the first one.

    Returns: the connections are to all others in process 0, and in the others to process 0.

    Raises MissingProcess, naming it, when one has not come, and InputError where two say they are the same or `same`
    differs.
    """
    deadline = time.monotonic() + timeout
    hello = {
        "process": cluster.process_id,
        "count": cluster.num_processes,
        "host": socket.gethostname(),
        "same": json.loads(json.dumps(same)),
    }
    host, _, port = cluster.coordinator.rpartition(":")
    if cluster.process_id == 0:
        with _listen(int(port)) as listener:
            return _RollCall(listener, hello, timeout).call(deadline)
    return _answer(host.strip("[]"), int(port), hello, deadline, timeout)


def _listen(port: int) -> socket.socket:
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    try:
        return socket.create_server(("", port), family=family, dualstack_ipv6=family == socket.AF_INET6, backlog=1024)
    except OSError as error:
        raise InputError(f"process 0 cannot listen at port {port}: {error.strerror}; is another run there?") from None


class _RollCall:
    """Process 0's part."""

    def __init__(self, listener: socket.socket, hello: dict, timeout: float):
        self.listener, self.hello, self.timeout = listener, hello, timeout
        self.count = hello["count"]
        self.hosts = [hello["host"]] + ["?"] * (self.count - 1)
        self.peers: dict[int, Peer] = {}

    def call(self, deadline: float) -> tuple[list[str], dict[int, Peer]]:
        while len(self.peers) < self.count - 1:
            try:
                comer = self._next(deadline)
            except TimeoutError:
                self._refuse(MissingProcess(self._absent()))
            if comer:
                self._admit(*comer)
        for peer in self.peers.values():
            peer.send(hosts=self.hosts)
        return self.hosts, self.peers

    def _next(self, deadline: float) -> tuple[Peer, dict] | None:
        """Who connects next, and what it says; None for a stranger. Raises TimeoutError where nobody does."""
        self.listener.settimeout(max(deadline - time.monotonic(), 0.01))
        peer = Peer(self.listener.accept()[0])
        said = peer.first(5)
        if said is not None and said.keys() == self.hello.keys():
            return peer, said
        peer.socket.close()
        return None

    def _admit(self, peer: Peer, said: dict) -> None:
        process, host = said["process"], said["host"]
        problem = None
        if said["count"] != self.count:
            problem = f"was told of {said['count']} processes, process 0 of {self.count}"
        elif process in self.peers or not 0 < process < self.count:
            problem = f"has a number that is taken, by host {self.hosts[process]}"
        elif self.hello["same"] != said["same"]:
            name, ours, theirs = differing_keys(self.hello["same"], said["same"])[0]
            problem = f"has {name} = {theirs!r}, process 0 {ours!r}"
        if problem:
            self._refuse(InputError(f"process {process} (host {host}) {problem}"), peer, process)
        self.peers[process] = peer
        self.hosts[process] = host

    def _absent(self) -> str:
        missing = [str(process) for process in range(1, self.count) if process not in self.peers]
        here = ", ".join(f"{process} (host {self.hosts[process]})" for process in [0, *sorted(self.peers)])
        noun = "process" if len(missing) == 1 else "processes"
        return f"{noun} {', '.join(missing)} of {self.count} did not start within {self.timeout:g} s; there are: {here}"

    def _refuse(self, error: Exception, refused: Peer | None = None, number: int = 0) -> NoReturn:
        """Raises `error` when all have been told, those too that come a little later, which else would wait for it."""
        end = {"end": str(error), "code": 2 if isinstance(error, InputError) else 1}
        for peer in [*self.peers.values(), *([refused] if refused else [])]:
            peer.send(**end)
        told = {0, number, *self.peers}
        deadline = time.monotonic() + LINGER
        while not told.issuperset(range(self.count)) and time.monotonic() < deadline:
            try:
                comer = self._next(deadline)
            except TimeoutError:
                break
            if comer:
                peer, said = comer
                peer.send(**end)
                told.add(said["process"])
        raise error


def _answer(host: str, port: int, hello: dict, deadline: float, timeout: float) -> tuple[list[str], dict[int, Peer]]:
    while (left := deadline - time.monotonic()) > 0:
        try:
            peer = Peer(socket.create_connection((host, port), timeout=min(left, 10)))
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
                return message["hosts"], {0: peer}
        peer.socket.close()
        time.sleep(0.1)
    raise MissingProcess(
        f"process 0 of {hello['count']} did not answer at {host}:{port} within {timeout:g} s; this is process "
        f"{hello['process']} (host {hello['host']})"
    )
