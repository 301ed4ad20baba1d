"""What a user can get wrong, and what the error says to do."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest

from thornback.executor import Job, RankContext, Stage, UsageError
from thornback.executor.job import function_name, identity_of, parse_memory
from thornback.executor.plan import RunPlan, Settings, merge_ranks
from thornback.scheduler.commands import Dispatch, ShapeKey

SETTINGS = Settings(state_url="/state", cwd="/home")


def work(ctx: RankContext) -> int:
    return ctx.rank


def other(ctx: RankContext) -> int:
    return ctx.rank


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Stage("a", work, ranks=0), "ranks=0, but a stage needs at least one rank"),
        (lambda: Stage("a", work, ranks=cast(Any, 1e3)), "expected a whole number"),
        (lambda: Stage("a", work, items=[]), "items= is empty"),
        (lambda: Stage("a", work, ranks=2, items=[1, 2]), "give one of them"),
        (lambda: Stage("a", work, items="abc"), "a list with one item per rank"),
        (lambda: Stage("a b", work), "names folders"),
        (lambda: Stage("a", cast(Any, "work")), "is not callable"),
        (lambda: Stage("a", work, memory="3 GB of it"), "'3GiB'"),
        (lambda: Stage("a", work, memory=0), "positive number of bytes"),
        (lambda: Stage("a", work, timeout_s=0), "None means no limit"),
        (lambda: Stage("a", work, cpus=-1), "cpus=-1"),
        (lambda: Stage("a", work, nodes=2, processes=2), "processes must be 1"),
        (lambda: Stage("a", work, max_gangs=0), "expected 1 or more"),
        (lambda: Job("j", []), "has no stages"),
        (lambda: Job("j", cast(Any, [work])), "is not a Stage"),
    ],
)
def test_bad_stage_is_refused_and_the_mend_is_named(make: Callable[[], object], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        make()
    assert says in str(caught.value)


def test_unknown_parent_is_refused_with_a_suggestion() -> None:
    job = Job("clean", [Stage("clean", work), Stage("total", work, after="claen")])
    with pytest.raises(UsageError) as caught:
        RunPlan(job, SETTINGS)
    assert str(caught.value) == (
        "Stage 'total' comes after 'claen', which is not in job 'clean': did you mean 'clean'?"
    )


def test_cycle_is_shown() -> None:
    job = Job("j", [Stage("a", work, after="b"), Stage("b", work, after="a")])
    with pytest.raises(UsageError, match=r"a -> b -> a|b -> a -> b"):
        RunPlan(job, SETTINGS)


def test_function_that_does_not_pickle_is_refused_with_the_mend() -> None:
    lock = threading.Lock()

    def locked(ctx: RankContext) -> None:
        with lock:
            pass

    with pytest.raises(UsageError, match=r"Stage 'a': its function does not pickle .*setup="):
        RunPlan(Job("j", [Stage("a", locked)]), SETTINGS)
    with pytest.raises(UsageError, match="item 1 does not pickle"):
        RunPlan(Job("j", [Stage("a", work, items=[1, lock])]), SETTINGS)


@pytest.mark.parametrize(
    ("text", "size"),
    [("3GiB", 3 << 30), ("500MB", 500_000_000), ("1.5 gib", 3 << 29), ("17", 17), (9, 9)],
)
def test_memory_is_read(text: str | int, size: int) -> None:
    assert parse_memory(text) == size


def test_failed_allowed_is_a_count_or_a_fraction() -> None:
    assert Stage("a", work, ranks=2000, max_failed=0.001).failed_allowed == 2
    assert Stage("a", work, ranks=2000, max_failed=3).failed_allowed == 3
    assert Stage("a", work, ranks=2000).failed_allowed == 0


def test_identity_changes_with_what_makes_another_stage_and_with_nothing_else() -> None:
    base = identity_of(Job("j", [Stage("a", work, items=[1, {"x": {1}}])]))
    assert base == identity_of(
        Job("j", [Stage("a", work, items=[1, {"x": {1}}], retries=9, cpus=2)])
    )
    assert base != identity_of(Job("j", [Stage("a", work, items=[2, {"x": {1}}])]))
    assert base != identity_of(Job("j", [Stage("a", other, items=[1, {"x": {1}}])]))
    assert base != identity_of(Job("j", [Stage("a", work, items=[1, {"x": {1}}], version="2")]))


def test_function_name_of_partials_and_callable_objects() -> None:
    class Callme:
        def __call__(self, ctx: RankContext) -> None: ...

    assert function_name(partial(work)).endswith(".work")
    assert function_name(Callme()).endswith("Callme")


def test_equal_stages_share_a_shape_and_each_rank_gets_its_item() -> None:
    job = Job(
        "j",
        [
            Stage("a", work, items=["x", "y", "z"], memory="1GiB", processes=4, timeout_s=10),
            Stage("b", work, memory="1GiB", processes=4),
            Stage("c", work, cpus=2),
        ],
    )
    plan = RunPlan(job, SETTINGS)
    shapes = [stage.shape for stage in plan.scheduler_stages(plan.policies())]
    assert shapes == [0, 0, 1]
    bundle = plan.request(ShapeKey(0)).bundle
    assert (bundle.cpus, bundle.memory_bytes) == (4, 4 << 30)
    more = plan.worker_spec(ShapeKey(0, 2 << 30))
    assert (more.slots, more.memory_bytes, more.rank_memory_bytes) == (1, 2 << 30, 2 << 30)
    command = Dispatch(
        gang=1, assignment=7, stage=0, ranks=(range(0, 1), range(2, 3)), timeout_factor=2.0
    )
    work_for = plan.assignment(command, "000001.000000007", "")
    assert len(work_for.args) == 2
    assert work_for.timeout_s == 20
    assert b"z" in work_for.args[1]


def test_merge_ranks() -> None:
    assert merge_ranks([5, 1, 2, 2, 3, 9]) == (range(1, 4), range(5, 6), range(9, 10))
    assert merge_ranks([]) == ()


@pytest.mark.parametrize(
    "item", [{(1, 2): 3}, {1: "a", "b": 2}, lambda: 1, {"a", "b"}, b"x", Path("/a"), object(), None]
)
def test_whatever_pickles_can_be_an_item(item: object) -> None:
    identities = [identity_of(Job("j", [Stage("a", work, items=[item])])) for _ in range(2)]
    assert identities[0] == identities[1]


def test_the_digest_of_items_is_the_same_in_every_process() -> None:
    code = (
        "from thornback.executor import Job, Stage\n"
        "from thornback.executor.job import identity_of\n"
        "items = [{'a', 'b', 'c'}, {'x': (1, 2.5)}]\n"
        "print(identity_of(Job('j', [Stage('a', print, items=items)])).stages[0].items_digest)"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            timeout=60,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1
