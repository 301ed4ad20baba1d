"""Where the workers of a gang stand, and how that changes (see `roster`). Pure."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType


class MemberState(enum.Enum):
    """Where a worker stands, as the pool sees it."""

    STARTING = "starting"
    """Asked for; has not answered yet."""
    ALIVE = "alive"
    """Has answered."""
    UNREACHABLE = "unreachable"
    """A call could not reach it; it may be alive, and has a grace window to answer."""
    DEAD = "dead"
    """Gone for good, or declared so (and killed)."""


class MemberNews(enum.Enum):
    """What can be learned of a member."""

    ANSWERED = "answered"
    UNAVAILABLE = "unavailable"
    DIED = "died"


TRANSITIONS: Mapping[MemberState, Mapping[MemberNews, MemberState]] = MappingProxyType(
    {
        MemberState.STARTING: {
            MemberNews.ANSWERED: MemberState.ALIVE,
            MemberNews.DIED: MemberState.DEAD,
        },
        MemberState.ALIVE: {
            MemberNews.ANSWERED: MemberState.ALIVE,
            MemberNews.UNAVAILABLE: MemberState.UNREACHABLE,
            MemberNews.DIED: MemberState.DEAD,
        },
        MemberState.UNREACHABLE: {
            MemberNews.ANSWERED: MemberState.ALIVE,
            MemberNews.DIED: MemberState.DEAD,
        },
        MemberState.DEAD: {},
    }
)
