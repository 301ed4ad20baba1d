"""Which nodes are better avoided: a preference that expires, never a ban."""

from __future__ import annotations

from collections.abc import Sequence

import attrs


@attrs.define(slots=True)
class _Suspect:
    term_s: float
    until: float


class Suspicion:
    """Remembers which nodes were blamed.

    Blame starts a term of suspicion. When it is over the node is used again: that is its parole,
    there is no probe. Blamed again while suspected or on parole (as long again), its term doubles;
    a clean parole is forgotten. At most half of the nodes seen are avoided, so suspicion alone
    never stops a run, and one node is always left.
    """

    def __init__(self, parole_s: float, max_parole_s: float) -> None:
        self._parole_s = parole_s
        self._max_parole_s = max_parole_s
        self._suspects: dict[str, _Suspect] = {}
        self._seen: dict[str, None] = {}

    def saw(self, nodes: Sequence[str]) -> None:
        """Note that these nodes exist."""
        for node in nodes:
            self._seen[node] = None

    def blame(self, node: str, now: float) -> None:
        """Suspect a node for a term."""
        self._forget_clean(now)
        self.saw((node,))
        known = self._suspects.get(node)
        term_s = self._parole_s if known is None else min(self._max_parole_s, known.term_s * 2)
        self._suspects[node] = _Suspect(term_s, now + term_s)

    def avoid(self, first: Sequence[str], now: float) -> tuple[str, ...]:
        """Return the nodes to avoid: `first`, then the worst suspects; at most half of all."""
        if not self._suspects and not first:
            return ()
        suspects = [(s.term_s, node) for node, s in self._suspects.items() if s.until > now]
        suspects.sort(key=lambda entry: (-entry[0], entry[1]))
        wanted = dict.fromkeys([*first, *(node for _, node in suspects)])
        return tuple(node for node in wanted if node in self._seen)[: len(self._seen) // 2]

    def _forget_clean(self, now: float) -> None:
        for node, suspect in list(self._suspects.items()):
            if suspect.until + suspect.term_s <= now:
                del self._suspects[node]
