"""Whether there is a network, asked before a library tries for minutes."""

import contextlib
import queue
import socket
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterable

TIMEOUT = 5.0
"""Seconds that a server has to answer."""


def unreachable_hosts(urls: Iterable[str], timeout: float = TIMEOUT) -> list[str]:
    """The hosts of http(s) URLs where a connection to none of them opens in time; empty where one does.

    Where a proxy is set for a host (`https_proxy` and the like), it is what must be reachable. Nothing is sent.
    """
    places = {}
    for url in urls:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname:
            places.setdefault(parts.hostname, _place(parts))
    answers = queue.SimpleQueue()
    for place in {*places.values()}:
        # Daemons: a name server that does not answer would hold up the end of the program.
        threading.Thread(target=lambda place=place: answers.put(_opens(place, timeout)), daemon=True).start()
    end = time.monotonic() + timeout
    with contextlib.suppress(queue.Empty):
        for _ in {*places.values()}:
            if answers.get(timeout=max(0.0, end - time.monotonic())):
                return []
    return list(places)


def _place(parts: urllib.parse.SplitResult) -> tuple[str, int]:
    """Host and port to connect to: the URL's, or those of the proxy."""
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy and not urllib.request.proxy_bypass(parts.hostname):
        parts = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return parts.hostname or "", parts.port or {"https": 443}.get(parts.scheme, 80)


def _opens(place: tuple[str, int], timeout: float) -> bool:
    try:
        socket.create_connection(place, timeout=timeout).close()
    except OSError:
        return False
    return True
