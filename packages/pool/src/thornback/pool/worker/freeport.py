"""Finds TCP ports for the ranks of a gang to meet at."""

from __future__ import annotations

import errno
import random
import socket
import time
from collections.abc import Sequence
from pathlib import Path

_ORDINARY = range(20_000, 61_000)
"""Below: well-known ports, and 10002 to 19999, which Ray gives to its own workers."""
_EPHEMERAL = (32_768, 60_999)
"""What Linux has unless it is told otherwise."""
_TRIES = 64


def outside(low: int, high: int) -> Sequence[range]:
    """Return ordinary ports that the kernel does not give to connections, if it gives `low` to
    `high`."""
    below = range(_ORDINARY.start, min(low, _ORDINARY.stop))
    above = range(max(high + 1, _ORDINARY.start), 65_536)
    return tuple(each for each in (below, above) if len(each) >= _TRIES)


class FreePorts:
    """Gives ports that are free on this machine, none twice within `apart_s`."""

    def __init__(self, apart_s: float = 60.0) -> None:
        self._apart_s = apart_s
        self._given: dict[int, float] = {}
        # Workers of one machine must not try the same ports: not a generator that is seeded alike.
        self._random = random.SystemRandom()

    def one(self) -> int:
        """Return a port that nobody listens at, outside of the ephemeral range where possible.

        Raises:
            OSError: there is none at all.
        """
        now = time.monotonic()
        self._given = {p: t for p, t in self._given.items() if now - t < self._apart_s}
        ranges = outside(*_ephemeral())
        for _ in range(_TRIES if ranges else 0):
            port = self._random.choice(self._random.choice(ranges))
            if port not in self._given and _bound(port):
                break
        else:
            port = next((port for _ in range(_TRIES) if (port := _bound(0))), 0)
            if not port:
                raise OSError("no TCP port is free on this machine")
        self._given[port] = now
        return port


def _ephemeral() -> tuple[int, int]:
    try:
        text = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text()
        low, high = map(int, text.split())
    except (OSError, ValueError):
        return _EPHEMERAL
    return low, high


def _bound(port: int) -> int:
    """Return the port, if it can be bound on all addresses; 0 if not. For port 0: any."""
    for family, address in ((socket.AF_INET6, "::"), (socket.AF_INET, "0.0.0.0")):
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind((address, port))
                port = probe.getsockname()[1]
        except OSError as error:
            if family == socket.AF_INET or error.errno == errno.EADDRINUSE:
                return 0
            continue  # there is no IPv6 here
    return port
