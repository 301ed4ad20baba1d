"""What tests of this package share."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import pytest

from thornback.scheduler import Scheduler
from thornback.scheduler.commands import Command
from thornback.scheduler.events import Event
from thornback.scheduler.gangs import Gang


class LooksAtEverything(Scheduler[str]):
    """Never takes the short way from one assignment of a gang to its next."""

    def _goes_on(self, gang: Gang[str]) -> bool:
        return False


class Compared(Scheduler[str]):
    """Has another one do the same, which looks at everything."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.other = LooksAtEverything(*deepcopy(arguments), **options)
        self.short = 0
        """How often it took the short way."""
        super().__init__(*arguments, **options)

    def handle(self, event: Event[str], now: float) -> Sequence[Command]:
        commands = super().handle(event, now)
        assert list(commands) == list(self.other.handle(event, now)), event
        assert self.wake_at == self.other.wake_at, event
        return commands

    def _goes_on(self, gang: Gang[str]) -> bool:
        goes_on = super()._goes_on(gang)
        self.short += goes_on
        return goes_on


@pytest.fixture
def compared() -> type[Compared]:
    """Return a scheduler that checks itself against one without the short way."""
    return Compared
