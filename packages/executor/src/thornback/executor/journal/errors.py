"""What the journal raises. One base, `JournalError`; every message says what to do.

Positional arguments only, so that each of them pickles; all are public as `thornback.executor.X`.
"""

from __future__ import annotations

from collections.abc import Sequence

from thornback.faults import redact


class JournalError(Exception):
    """The journal cannot read or record: the store failed for too long, or holds what it must not
    hold.

    Raised for ever after by the journal that raised it once from `commit`. Nothing that was not
    announced before is announced.
    """

    __module__ = "thornback.executor"

    def __init__(self, *args: object) -> None:
        # They tell the URLs of stores, and quote what their libraries said.
        super().__init__(*(redact(arg) if isinstance(arg, str) else arg for arg in args))


class NewerFormat(JournalError):
    """A later version of thornback has written this state. Nothing in it was changed.

    Attributes:
        what: the state, or the object in it.
        version: of its format.
        known: the highest that this version reads.
    """

    __module__ = "thornback.executor"

    def __init__(self, what: str, version: int, known: int) -> None:
        super().__init__(what, version, known)
        self.what = what
        self.version = version
        self.known = known

    def __str__(self) -> str:
        return (
            f"{self.what} was written by a newer thornback: journal version {self.version}, this "
            f"one reads up to {self.known}. Upgrade, or use another state="
        )


class HeldByAnother(JournalError):
    """Another driver holds this state. Not to be confused with `Superseded`: there the other one
    came later.

    Attributes:
        url: the state.
        host, pid, since: of the other driver, where known (`since` is ISO 8601, UTC).
        seen: how it was noticed.
    """

    __module__ = "thornback.executor"

    def __init__(self, url: str, host: str, pid: int, since: str, seen: str) -> None:
        super().__init__(url, host, pid, since, seen)
        self.url = redact(url)
        self.host = host
        self.pid = pid
        self.since = since
        self.seen = seen

    def __str__(self) -> str:
        return (
            f"state {self.url!r} is held by another driver: host {self.host or 'unknown'}, process "
            f"{self.pid or 'unknown'}, since {self.since or 'unknown'} ({self.seen}). Wait until "
            "it has ended, "
            "stop it, or give another state="
        )


class Superseded(JournalError):
    """Another driver has taken this state over while we held it. Nothing more of ours is announced
    or promoted.

    Attributes:
        url: the state.
        term: ours.
        by_term: the other's.
    """

    __module__ = "thornback.executor"

    def __init__(self, url: str, term: int, by_term: int) -> None:
        super().__init__(url, term, by_term)
        self.url = redact(url)
        self.term = term
        self.by_term = by_term

    def __str__(self) -> str:
        return (
            f"another driver has taken over state {self.url!r}: its term is {self.by_term}, ours "
            f"was {self.term}. "
            "It took this driver for dead (paused, or cut off from the store for too long). What "
            "was recorded before "
            "stands; let the other one finish, or start again when it has ended"
        )


class IdentityMismatch(JournalError):
    """The state belongs to another job, or to an earlier form of this one.

    Attributes:
        url: the state.
        differences: one sentence each, by stage.
    """

    __module__ = "thornback.executor"

    def __init__(self, url: str, differences: Sequence[str]) -> None:
        super().__init__(url, tuple(differences))
        self.url = redact(url)
        self.differences = tuple(differences)

    def __str__(self) -> str:
        lines = "".join(f"\n  {difference}" for difference in self.differences)
        return (
            f"state {self.url!r} holds the records of a different job:{lines}\nGive another "
            "state=, or "
            "on_mismatch='fresh' to start anew and forget those records, or on_mismatch='adopt' "
            "to keep the records of "
            "stages with the same name as they are"
        )
