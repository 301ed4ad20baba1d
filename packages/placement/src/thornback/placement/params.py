"""The durations of an allocator, the decision how long to wait, and what is told about waiting."""

from __future__ import annotations

import logging
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
            object.__setattr__(
                self, "infeasible_after_s", None
            )  # `attrs.evolve` must not bring it back


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
    """A request cannot be placed on the present nodes."""

    request: GangRequest
    """What was asked for."""
    text: str
    """With numbers: `needs 2 x {GPU: 8} on different nodes; largest node has {GPU: 4}`."""
    fails_in_s: float
    """Seconds until it is refused, if nothing changes."""


def log_explanation(explanation: Explanation) -> None:
    """The default observer: one warning."""
    _log.warning(
        "cannot be placed now: %s; fails in %.0f s", explanation.text, explanation.fails_in_s
    )


class Explainer:
    """Tells the observer each reason once per shape of request, and again only when it changed."""

    def __init__(self, observe: Callable[[Explanation], None]) -> None:
        self._observe = observe
        self._told: dict[str, str] = {}

    def tell(self, request: GangRequest, text: str, fails_in_s: float) -> None:
        """The request cannot be placed. Never raises."""
        key = describe(request)
        if self._told.get(key) == text:
            return
        self._told[key] = text
        try:
            self._observe(Explanation(request=request, text=text, fails_in_s=fails_in_s))
        except Exception:  # noqa: BLE001 - an observer, whatever it does, must never fail a lease
            _log.exception("the observer of explanations failed")

    def forget(self, request: GangRequest) -> None:
        """It can be placed again."""
        self._told.pop(describe(request), None)
