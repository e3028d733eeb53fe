"""Processes that watch each other: who has come, who is still there, who keeps the others waiting.

Before `jax.distributed` starts, every process connects to process 0, at the address where JAX's own service will be,
and says its number and host. The connections stay. A process that dies closes its own, and the others end at once; one
whose host has gone silent is missed after the time-out. JAX by itself aborts every process, naming no host, only after
its own time-outs, or leaves them waiting in a collective. Where all wait in one, nobody is missing: process 0 sees that
none of them moves.

This module needs neither JAX nor a device.
"""

import contextlib
import os
import selectors
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn

from fmjax.parallel import roll_call
from fmjax.parallel.clusters import Cluster
from fmjax.parallel.peer import TIMEOUT

RESUME = "What was saved stays, and the same command goes on from there"
GRACE = 3.0
"""Seconds that a process with an error of its own gives the news that another one's end was its cause."""
LAST_WORDS = 10.0
"""Seconds that a process has to say why it ends."""


class Place(NamedTuple):
    """Where a process is: the `number`-th place that it named.

    `since` is `time.monotonic()` of when this process learned of it; `limited` is of a process's own places.
    """

    number: int
    what: str
    since: float
    limited: bool = False


class Watch:
    """One process's part in the watch.

    Args:
      cluster: whose processes these are; all values known.
      same: what must be equal in all processes: JSON-able, dicts of dicts.
      initialization_timeout: seconds that a process may come after the first one.
      heartbeat_timeout: seconds of silence after which a process counts as gone.
      barrier_timeout: seconds that a process may come to a barrier, or to what `at` says, after the first one.
      stall_timeout: seconds that all may stay together at what `at` says, none of them moving; 0 is no limit.

    Attributes:
      hosts: name of each process's host.

    The constructor returns, and raises, as `fmjax.parallel.roll_call.gather`.
    """

    def __init__(
        self,
        cluster: Cluster,
        same: Mapping[str, Any],
        *,
        initialization_timeout: float,
        heartbeat_timeout: float,
        barrier_timeout: float,
        stall_timeout: float,
    ):
        self.process, self.count = cluster.process_id, cluster.num_processes
        self._heartbeat_timeout, self._barrier_timeout = heartbeat_timeout, barrier_timeout
        self._stall_timeout = stall_timeout
        self._arrived: dict[int, tuple[float, dict[int, str]]] = {}
        self._barriers = self._passed = 0
        self._places = [Place(0, "the start", time.monotonic())] * self.count
        self._opened = time.monotonic()
        self._changed = threading.Condition()
        self._ending = threading.Lock()
        self.hosts, self._peers = roll_call.gather(cluster, same, initialization_timeout)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def name(self, process: int) -> str:
        return f"process {process} of {self.count} (host {self.hosts[process]})"

    def _run(self) -> None:
        try:
            self._watch()
        except Exception as error:
            # Without the watch this process could wait for ever, for others that are gone.
            text = f"the watch of the other processes failed: {type(error).__name__}: {error}"
            self._fail(text, 1, traceback.format_exc())

    def _watch(self) -> None:
        selector = selectors.DefaultSelector()
        for process, peer in self._peers.items():
            peer.socket.settimeout(TIMEOUT)
            peer.heard = time.monotonic()
            selector.register(peer.socket, selectors.EVENT_READ, process)
        interval = min(self._heartbeat_timeout / 4, 1.0)
        beaten = 0.0
        while not self._closed.is_set() and selector.get_map():
            for key, _ in selector.select(interval):
                peer = self._peers[key.data]
                messages = peer.read()
                for message in messages or ():
                    self._take(key.data, message)
                if messages is None:
                    selector.unregister(key.fileobj)
                    if not peer.left:
                        self._end(f"{self.name(key.data)} {peer.problem or 'has ended without a word'}. {RESUME}")
            now = time.monotonic()
            if now - beaten >= interval:
                beaten = now
                mine = self._places[self.process]  # once: the main thread may go on in between
                for peer in self._peers.values():
                    peer.send(place=[mine.number, mine.what])
            self._check_times(now)

    def _take(self, process: int, message: dict) -> None:
        if "barrier" in message:
            self._arrive(process, *message["barrier"])
        elif "passed" in message:
            with self._changed:
                self._passed = message["passed"]
                self._changed.notify_all()
        elif "place" in message:
            self._note_place(process, *message["place"])
        elif "failed" in message:
            self._end(f"{self.name(process)}: {message['failed']}", message["code"])
        elif "end" in message:
            self._end(message["end"], message["code"], _main_stack if "stack" in message else "")
        elif "bye" in message:
            self._peers[process].left = True

    def _check_times(self, now: float) -> None:
        for process, peer in self._peers.items():
            if not peer.left and now - peer.heard > self._heartbeat_timeout:
                self._end(f"{self.name(process)} has not been heard of for {self._heartbeat_timeout:g} s. {RESUME}")
        if self.process:
            return
        with self._changed:
            waiting = [(since, dict(names)) for since, names in self._arrived.values()]
        for since, names in waiting:
            if now - since > self._barrier_timeout:
                self._end_late([p for p in range(self.count) if p not in names], repr(next(iter(names.values()))))
        places = list(self._places)
        for process, place in enumerate(places):
            if place.number == places[0].number and place.what != places[0].what:
                self._end_apart(f"{self.name(0)} is at {places[0].what}, and {self.name(process)} at {place.what}")
        last = max(place.number for place in places)
        behind = [p for p, place in enumerate(places) if place.number < last]
        if behind:
            first = min((place for place in places if place.number == last), key=lambda place: place.since)
            if now - first.since > self._barrier_timeout:
                self._end_late(behind, first.what)
        elif not waiting:  # at a barrier its own time runs, after which those who have not come are named
            moved = max(self._opened, *(place.since for place in places))
            if self._stall_timeout and places[0].limited and now - moved > self._stall_timeout:
                self._end_stalled(places[0].what)

    def _end_apart(self, who: str) -> NoReturn:
        self._end(f"{who}: the processes do not do the same; do all have the same command and files?")

    def _end_late(self, processes: list[int], where: str) -> NoReturn:
        missing = " and ".join(map(self.name, processes))
        self._end(f"{missing} did not come to {where} within {self._barrier_timeout:g} s. {RESUME}")

    def _end_stalled(self, where: str) -> NoReturn:
        text = (
            f"all {self.count} processes have been at {where} for {self._stall_timeout:g} s, and none moves: a device "
            "or the network between hosts may hang, or the input or a disk (where the main thread waits is shown "
            f"above). {RESUME}; if it takes so long by nature, give a larger --stall_timeout, or 0 for no limit"
        )
        self._end(text, details=_main_stack, told={"end": text, "stack": True})

    def _note_place(self, process: int, number: int, what: str) -> None:
        if number > self._places[process].number:  # each heartbeat tells it again
            self._places[process] = Place(number, what, time.monotonic())

    def _arrive(self, process: int, number: int, name: str) -> None:
        """In process 0: counts who has come to a barrier, and opens it."""
        with self._changed:
            _, names = self._arrived.setdefault(number, (time.monotonic(), {}))
            first, where = next(iter(names.items()), (process, name))
            if where != name:
                self._end_apart(f"{self.name(first)} came to {where!r}, and {self.name(process)} to {name!r}")
            names[process] = name
            if len(names) < self.count:
                return
            self._opened = time.monotonic()
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
            self._peers[0].send(barrier=[self._barriers, name])
        with self._changed:
            self._changed.wait_for(lambda: self._passed >= self._barriers)

    def at(self, what: str, limited: bool = True) -> None:
        """Says that this process begins `what`, to which all of them come; the next heartbeat carries it.

        All processes must say the same in the same order: where two are seen to differ, all end. Nobody waits here.

        Args:
          what: what begins, for messages.
          limited: whether the stall time-out holds until the next place; False for what may take hours.
        """
        self._places[self.process] = Place(self._places[self.process].number + 1, what, time.monotonic(), limited)

    def fail(self, text: str, code: int, details: str = "") -> NoReturn:
        """Ends all processes for an error in this one, unless it turns out to be another one's end that caused it.

        Args:
          text: the error, for all processes.
          code: exit code of all.
          details: printed in this one before the text, such as a traceback.
        """
        if code == 1:
            time.sleep(GRACE)
        self._fail(text, code, details)

    def _fail(self, text: str, code: int, details: str) -> NoReturn:
        told = {"end": f"{self.name(0)}: {text}"} if self.process == 0 else {"failed": text}
        self._end(text, code, details, told)

    def _end(
        self, text: str, code: int = 1, details: str | Callable[[], str] = "", told: dict | None = None
    ) -> NoReturn:
        """Says why, tells the others, and ends this process where it stands: its main thread may wait for ever."""
        with self._ending:  # never released: whoever comes second waits for the end
            try:
                if self.process == 0 or told:
                    for peer in self._peers.values():
                        peer.send(**told or {"end": text}, code=code)
                # What follows waits for ever where the main thread hangs in printing, or a disk with sources hangs.
                in_any_case = threading.Timer(LAST_WORDS, os._exit, [code])
                in_any_case.daemon = True
                in_any_case.start()
                prefix = f"process {self.process}: " if self.process else ""
                details = details() if callable(details) else details
                print(f"{details}{prefix}{text}", file=sys.stderr, flush=True)
                sys.stdout.flush()
                self._let_go()
            finally:
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


def _main_stack() -> str:
    """Where the main thread stands, as a traceback."""
    frame = sys._current_frames()[threading.main_thread().ident]
    return f"Main thread (most recent call last):\n{''.join(traceback.format_stack(frame))}"


_open: Watch | None = None


def barrier(name: str) -> None:
    """`Watch.barrier` of the processes that `fmjax.commands.launch` brought together; nothing where there are none."""
    if _open is not None:
        _open.barrier(name)


def at(what: str, limited: bool = True) -> None:
    """`Watch.at`, likewise."""
    if _open is not None:
        _open.at(what, limited)


@contextlib.contextmanager
def watching(watch: Watch):
    """Makes `watch` the one that `barrier` and `at` mean."""
    global _open
    _open = watch
    try:
        yield
    finally:
        _open = None
