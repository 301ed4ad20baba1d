"""What is said of a run in which ranks have failed: a few causes, and the summary last. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

import attrs

from thornback.executor.errors import RankFailure, RunFailed
from thornback.executor.plaintext import counted, first_line, printable, shortened
from thornback.executor.ports import Ranks
from thornback.executor.report import GivenUp, RunReport, StageProgress
from thornback.faults import Fault, FaultKind, StopReason

MOST_CAUSES = 5
"""That are shown; the others are counted."""
MOST_STAGES = 5
_LINES = 28
"""For the tracebacks and last lines of all causes that are shown."""
_LEAST_LINES = 5
"""For one of them."""
_LINE_CHARS = 200
_TEXT_CHARS = 400
"""Of the line that names a cause."""
_MESSAGE_CHARS = 300
"""Of a message, that are compared with others."""

_KINDS = {
    FaultKind.OOM: "out of memory",
    FaultKind.SETUP: "set-up failed",
    FaultKind.TIMEOUT: "too slow",
    FaultKind.WORKER_CRASH: "process died",
    FaultKind.NODE_LOST: "node lost",
    FaultKind.PREEMPTION: "preempted",
    FaultKind.RESOURCE: "node out of resources",
    FaultKind.SYSTEM: "broken installation, or a bug of ours",
}
_STOPS = {
    StopReason.ALL_ALIKE: "stopped: all ranks failed with the same error",
    StopReason.NO_PROGRESS: "stopped: machines failed again and again, and no rank finished",
}
_VARYING = re.compile(
    r"""
    [0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}             # a UUID
    | 0x[0-9a-f]+
    | (?<![\w.])(?:\w+://|~?/|\.{1,2}/)[^\s'",;()\[\]{}<>]+  # a URL, a path
    | \b(?=\w*[0-9])(?=\w*[a-z])\w{8,}\b                     # an id: letters and digits
    | [0-9]+
    """,
    re.IGNORECASE | re.VERBOSE,
)


@attrs.frozen(kw_only=True, slots=True)
class Cause:
    """Ranks of one stage that failed for one reason."""

    stage: str
    """Its name."""
    ranks: Ranks
    """Ascending."""
    text: str
    """One line."""
    example: GivenUp
    """The first of them."""
    varies: bool
    """The messages of the others differ in numbers, paths or names of things."""

    @property
    def count(self) -> int:
        """How many ranks."""
        return sum(map(len, self.ranks))

    @property
    def rank(self) -> int:
        """The rank that serves as the example."""
        return self.ranks[0].start


def causes_of(report: RunReport) -> list[Cause]:
    """Return the causes for which ranks failed in this run; those of most ranks come first."""
    found: dict[tuple[str, ...], list[GivenUp]] = {}
    for ended in report.given_up:
        found.setdefault(_key(ended), []).append(ended)
    causes = [_cause(same) for same in found.values()]
    return sorted(causes, key=lambda cause: -cause.count)


def _key(ended: GivenUp) -> tuple[str, ...]:
    """Return what failures for one reason have in common."""
    if ended.last is None or ended.last.rank is None:
        return (ended.stage, normalised(text_of(ended)))
    fault = ended.last.fault
    frame = str(fault.facts.get("user_frame", ""))
    return (ended.stage, fault.kind.value, fault.error_type, frame, normalised(fault.message))


def normalised(message: str) -> str:
    """Return a message without what differs from rank to rank: numbers, paths, ids."""
    return _VARYING.sub("#", message[:_MESSAGE_CHARS])


def _cause(same: Sequence[GivenUp]) -> Cause:
    text = text_of(same[0])
    pieces = sorted((piece for each in same for piece in each.ranks), key=lambda each: each.start)
    return Cause(
        stage=same[0].stage,
        ranks=_joined(pieces),
        text=text,
        example=min(same, key=lambda each: each.ranks[0].start),
        varies=any(text_of(each) != text for each in same[1:]),
    )


def _joined(pieces: Sequence[range]) -> Ranks:
    found: list[range] = []
    for piece in pieces:
        if found and found[-1].stop == piece.start:
            found[-1] = range(found[-1].start, piece.stop)
        else:
            found.append(piece)
    return tuple(found)


def text_of(ended: GivenUp) -> str:
    """Return one line on why ranks were given up, in the words of the user's code where it raised
    the error."""
    last = ended.last
    if last is None:
        return first_line(ended.reason, _TEXT_CHARS)
    text = fault_text(last.fault)
    if last.rank is None:  # a gang was lost: that alone does not say why nothing was tried again
        reason = first_line(ended.reason, _TEXT_CHARS)
        said = first_line(last.fault.message, _TEXT_CHARS)
        return reason if said in reason else f"{reason}: {text}"
    return text


def fault_text(fault: Fault) -> str:
    """Return one line on a fault: `NameError: name 'x' is not defined`."""
    name = fault.error_type.rpartition(".")[2]
    line = first_line(fault.message, _TEXT_CHARS)
    parts = [_KINDS.get(fault.kind, "")]
    if not fault.error_type.startswith("thornback.") or not line:
        parts.append(name)
    return ": ".join(part for part in (*parts, line) if part)


def run_failed(
    report: RunReport,
    *,
    noun: str = "rank",
    where: Callable[[Cause], Sequence[str]] | None = None,
    closing: Sequence[str] | None = None,
) -> RunFailed:
    """Return what `run` raises for a failed run.

    Args:
        report: of the run.
        noun: what a rank is called.
        where: returns lines that say where the log of a cause is, and what can be done about it.
        closing: the last lines of the summary; None: where logs and record are.
    """
    causes = causes_of(report)
    shown, others = causes[:MOST_CAUSES], causes[MOST_CAUSES:]
    lines = max(_LEAST_LINES, _LINES // max(1, len(shown)))
    leaves = [
        RankFailure(
            cause.stage,
            [rank for piece in cause.ranks for rank in piece],
            cause.text,
            "\n".join([*_detail(cause.example, lines), *(where or _where)(cause)]),
            example=cause.rank if cause.varies else None,
            noun=noun,
        )
        for cause in shown
    ]
    if others:
        leaves.append(_rest(others, noun))
    if not leaves:
        leaves = [RankFailure(next(iter(report.stages)), (), report.reason)]
    head = f"Job {report.job!r} failed: {headline(report, causes, noun)}"
    closing = _closing(report) if closing is None else closing
    return RunFailed(head, leaves, report, "\n".join([*_stage_lines(report), *closing]))


def _rest(others: Sequence[Cause], noun: str) -> RankFailure:
    stages = sorted({cause.stage for cause in others})
    count = sum(cause.count for cause in others)
    text = f"{counted(len(others), 'other cause')}, see report.given_up"
    if len(stages) == 1:
        ranks = sorted(rank for cause in others for piece in cause.ranks for rank in piece)
        return RankFailure(stages[0], ranks, text, noun=noun)
    return RankFailure("", (), f"{counted(count, noun)} of {len(stages)} stages: {text}")


def headline(report: RunReport, causes: Sequence[Cause], noun: str = "rank") -> str:
    """Return one line: what failed, and the most frequent reason."""
    failed = [
        f"{stage.failed:,} of {counted(stage.total, noun)} of stage {stage.name!r}"
        for stage in report.stages.values()
        if stage.failed
    ]
    if not failed or not causes:
        return first_line(report.reason, _TEXT_CHARS)
    more = len(failed) - MOST_STAGES
    several = f" and of {counted(more, 'more stage')}" if more > 0 else ""
    others = f" (and {counted(len(causes) - 1, 'other cause')})" if len(causes) > 1 else ""
    return f"{', '.join(failed[:MOST_STAGES])}{several} failed: {causes[0].text}{others}"


def _detail(ended: GivenUp, most: int) -> list[str]:
    """Return where it happened: the innermost frames, or the last lines of the log."""
    last = ended.last
    if last is None:
        return []
    if last.fault.traceback:
        lines = list(_frames(last.fault.traceback, last.fault.message, most))
    else:
        tail = [f"    {_shown(line)}" for line in last.log_tail.splitlines()[-min(most, 10) :]]
        lines = ["  the last lines that it wrote:", *tail] if tail else []
    # That an error of the user's code is not tried again needs no reason.
    known = ended.stop is StopReason.NO_RETRIES or last.rank is None
    return lines if known else [*lines, f"  {first_line(ended.reason, _LINE_CHARS)}"]


def _frames(traceback: str, message: str, most: int) -> Iterator[str]:
    """Yield the innermost frames of a traceback and, of a message of several lines, its first
    ones: the first line is known."""
    lines = traceback.rstrip().splitlines()
    # The message has been cut, so its lines are found from the frames: they are indented.
    start = max((i for i, line in enumerate(lines) if line.startswith("Traceback (")), default=-1)
    end = next(
        (i for i in range(start + 1, len(lines)) if not lines[i].startswith(" ")), len(lines)
    )
    frames, said = lines[start + 1 : end], lines[end + 1 :]
    if len(message.strip().splitlines()) < 2:
        said = []
    kept = said[: max(2, most // 3)]
    room = max(2, most - len(kept) - (len(kept) < len(said)))
    begin = max(0, len(frames) - room)
    while 0 < begin < len(frames) and not frames[begin].startswith("  File "):
        begin += 1
    yield from map(_shown, frames[begin:] or frames[-2:])
    yield from (f"  {_shown(line)}" for line in kept)
    if len(kept) < len(said):
        yield f"  ... {counted(len(said) - len(kept), 'more line')}"


def _shown(line: str) -> str:
    return shortened(printable(line.rstrip()), _LINE_CHARS)


def _where(cause: Cause) -> list[str]:
    last = cause.example.last
    if last is None or not last.log_url:
        return []
    return [f"  log of rank {cause.rank}: {last.log_url}, {last.log_part}"]


def _stage_lines(report: RunReport) -> list[str]:
    """Return a line for each stage that is not complete: those with failures first."""
    left = [stage for stage in report.stages.values() if stage.done < stage.total]
    left.sort(key=lambda stage: not stage.failed)
    lines = [_stage_line(stage, report.stopped.get(stage.name)) for stage in left[:MOST_STAGES]]
    if more := len(left) - MOST_STAGES:
        lines += [f"{counted(more, 'more stage')} not complete"] if more > 0 else []
    return lines


def _stage_line(stage: StageProgress, stop: StopReason | None) -> str:
    ended = stage.done + stage.failed + stage.skipped
    counts = ((stage.failed, "failed"), (stage.skipped, "not run"), (stage.total - ended, "open"))
    parts = [f"{number:,} {what}" for number, what in counts if number]
    why = f" ({_STOPS.get(stop, f'stopped: {stop.value}')})" if stop else ""
    return f"stage {stage.name!r}: {stage.done:,} of {stage.total:,} done, {', '.join(parts)}{why}"


def _closing(report: RunReport) -> list[str]:
    lines = [f"logs: {report.logs_url}"] if report.logs_url else []
    return [*lines, f"state: {report.state_url} (run the same job again to go on from there)"]
