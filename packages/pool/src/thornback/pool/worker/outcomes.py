"""What became of a rank: the fields of its `Outcome`, but for `ago_s`."""

from __future__ import annotations

from typing import Any

from thornback.pool.ports import Assignment, CaughtError, SeenBy
from thornback.pool.worker.deaths import Death, KillReason, died, timed_out
from thornback.pool.worker.news import Done
from thornback.pool.worker.ranklog import RankLog


def done(
    rank: int,
    node: str,
    pid: int,
    log: RankLog,
    news: Done,
    log_slice: tuple[int, int],
    *,
    healthy_before: bool,
    peak: int,
) -> dict[str, Any]:
    """Of a rank that has answered."""
    fields: dict[str, Any] = {
        "rank": rank,
        "ok": news.error is None,
        "node": node,
        "pid": pid,
        "ran_s": news.ran_s,
        "peak_rss_bytes": peak,
        "log_path": log.path,
        "log_slice": log_slice,
        "spans": news.spans,
        "spans_dropped": news.spans_dropped,
    }
    if news.error is None:
        fields |= {"result": news.result, "outputs": news.outputs}
    else:
        fields |= {
            "error": news.error,
            "healthy_before": healthy_before,
            "log_tail": log.tail(*log_slice),
        }
    return fields


def failed(
    rank: int,
    node: str,
    error: CaughtError,
    *,
    seen_by: SeenBy,
    phase: str,
    ran_s: float,
    pid: int = 0,
    log: RankLog | None = None,
    log_start: int = 0,
    peak_rss_bytes: int = 0,
) -> dict[str, Any]:
    """Of a rank that has not, with what its log holds since `log_start`."""
    return {
        "rank": rank,
        "ok": False,
        "error": error,
        "seen_by": seen_by,
        "phase": phase,
        "node": node,
        "pid": pid,
        "ran_s": ran_s,
        "peak_rss_bytes": peak_rss_bytes,
        "log_tail": log.tail(log_start) if log is not None else "",
        "log_path": log.path if log is not None else "",
        "log_slice": (log_start, log.size()) if log is not None else (0, 0),
    }


def why_dead(death: Death, work: Assignment, phase: str, *, oom_risen: bool) -> CaughtError:
    """Return the error of a rank whose process died in this phase."""
    limit_s = work.setup_timeout_s if phase == "setup" else work.timeout_s
    if death.killed_for is KillReason.TIMED_OUT and limit_s is not None:
        return timed_out("set-up" if phase == "setup" else "rank", limit_s)
    by_kernel = death.signal == 9 and death.killed_for is None
    return died(death, oom_kill=by_kernel and oom_risen)
