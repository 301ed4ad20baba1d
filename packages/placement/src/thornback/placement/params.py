"""The durations of an allocator, the decision how long to wait, and what is told about waiting."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import attrs

from thornback.placement.bundles import GangRequest, Supply
from thornback.placement.explain import describe

_log = logging.getLogger(__name__)


@attrs.frozen(kw_only=True, slots=True)
class RemovalParams:
    """How hard a removal is tried: 5 times over about 3 seconds."""

    attempts: int = 5
    """In all."""
    delay_s: float = 0.2
    """Before the second try; doubled each time."""


@attrs.frozen(kw_only=True, slots=True)
class AllocatorParams:
    """Durations of an `Allocator`."""

    place_s: float = 600.0
    """A request that fits the nodes and was not granted by then fails. `acquire(timeout_s=...)`
    replaces it; an `Executor` passes its own."""
    wait_for_nodes_s: float = 600.0
    """A request that the present nodes could not hold even when free fails after so long: workers
    join after the head, and pods come back. It fails at once if nodes never change, or if no node
    type of the autoscaler could ever hold it."""
    avoid_s: float = 10.0
    """Nodes to avoid are avoided for so long; then they are as good as any."""
    release_s: float = 30.0
    """The bound of the clean-up after a failed or cancelled `acquire`, and of `close`."""
    look_s: float = 10.0
    """A look at the cluster that takes longer has failed."""
    look_again_s: float = 2.0
    """Pause after a failed look."""
    drain_slack_s: float = 5.0
    """A drain is told again when its deadline moved by more than this."""
    removal: RemovalParams = RemovalParams()
    """How hard a removal is tried."""
    infeasible_after_s: float | None = None
    """Deprecated: the former name of `wait_for_nodes_s`; replaces it if given."""

    def __attrs_post_init__(self) -> None:
        """Move the deprecated name to the current one."""
        if self.infeasible_after_s is not None:
            object.__setattr__(self, "wait_for_nodes_s", self.infeasible_after_s)
            # Otherwise `attrs.evolve` would apply it again.
            object.__setattr__(self, "infeasible_after_s", None)


def judge(
    supply: Supply,
    unplaceable_since: float | None,
    deadline: float,
    wait_for_nodes_s: float,
    *,
    hopeless: bool = False,
) -> float:
    """Return until when (on the clock of `deadline`) to wait for a grant. Pure.

    Args:
        supply: whether other nodes may come.
        unplaceable_since: since when the nodes could not hold the request; None: they could.
        deadline: of a placement that fits.
        wait_for_nodes_s: how long to wait for other nodes. The deadline does not shorten it, so
            that nobody has to raise both.
        hopeless: what the autoscaler may add is known, and could not hold the request either.
    """
    if unplaceable_since is None:
        return deadline
    if supply is Supply.FIXED or hopeless:
        return min(deadline, unplaceable_since)
    return unplaceable_since + wait_for_nodes_s


@attrs.frozen(kw_only=True, slots=True)
class Explanation:
    """Why a request waits: the present nodes cannot hold it, or others use them."""

    request: GangRequest
    """What was asked for."""
    text: str
    """With numbers: `needs 2 x {GPU: 8} on different nodes; largest node has {GPU: 4}`."""
    fails_in_s: float
    """Seconds until it is refused, if nothing changes."""
    busy: bool = False
    """It fits the nodes, but they are in use."""


def log_explanation(explanation: Explanation) -> None:
    """The default observer: one warning."""
    what = "waits for busy nodes" if explanation.busy else "cannot be placed now"
    # Whoever asked decides whether a request for busy nodes is repeated after the time-out.
    ends = "this request times out" if explanation.busy else "fails"
    _log.warning("%s: %s; %s in %.0f s", what, explanation.text, ends, explanation.fails_in_s)


MAX_PAUSE_S = 60.0
"""Reasons that change all the time are told so often."""
CALM_S = 600.0
"""After so long without news the next ones are told at once again."""


@attrs.define
class _Told:
    text: str = ""
    times: int = 0
    next_at: float = -math.inf


class Explainer:
    """Tells observers each reason once per shape of request, and again only when it changed. A
    reason that flickers is told after pauses that double, so that it floods no log."""

    def __init__(self, observe: Callable[[Explanation], None]) -> None:
        self._observers = [observe]
        self._told: dict[str, _Told] = {}

    def add(self, observe: Callable[[Explanation], None]) -> None:
        """Tell this observer, too."""
        self._observers.append(observe)

    def tell(
        self, request: GangRequest, text: str, now: float, fails_in_s: float, *, busy: bool = False
    ) -> float:
        """Say why the request waits; never raise. Return when to call again: the news came too
        soon after the last ones; infinity: there is nothing left to say."""
        told = self._told.setdefault(describe(request), _Told())
        if told.text == text:
            return math.inf
        if now < told.next_at:
            return told.next_at
        if now > told.next_at + CALM_S:
            told.times = 0
        told.text = text
        told.times += 1
        # Two reasons in a row are told at once: a node has come, and it was the wrong one.
        pause_s = 0.0 if told.times < 2 else min(MAX_PAUSE_S, 2.0 ** min(told.times - 2, 30))
        told.next_at = now + pause_s
        explanation = Explanation(request=request, text=text, fails_in_s=fails_in_s, busy=busy)
        for observe in self._observers:
            try:
                observe(explanation)
            except Exception:  # noqa: BLE001 - an observer, whatever it does, must never fail a lease
                _log.exception("the observer of explanations failed")
        return math.inf

    def forget(self, request: GangRequest) -> None:
        """Nothing keeps it waiting any more: should it wait again, that is news."""
        told = self._told.get(describe(request))
        if told is not None:
            told.text = ""
