"""Who holds a state: the content of claims and beats, and whether a holder is certainly gone."""

from __future__ import annotations

import json
import os
import secrets
import socket
from datetime import UTC, datetime
from typing import Any

import attrs


@attrs.frozen(kw_only=True, slots=True)
class Holder:
    """A driver that claims a term."""

    id: str
    """Unique: two claims of one driver differ too."""
    host: str = ""
    boot: str = ""
    """Changes when the machine boots; empty: unknown."""
    pids: str = ""
    """The namespace in which `pid` means something (containers have their own)."""
    pid: int = 0
    since: str = ""
    """ISO 8601, UTC. For people."""
    locked: bool = False
    """Whether it held the lock of the folder as well."""

    def encode(self) -> bytes:
        """Return the content of a claim."""
        return json.dumps(attrs.asdict(self)).encode() + b"\n"

    @classmethod
    def decode(cls, data: bytes) -> Holder:
        """Return the holder in a claim; an unknown one if the claim cannot be read (its name is
        what counts).
        """
        return cls(**{"id": "", **(_known(cls, data) or {})})


@attrs.frozen(kw_only=True, slots=True)
class Heartbeat:
    """The content of a beat. Its change is the sign of life."""

    id: str
    count: int
    closed: bool = False
    """Its driver has given the state back."""
    promoted: int = 0
    """When closed: segments up to this number are promoted."""
    flushed: int = -1
    """Number of the last base or segment that was written before: what is there up to it and then
    is not was lost. -1: none, or not known (version 1)."""

    def encode(self) -> bytes:
        return json.dumps(attrs.asdict(self)).encode() + b"\n"

    @classmethod
    def decode(cls, data: bytes | None) -> Heartbeat | None:
        """Return the beat, or None where there is none that can be read."""
        found = None if data is None else _known(cls, data)
        return None if found is None else cls(**{"id": "", "count": 0, **found})


def _known(cls: type[attrs.AttrsInstance], data: bytes) -> dict[str, Any] | None:
    """Return those fields of a JSON object that `cls` knows and whose values are of their type:
    later versions may add fields, and whoever writes here may write anything. None: it is none.
    """
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    types = {a.name: a.type for a in attrs.fields(cls)}
    return {k: v for k, v in found.items() if k in types and type(v).__name__ == types[k]}


def this_process(time_ns: int, *, locked: bool) -> Holder:
    """Return this driver as a holder (blocking: reads `/proc` where there is one)."""
    since = datetime.fromtimestamp(time_ns / 1e9, tz=UTC).isoformat(timespec="seconds")
    return Holder(
        id=secrets.token_hex(8),
        host=socket.gethostname(),
        boot=_boot_id(),
        pids=_pid_namespace(),
        pid=os.getpid(),
        since=since,
        locked=locked,
    )


def certainly_gone(other: Holder, me: Holder) -> bool:
    """Return True only if `other` cannot be alive, so that its beat need not be watched.

    On the same boot of the same machine the lock tells (if both take it), else the process id.
    """
    if not me.boot or other.boot != me.boot:
        return False
    if other.locked and me.locked:
        return True
    return bool(me.pids) and other.pids == me.pids and _is_dead(other.pid)


def _is_dead(pid: int) -> bool:
    if pid <= 0:  # not a process: a claim may say anything
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            state = file.read().rpartition(b")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state in (b"Z", b"X")  # killed, and its parent has not asked for it yet


def _boot_id() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return ""


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
