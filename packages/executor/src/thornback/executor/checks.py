"""Refuses what can never run: every message names the stage, the field and the mend. Pure.

Apart from `job.py`, which would grow beyond what one file should hold."""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from thornback.executor.edges import After
from thornback.executor.errors import UsageError
from thornback.executor.runtime_env import check_types
from thornback.faults import RetryPolicy
from thornback.placement import Strategy, matches

if TYPE_CHECKING:
    from thornback.executor.job import Stage

_OWN_FIELDS = {"CPU": "cpus", "GPU": "gpus", "memory": "memory"}
_ACCELERATOR = "accelerator_type:"


def check_stage(stage: Stage) -> None:
    """Return if the stage can run.

    Raises:
        UsageError: it cannot, whatever the cluster is like.
    """
    checks = (_world, _after, _numbers, _nodes, _processes, _placement, _words, _environment)
    for check in checks:
        check(stage)


def check_classifier(classifier: object) -> None:
    """Return if it looks like what turns errors into faults.

    Raises:
        UsageError: it has no method `classify`; the message names the mend.
    """
    if isinstance(classifier, type) or not callable(getattr(classifier, "classify", None)):
        raise UsageError(
            f"classifier={reprlib.repr(classifier)}: expected an object with a method "
            "classify(error, facts), such as thornback.faults.Classifier(); with rules of your "
            "own, or opt-in ones: Classifier(user_rules=(*THROTTLED_RULES, *NETWORK_RULES))"
        )


def _world(stage: Stage) -> None:
    if not isinstance(stage.name, str) or not re.fullmatch(r"[A-Za-z0-9][\w.-]*", stage.name):
        raise UsageError(
            f"stage name {stage.name!r}: expected letters, digits, '_', '-' and '.', "
            "since it names folders"
        )
    if not callable(stage.fn):
        raise UsageError(f"Stage {stage.name!r}: fn={stage.fn!r} is not callable")
    for name in ("setup", "teardown"):
        hook: Callable[..., object] | None = getattr(stage, name)
        if hook is not None and not callable(hook):
            raise UsageError(f"Stage {stage.name!r}: {name}={hook!r} is not callable")
    if stage.ranks is not None and not _is_whole(stage.ranks):
        raise UsageError(f"Stage {stage.name!r}: ranks={stage.ranks!r}, expected a whole number")
    if stage.ranks is not None and stage.items is not None:
        raise UsageError(f"Stage {stage.name!r} has ranks= and items=: give one of them")
    if stage.world_size < 1:
        what = "items= is empty" if stage.items is not None else f"ranks={stage.ranks!r}"
        raise UsageError(f"Stage {stage.name!r}: {what}, but a stage needs at least one rank")


def _after(stage: Stage) -> None:
    kinds: dict[str, str] = {}
    for each in stage.after:
        if not isinstance(each, str | After):
            raise UsageError(
                f"Stage {stage.name!r}: after={each!r}, expected the name of a stage, or "
                "After(name, ...)"
            )
    for edge in stage.edges:
        if kinds.setdefault(edge.stage, edge.kind) != edge.kind:
            raise UsageError(
                f"Stage {stage.name!r} comes after {edge.stage!r} by a barrier and one to one: "
                "give one of them"
            )


def _numbers(stage: Stage) -> None:
    for field in ("nodes", "processes"):
        if not _is_whole(getattr(stage, field), least=1):
            raise UsageError(
                f"Stage {stage.name!r}: {field}={getattr(stage, field)!r}, expected 1 or more"
            )
    if not _is_whole(stage.retries, least=0):
        raise UsageError(
            f"Stage {stage.name!r}: retries={stage.retries!r}, expected a whole number, 0 or more"
        )
    most = stage.max_retries
    if most not in (None, "unbounded") and not _is_whole(most, least=0):
        raise UsageError(
            f"Stage {stage.name!r}: max_retries={most!r}, expected a whole number, 0 or more; "
            "None means the default table, and 'unbounded' no limit"
        )
    if stage.fail_fast is not None and not _is_whole(stage.fail_fast, least=1):
        raise UsageError(
            f"Stage {stage.name!r}: fail_fast={stage.fail_fast!r}, expected a whole number, 1 or "
            "more; None switches it off"
        )
    _retry(stage)
    for field in ("cpus", "gpus", "max_failed", "timeout_s", "grace_s"):
        value = getattr(stage, field)
        if value is not None and not value >= 0:
            raise UsageError(f"Stage {stage.name!r}: {field}={value!r}, expected 0 or more")
    for field in ("cpus", "gpus", "grace_s"):
        if not math.isfinite(value := getattr(stage, field)):
            raise UsageError(
                f"Stage {stage.name!r}: {field}={value!r}, expected a number that has an end"
            )
    if stage.timeout_s == 0:
        raise UsageError(f"Stage {stage.name!r}: timeout_s=0 leaves no time; None means no limit")
    if stage.max_gangs is not None and stage.max_gangs < 1:
        raise UsageError(f"Stage {stage.name!r}: max_gangs={stage.max_gangs}, expected 1 or more")


def _retry(stage: Stage) -> None:
    policy: object = stage.retry
    if policy is None:
        return
    if not isinstance(policy, RetryPolicy):
        raise UsageError(
            f"Stage {stage.name!r}: retry={policy!r}, expected a RetryPolicy of "
            "thornback.faults, such as RetryPolicy(retries=2); retries= takes a number"
        )
    if stage.retries or stage.max_retries is not None:
        raise UsageError(
            f"Stage {stage.name!r} has retry= and retries= or max_retries=: give one of them; "
            "RetryPolicy takes both numbers, too"
        )


def _nodes(stage: Stage) -> None:
    if stage.nodes > 1 and stage.processes > 1:
        raise UsageError(
            f"Stage {stage.name!r}: nodes={stage.nodes} and processes={stage.processes}: "
            "a gang of several nodes runs one rank at a time, so processes must be 1"
        )


def _processes(stage: Stage) -> None:
    most = stage.max_ranks_per_child
    if most is not None and not _is_whole(most, least=1):
        raise UsageError(
            f"Stage {stage.name!r}: max_ranks_per_child={most!r}, expected 1 or more; None means "
            "no limit"
        )
    if not isinstance(stage.fresh, bool):
        raise UsageError(f"Stage {stage.name!r}: fresh={stage.fresh!r}, expected True or False")
    if stage.fresh and most not in (None, 1):
        raise UsageError(
            f"Stage {stage.name!r} has fresh=True and max_ranks_per_child={most}: give one of "
            "them, since fresh=True is one rank per process"
        )


def _placement(stage: Stage) -> None:
    for name, amount in stage.resources.items():
        if not isinstance(name, str) or not name:
            raise UsageError(f"Stage {stage.name!r}: resources={{{name!r}: ...}}: expected a name")
        if own := _OWN_FIELDS.get(name):
            raise UsageError(f"Stage {stage.name!r}: resources={{{name!r}: ...}}: use {own}=")
        if name.startswith(_ACCELERATOR):
            kind = name.removeprefix(_ACCELERATOR)
            raise UsageError(
                f"Stage {stage.name!r}: resources={{{name!r}: ...}}: use accelerator={kind!r}"
            )
        if not _is_amount(amount):
            raise UsageError(
                f"Stage {stage.name!r}: resources={{{name!r}: {amount!r}}}, expected a finite "
                "number above 0"
            )
    try:
        matches(stage.labels, {})
    except ValueError as error:
        raise UsageError(f"Stage {stage.name!r}: {error}") from error
    kind = stage.accelerator
    if not isinstance(kind, str) or kind != kind.strip() or kind.startswith(_ACCELERATOR):
        raise UsageError(
            f"Stage {stage.name!r}: accelerator={kind!r}, expected a kind such as "
            "'A100', or '' for any"
        )


def _words(stage: Stage) -> None:
    known: Mapping[str, tuple[object, ...]] = {
        "strategy": (None, *(strategy.value for strategy in Strategy)),
        "rendezvous": ("", "torch"),
        "finished_when": ("all", "leader"),
    }
    for field, words in known.items():
        if getattr(stage, field) not in words:
            raise UsageError(
                f"Stage {stage.name!r}: {field}={getattr(stage, field)!r}, expected one of "
                f"{', '.join(map(repr, words))}"
            )


def _environment(stage: Stage) -> None:
    if not isinstance(stage.enforce_memory, bool):
        raise UsageError(
            f"Stage {stage.name!r}: enforce_memory={stage.enforce_memory!r}, expected True or False"
        )
    check_types(stage.runtime_env, f"Stage {stage.name!r}")


def _is_whole(value: object, *, least: int | None = None) -> bool:
    if not isinstance(value, int) or isinstance(value, bool):
        return False
    return least is None or value >= least


def _is_amount(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return value > 0 and math.isfinite(value)
