"""`python -m thornback.scheduler simulate`: what would this job cost on that cluster, under these
policies? Everything happens in simulated time."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from fractions import Fraction

import attrs

from thornback.faults import Fault, FaultBudget, FaultKind, RetryPolicy
from thornback.scheduler.params import SchedulerParams, StagePlan
from thornback.scheduler.simulate import (
    BadKind,
    BadNode,
    LoadStats,
    RunStats,
    SimulatedCluster,
    SimulatedFaults,
    Simulation,
    Unfinished,
    classified,
)
from thornback.scheduler.states import UsageError
from thornback.scheduler.testing import FakeDelta

EXAMPLE = """example: a thousand ranks of a minute, a fifth of the nodes taken an hour, two policies

  python -m thornback.scheduler simulate --ranks 1000 --nodes 20 --rank-s 60 \\
      --preempted-per-hour 20% --worker-deaths 0.1% \\
      --policy default --policy worker_crash=0,preemption=2

example: what a driver would need for a million ranks on a thousand nodes

  python -m thornback.scheduler simulate --ranks 1000000 --nodes 1000 --slots 8 --rank-s 60 --load
"""
POLICY_FIELDS = {
    "retries": int,
    "max_retries": int,
    "max_charged": int,
    "max_free": int,
    "base_delay_s": float,
    "backoff_factor": float,
    "max_delay_s": float,
    "timeout_factor": float,
}
"""Arguments of `RetryPolicy`, and their types."""
KINDS = {kind.value: kind for kind in FaultKind}
DRIVER_EVENTS_PER_S = 5_000.0
DRIVER_CALLS_PER_S = 2_000.0
TARGET_S = SchedulerParams().target_s


def share(text: str) -> float:
    """Read a probability: `0.2`, `20%` or `1/5`."""
    try:
        value = Fraction(text.rstrip("%")) / (100 if text.endswith("%") else 1)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"{text!r} is no share: write 0.2, 20% or 1/5") from None
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 0 and 100%")
    return float(value)


def whole(text: str) -> int:
    """Read a number above 0; `1e6` and `1_000_000` are fine."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
    if value != int(value) or value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(value)


def policy(text: str) -> tuple[str, RetryPolicy]:
    """Read a policy: `default`, or how it differs from that: `retries=2,worker_crash=0`."""
    values: dict[str, float] = {}
    budgets: dict[FaultKind, FaultBudget] = {}
    for part in () if text == "default" else text.split(","):
        name, _, value = part.partition("=")
        if name not in POLICY_FIELDS and name not in KINDS:
            raise argparse.ArgumentTypeError(
                f"{name!r} is not part of a policy: write `default`, or some of "
                f"{', '.join((*POLICY_FIELDS, *KINDS))}, as in worker_crash=0,base_delay_s=5"
            )
        try:
            number = POLICY_FIELDS.get(name, int)(value)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{part!r}: {value!r} is not a number") from None
        try:
            if name in KINDS:
                kind = KINDS[name]
                budgets[kind] = RetryPolicy().budget(kind).__replace__(retries=number)
            else:
                values[name] = number
                RetryPolicy(**values)  # type: ignore[arg-type]  # types as in POLICY_FIELDS
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{part!r}: {error}") from None
    # The arguments were looked up and tried above.
    return text, RetryPolicy(budgets=budgets, **values)  # type: ignore[arg-type]


def add_arguments(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
) -> None:
    """Add `simulate` to the commands of a parser; `run` then carries it out."""
    sub = commands.add_parser(
        "simulate",
        help="simulate a job of one stage under one or several policies",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_world(sub)
    _add_faults(sub)
    _add_run(sub)
    sub.set_defaults(run=run, wrong=sub.error)


def _add_world(sub: argparse.ArgumentParser) -> None:
    job = sub.add_argument_group("the job")
    job.add_argument("--ranks", type=whole, default=1000, help="default 1000")
    job.add_argument("--rank-s", type=float, default=60.0, help="median seconds (default 60)")
    job.add_argument("--rank-sigma", type=float, default=0.5, help="log-normal spread (0.5)")
    job.add_argument("--timeout-s", type=float, help="time limit of a rank; none by default")
    job.add_argument("--slots", type=whole, default=1, help="rank processes of a gang (1)")
    job.add_argument("--gang-nodes", type=whole, default=1, help="nodes of a gang (1)")
    job.add_argument("--max-gangs", type=whole, help="most gangs at a time; as many as fit")
    cluster = sub.add_argument_group("the cluster")
    cluster.add_argument("--nodes", type=whole, default=20, help="default 20")
    cluster.add_argument("--gangs-per-node", type=whole, default=1, help="default 1")
    cluster.add_argument("--start-s", type=float, default=5.0, help="to start a gang (5)")
    cluster.add_argument("--back-s", type=float, default=120.0, help="until a node is replaced")
    cluster.add_argument("--most-nodes", type=whole, help="an autoscaler may add up to so many")
    cluster.add_argument("--slow-nodes", type=share, default=0.0, help="share that is 4x slower")


def _add_faults(sub: argparse.ArgumentParser) -> None:
    faults = sub.add_argument_group("what goes wrong (shares: 0.2, 20%% or 1/5)")
    faults.add_argument(
        "--preempted-per-hour", type=share, default=0.0, help="share of the nodes that go"
    )
    faults.add_argument("--unannounced", type=share, default=0.0, help="of these, without a notice")
    faults.add_argument("--notice-s", type=float, default=30.0, help="the notice (30)")
    for name, what in (
        ("rank-failures", "code raises, per attempt"),
        ("process-deaths", "the rank's process dies, per attempt"),
        ("worker-deaths", "the worker dies, per attempt"),
        ("hangs", "never ends, per attempt (needs --timeout-s)"),
        ("culprits", "ranks that always take their worker down"),
        ("reports-lost", "reports that have to be sent again"),
    ):
        faults.add_argument(f"--{name}", type=share, default=0.0, help=what)
    faults.add_argument("--bad-nodes", type=whole, default=0, help="so many nodes are broken")
    kinds = [kind.value for kind in BadKind]
    faults.add_argument("--bad-kind", choices=kinds, default="exit", help="what they do to ranks")


def _add_run(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--policy",
        type=policy,
        action="append",
        metavar="default|NAME=N,...",
        help="may be repeated; N is a number of retries for a kind of fault, or an argument of "
        f"RetryPolicy: {', '.join((*POLICY_FIELDS, *KINDS))}",
    )
    sub.add_argument("--seeds", type=whole, default=1, help="worlds that each policy meets (1)")
    sub.add_argument("--first-seed", type=int, default=0, help="the first of them (0)")
    sub.add_argument("--checked", action="store_true", help="judge every event; slower")
    sub.add_argument("--load", action="store_true", help="also what the driver has to carry")
    sub.add_argument("--json", action="store_true", help="for programs")
    carries = "that a driver of yours can carry, for --load"
    sub.add_argument("--driver-events-per-s", type=float, default=DRIVER_EVENTS_PER_S, help=carries)
    sub.add_argument("--driver-calls-per-s", type=float, default=DRIVER_CALLS_PER_S, help=carries)


class OneStage:
    """The order of a job of one stage (fulfils `Dependencies`): all may run at once."""

    def __init__(self, ranks: int) -> None:
        self._ranks = ranks

    def start(self, /) -> FakeDelta:
        """Release everything."""
        return FakeDelta(ready=((0, range(self._ranks)),))

    def finished(self, stage: int, ranks: Sequence[range], ok: bool, /) -> FakeDelta:
        """Nothing follows."""
        return FakeDelta()


@attrs.frozen
class Row:
    """What one policy came to in one world."""

    policy: str
    seed: int
    stats: RunStats
    load: LoadStats


def simulate(options: argparse.Namespace, seed: int, name: str, policy: RetryPolicy) -> Row:
    """Run one policy in one world. Raises `UsageError` and `Unfinished`."""
    plan: StagePlan[Fault] = StagePlan(
        world_size=options.ranks,
        slots=options.slots,
        nodes=options.gang_nodes,
        max_gangs=options.max_gangs,
        policy=policy,
    )
    run = Simulation(
        [plan],
        lambda: OneStage(options.ranks),
        classified,
        _cluster(options),
        _faults(options),
        seed=seed,
        checked=options.checked,
    )
    most_events = 1_000_000 + 100 * options.ranks
    return Row(name, seed, run.run(most_events=most_events), run.load())


def _cluster(options: argparse.Namespace) -> SimulatedCluster:
    return SimulatedCluster(
        nodes=options.nodes,
        gangs_per_node=options.gangs_per_node,
        rank_s=options.rank_s,
        rank_sigma=options.rank_sigma,
        timeout_s=options.timeout_s,
        start_s=options.start_s,
        back_s=options.back_s,
        most_nodes=options.most_nodes,
        slow_share=options.slow_nodes,
        rank_bytes=1,
    )


def _faults(options: argparse.Namespace) -> SimulatedFaults:
    per_hour = options.preempted_per_hour
    return SimulatedFaults(
        preemption_s=3600.0 / per_hour if per_hour else None,
        unannounced=options.unannounced,
        notice_s=options.notice_s,
        rank_failures=options.rank_failures,
        process_deaths=options.process_deaths,
        worker_deaths=options.worker_deaths,
        hangs=options.hangs,
        culprits=options.culprits,
        reports_lost=options.reports_lost,
        bad_nodes=tuple(
            BadNode(number=number, kind=BadKind(options.bad_kind))
            for number in range(1, options.bad_nodes + 1)
        ),
    )


def run(options: argparse.Namespace) -> int:
    """Carry out the command; return its exit code: 0 done, 2 impossible arguments, 3 a run that
    does not end."""
    policies = options.policy or [("default", RetryPolicy())]
    rows: list[Row] = []
    try:
        for name, each in policies:
            for seed in range(options.first_seed, options.first_seed + options.seeds):
                rows.append(simulate(options, seed, name, each))
    except UsageError as error:
        options.wrong(str(error))
    except Unfinished as error:
        print(f"does not end: {error.story}", file=sys.stderr)
        return 3
    if options.json:
        print(json.dumps([as_json(row) for row in rows], indent=2))
        return 0
    print(table(rows))
    if options.load:
        print()
        print(load_text(rows[0], options))
    return 0


def as_json(row: Row) -> dict[str, object]:
    """Return a row as JSON takes it."""
    finish = row.stats.finish
    figures = attrs.asdict(row.stats, filter=lambda field, value: field.name != "finish")
    return {
        "policy": row.policy,
        "seed": row.seed,
        "state": finish.state.value if finish else None,
        "reason": finish.reason if finish else None,
        **figures,
        "load": attrs.asdict(row.load),
    }


def table(rows: Sequence[Row]) -> str:
    """Return the rows for people, with the mean of each policy where it met several worlds."""
    head = ("policy", "seed", "end", "makespan", "wasted", "attempts", "gangs", "lost", "failed")
    lines: list[tuple[str, ...]] = [head]
    for row in rows:
        stats = row.stats
        wasted = f"{100 * stats.wasted_s / stats.busy_s:.1f}%" if stats.busy_s else "-"
        lines.append(
            (
                row.policy,
                str(row.seed),
                stats.finish.state.value if stats.finish else "none",
                _duration(stats.makespan_s),
                wasted,
                str(stats.attempts),
                str(stats.gangs_opened),
                str(stats.gangs_lost),
                str(stats.failed),
            )
        )
    for name in dict.fromkeys(row.policy for row in rows):
        mine = [row.stats for row in rows if row.policy == name]
        if len(mine) > 1:
            mean_s = sum(stats.makespan_s for stats in mine) / len(mine)
            busy_s, wasted_s = sum(s.busy_s for s in mine), sum(s.wasted_s for s in mine)
            sums = [sum(s.attempts for s in mine), sum(s.gangs_opened for s in mine)]
            sums += [sum(s.gangs_lost for s in mine), sum(s.failed for s in mine)]
            means = [f"{each / len(mine):.1f}" for each in sums]
            wasted = f"{100 * wasted_s / busy_s:.1f}%" if busy_s else "-"
            lines.append((name, "mean", "", _duration(mean_s), wasted, *means))
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def load_text(row: Row, options: argparse.Namespace) -> str:
    """Say what the driver has to carry, and where it would break."""
    load = row.load
    slots = options.nodes * options.gangs_per_node // options.gang_nodes * options.slots
    per_rank = load.messages / max(1, options.ranks)
    events_per_rank = load.events / max(1, options.ranks)
    calls, events = options.driver_calls_per_s, options.driver_events_per_s
    limits = [
        (load.peak_messages / 2 / calls, "calls"),
        (load.peak_events / events, "events of the scheduler"),
    ]
    used, which = max(limits)
    return "\n".join(
        [
            f"the driver, by the first row ({slots} slots):",
            f"  messages a second     mean {load.mean_messages:.0f}, peak {load.peak_messages}"
            f" ({per_rank:.1f} a rank)",
            f"  bytes a second        mean {_size(load.mean_bytes)}, peak {_size(load.peak_bytes)}",
            f"  events a second       peak {load.peak_events} ({events_per_rank:.1f} a rank)",
            f"  journal               {_size(load.journal_bytes)} in all, peak "
            f"{_size(load.peak_journal_bytes)} a second",
            f"  signs of life         {slots // options.slots / 10:.0f} calls a second besides",
            f"the busiest second takes {100 * used:.0f}% of what the driver can carry ({which};",
            f"{calls:g} calls and {events:g} events a second; your own: --driver-calls-per-s,"
            " --driver-events-per-s)",
            f"with ranks like these it breaks at about {slots / used if used else 0:.0f} slots.",
            f"Ranks below {TARGET_S} s travel in batches of that length: {slots} slots then need up"
            f" to {slots / TARGET_S:.0f} calls a second, and {calls * TARGET_S:.0f} slots are the"
            " most.",
        ]
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def _size(count: float) -> str:
    units = ["B", "KB", "MB", "GB"]
    while count >= 1000 and len(units) > 1:
        count /= 1000
        del units[0]
    return f"{count:.1f} {units[0]}"
