"""What a rank that several nodes ran came to. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import attrs

from thornback.pool.ports import CaughtError, Outcome, Report, SeenBy, SpanData
from thornback.pool.severity import Loss, Severity, severity_of


def conclusion(
    rank: int, finished: Sequence[Outcome | None], failures: Sequence[Outcome], *, led: bool
) -> Report:
    """Make the final report of a rank, when all nodes have answered or are dead.

    Args:
        rank: the rank.
        finished: by node: what it came to there; None: handed back, or the node is dead.
        failures: those that count, in the order they came in.
        led: node 0 has decided: what is missing does not count.
    """
    if failures:
        return Report(outcomes=(max(failures, key=severity_of_outcome),), final=True)
    done = [outcome for outcome in finished if outcome is not None and outcome.ok]
    if len(done) < len(finished) and not led:
        return Report(returned=(range(rank, rank + 1),), final=True)
    # The last of the same final name counts: let that be node 0's, as with the result.
    outputs = dict.fromkeys(chain.from_iterable(outcome.outputs for outcome in reversed(done)))
    merged = attrs.evolve(
        done[0],  # of node 0, in both cases
        outputs=tuple(outputs),
        ran_s=done[0].ran_s if led else max(outcome.ran_s for outcome in done),
        spans=tuple(chain.from_iterable(map(_spans_with_node, done))),
        spans_dropped=sum(outcome.spans_dropped for outcome in done),
    )
    return Report(outcomes=(merged,), final=True)


def _spans_with_node(outcome: Outcome) -> Iterator[SpanData]:
    """Return the spans of one of several nodes, with its name on each."""
    for span in outcome.spans:
        yield attrs.evolve(span, attributes={**span.attributes, "thornback.node": outcome.node})


def severity_of_loss(loss: Loss) -> Severity:
    """Rank the death of a member."""
    return severity_of(loss.error, loss.facts, SeenBy.WORKER)


def severity_of_outcome(outcome: Outcome) -> Severity:
    """Rank the failure of a rank."""
    error = outcome.error or CaughtError(type_names=(), message="")
    return severity_of(error, {}, outcome.seen_by)
