"""A connection between two processes that watch each other: lines of JSON, one message each."""

import contextlib
import json
import socket
import threading
import time

TIMEOUT = 5.0
"""Seconds that a message may take to be handed to the system."""


class Peer:
    """The process at the other end.

    Attributes:
      heard: `time.monotonic()` of its last message.
      problem: what it did that no process of ours would, to follow its name; None as long as all is well.
      left: whether it said that it goes.
    """

    def __init__(self, connection: socket.socket):
        self.socket = connection
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.heard = time.monotonic()
        self.problem: str | None = None
        self.left = False
        self._buffer = b""
        self._sending = threading.Lock()

    def send(self, **message) -> None:
        """A process that is gone is noticed by `read`, which may still find its last words."""
        with self._sending:
            if self.problem:
                return
            try:
                self.socket.sendall(json.dumps(message).encode() + b"\n")
            except TimeoutError:
                # Part of the line may be out, and nothing can follow it.
                self.problem = f"has taken nothing of what it was sent for {self.socket.gettimeout():g} s"
                self._shut()
            except OSError:
                pass

    def _shut(self) -> None:
        """`read` finds what has come, and then the end."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def read(self) -> list[dict] | None:
        """The messages that have come, waiting for some; None at the end, and where something else has come."""
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
        try:
            messages = [json.loads(line) for line in lines]
        except ValueError:
            messages = [None]
        if not all(isinstance(message, dict) for message in messages):
            self.problem = "has sent what is no message"
            return None
        return messages

    def first(self, timeout: float) -> dict | None:
        """The first message; None where the other side is not one of us, or says nothing for so long."""
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            self.socket.settimeout(left)
            messages = self.read()
            if messages is None:
                return None
            if messages:
                self.socket.settimeout(TIMEOUT)
                return messages[0]
        return None
