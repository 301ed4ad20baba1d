"""What a user can get wrong, and what the error says to do."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest

from thornback.executor import After, Job, RankContext, Stage, UsageError
from thornback.executor.job import identity_of, parse_memory
from thornback.executor.names import function_name
from thornback.executor.plan import RunPlan, Settings, merge_ranks
from thornback.faults import RetryPolicy
from thornback.placement import Strategy
from thornback.pool import Assignment, FinishedWhen
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
        (lambda: Stage("a", work, retries=-1), "retries=-1, expected a whole number"),
        (lambda: Stage("a", work, retries=cast(Any, None)), "retries=None, expected a whole"),
        (lambda: Stage("a", work, max_retries=-1), "max_retries=-1, expected a whole number"),
        (lambda: Stage("a", work, max_retries=cast(Any, 1.5)), "'unbounded' no limit"),
        (lambda: Stage("a", work, max_retries=cast(Any, "many")), "'unbounded' no limit"),
        (lambda: Stage("a", work, max_retries=cast(Any, True)), "'unbounded' no limit"),
        (lambda: Stage("a", work, nodes=2, processes=2), "processes must be 1"),
        (lambda: Stage("a", work, max_gangs=0), "expected 1 or more"),
        (lambda: Stage("a", work, teardown=cast(Any, 1)), "teardown=1 is not callable"),
        (lambda: Stage("a", work, fresh=True, max_ranks_per_child=3), "give one of them"),
        (lambda: Stage("a", work, fresh=cast(Any, "no")), "expected True or False"),
        (lambda: Stage("a", work, max_ranks_per_child=0), "None means no limit"),
        (lambda: Stage("a", work, max_ranks_per_child=cast(Any, True)), "expected 1 or more"),
        (lambda: Stage("a", work, max_growth="a lot"), "max_growth='a lot': expected bytes"),
        (lambda: Stage("a", work, max_growth=0), "max_growth=0: expected a positive"),
        (lambda: Stage("a", work, resources={"GPU": 1}), "use gpus="),
        (lambda: Stage("a", work, resources={"memory": 1}), "use memory="),
        (lambda: Stage("a", work, resources={"tape": 0}), "a finite number above 0"),
        (lambda: Stage("a", work, resources={"tape": math.inf}), "a finite number above 0"),
        (lambda: Stage("a", work, resources={"": 1}), "expected a name"),
        (lambda: Stage("a", work, resources=cast(Any, ["tape"])), "expected a mapping"),
        (
            lambda: Stage("a", work, resources={"accelerator_type:A100": 1}),
            "use accelerator='A100'",
        ),
        (lambda: Stage("a", work, enforce_memory=cast(Any, 1)), "enforce_memory=1, expected True"),
        (lambda: Stage("a", work, runtime_env=cast(Any, "x")), "expected a mapping"),
        (lambda: Stage("a", work, runtime_env={"": 1}), "expected a name such as 'pip'"),
        (lambda: Stage("a", work, runtime_env={"env_vars": ["A"]}), "expected variables by name"),
        (lambda: Stage("a", work, accelerator=cast(Any, None)), "a kind such as 'A100'"),
        (lambda: Stage("a", work, accelerator="accelerator_type:A100"), "a kind such as 'A100'"),
        (lambda: Stage("a", work, accelerator="A100 "), "a kind such as 'A100'"),
        (lambda: Stage("a", work, labels={"no label!": "x"}), "expected the name of a label"),
        (lambda: Stage("a", work, labels={"zone": "in(a"}), "'in(a,b)' or '!in(a,b)'"),
        (lambda: Stage("a", work, labels={"zone": ""}), "expected 'v'"),
        (lambda: Stage("a", work, strategy=cast(Any, "TIGHT")), "'STRICT_PACK'"),
        (lambda: Stage("a", work, rendezvous=cast(Any, "mpi")), "expected one of '', 'torch'"),
        (lambda: Stage("a", work, finished_when=cast(Any, "one")), "'all', 'leader'"),
        (lambda: Stage("a", work, grace_s=-1), "grace_s=-1"),
        (lambda: Stage("a", work, grace_s=math.inf), "grace_s=inf, expected a number that"),
        (lambda: Stage("a", work, cpus=math.inf), "cpus=inf, expected a number that"),
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


@pytest.mark.parametrize("most", [0, 3, None, "unbounded"])
def test_whatever_the_policy_takes_as_max_retries_a_stage_takes(most: Any) -> None:
    plan = RunPlan(Job("j", [Stage("a", work, retries=1, max_retries=most)]), SETTINGS)
    assert plan.policies() == [RetryPolicy(retries=1, max_retries=most)]


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


def test_results_that_are_not_wanted_are_not_handed_on() -> None:
    edges = [After("a", results=False), After("c", kind="one_to_one", results=False), After("d")]
    job = Job("j", [*(Stage(name, work) for name in "acd"), Stage("b", work, after=edges)])
    plan = RunPlan(job, SETTINGS)
    command = Dispatch(gang=1, assignment=1, stage=3, ranks=(range(1),))
    assert plan.assignment(command, "e", "").inputs == ("results:2",)
    assert plan.own_parents == {}


def test_rank_processes_start_with_the_modules_of_functions_and_with_those_that_these_name() -> (
    None
):
    class Named:
        __thornback_preload__ = ("json", __name__)

        def __call__(self, ctx: RankContext) -> None: ...

    plan = RunPlan(Job("j", [Stage("a", work), Stage("b", Named())]), SETTINGS)
    assert plan.worker_spec(ShapeKey(0)).preload == (
        "thornback.executor.program",
        __name__,
        "json",
    )


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


@pytest.mark.parametrize("value", ["eu", "!spot", "in(A100, H100)", "!in(a,b-c)"])
def test_every_kind_of_selector_is_accepted(value: str) -> None:
    stage = Stage("a", work, labels={"ray.io/market-type": value, "zone": value})
    assert stage.labels == {"ray.io/market-type": value, "zone": value}


def test_stages_share_gangs_only_if_all_that_makes_a_gang_is_equal() -> None:
    def shapes(*stages: Stage) -> int:
        plan = RunPlan(Job("j", stages), SETTINGS)
        return len({stage.shape for stage in plan.scheduler_stages(plan.policies())})

    plain = Stage("plain", work)
    for number, other_one in enumerate(
        [
            Stage("b", work, resources={"tape": 1}),
            Stage("b", work, accelerator="A100"),
            Stage("b", work, labels={"zone": "eu"}),
            Stage("b", work, nodes=2),
            Stage("b", work, enforce_memory=False),
            Stage("b", work, runtime_env={"pip": ["numpy"]}),
        ]
    ):
        assert shapes(plain, other_one) == 2, number
    two = Stage("two", work, nodes=2)
    assert shapes(two, Stage("b", work, nodes=2, strategy="PACK")) == 2
    assert shapes(two, Stage("b", work, nodes=2, strategy="STRICT_SPREAD")) == 1
    same = [
        Stage("b", work, fresh=True, teardown=print, rendezvous="torch", finished_when="leader"),
        Stage("c", work, strategy="PACK"),
    ]
    assert shapes(plain, *same) == 1
    environments: list[dict[str, object]] = [
        {"pip": ["numpy"], "env_vars": {"A": "1", "B": "2"}},
        {"env_vars": {"B": "2", "A": "1"}, "pip": ["numpy"]},
    ]
    assert shapes(*(Stage(f"e{n}", work, runtime_env=e) for n, e in enumerate(environments))) == 1
    turned = [Stage(name, work, resources=dict(pairs)) for name, pairs in _both_ways()]
    assert shapes(*turned) == 1


def _both_ways() -> list[tuple[str, list[tuple[str, float]]]]:
    pairs = [("tape", 1.0), ("disk", 2.0)]
    return [("a", pairs), ("b", pairs[::-1])]


def test_memory_that_is_not_enforced_is_reserved_and_no_limit_also_after_an_oom() -> None:
    stages = [
        Stage("a", work, memory="1GiB", enforce_memory=False),
        Stage("b", work, memory="1GiB"),
    ]
    plan = RunPlan(Job("j", stages), SETTINGS)
    for raised in (None, 2 << 30):
        reserved, enforced = ShapeKey(0, raised), ShapeKey(1, raised)
        assert plan.request(reserved).bundle == plan.request(enforced).bundle
        assert plan.request(reserved).bundle.memory_bytes == (raised or 1 << 30)
        assert plan.worker_spec(reserved).rank_memory_bytes is None
        assert plan.worker_spec(enforced).rank_memory_bytes == (raised or 1 << 30)


def test_the_runtime_env_of_a_stage_lies_over_that_of_the_executor() -> None:
    whole = {"pip": ["numpy"], "env_vars": {"A": "1", "B": "2"}}
    settings = Settings(state_url="/state", cwd="/home", runtime_env=whole)
    own = {"pip": ["scipy"], "working_dir": ".", "env_vars": {"B": "3", "C": "4"}}
    plan = RunPlan(Job("j", [Stage("a", work, runtime_env=own), Stage("b", work)]), settings)
    assert plan.worker_spec(ShapeKey(0)).runtime_env == {
        "pip": ["scipy"],
        "working_dir": "/home",
        "env_vars": {"A": "1", "B": "3", "C": "4"},
    }
    assert plan.worker_spec(ShapeKey(1)).runtime_env == whole
    assert whole == {"pip": ["numpy"], "env_vars": {"A": "1", "B": "2"}}, "nobody else's changes"


def test_custom_resources_are_leased_per_rank_and_asked_for_by_the_worker() -> None:
    plan = RunPlan(Job("j", [Stage("a", work, processes=3, resources={"tape": 0.5})]), SETTINGS)
    key = ShapeKey(base=0)
    assert plan.request(key).bundle.resources == {"tape": 1.5}
    assert plan.worker_spec(key).resources == {"tape": 1.5}


def test_labels_and_accelerator_reach_the_lease_and_the_worker() -> None:
    stage = Stage("a", work, processes=2, accelerator="A100", labels={"zone": "!eu"})
    plan = RunPlan(Job("j", [stage]), SETTINGS)
    request = plan.request(ShapeKey(base=0))
    assert [dict(selectors) for selectors in request.labels] == [{"zone": "!eu"}]
    assert request.bundle.accelerator == "A100"
    assert plan.worker_spec(ShapeKey(base=0)).resources == {"accelerator_type:A100": 0.001}


def test_strategy_reaches_the_lease() -> None:
    def strategy(**fields: Any) -> Strategy | None:
        plan = RunPlan(Job("j", [Stage("a", work, **fields)]), SETTINGS)
        return plan.request(ShapeKey(base=0)).strategy

    assert strategy(nodes=2) is Strategy.STRICT_SPREAD
    assert strategy(nodes=2, strategy="PACK") is Strategy.PACK
    assert strategy(strategy="PACK") is None


def test_what_a_stage_says_of_its_processes_reaches_the_assignment() -> None:
    def assignment(**fields: Any) -> Assignment:
        plan = RunPlan(Job("j", [Stage("a", work, **fields)]), SETTINGS)
        command = Dispatch(
            gang=1, assignment=2, stage=0, ranks=(range(1),), attempt=1, timeout_factor=1.0
        )
        return plan.assignment(command, "e", "", (b"saved",))

    plain = assignment()
    assert plain.restored == (b"saved",)
    assert (plain.max_ranks_per_child, plain.max_growth_bytes) == (None, None)
    assert (plain.rendezvous, plain.finished_when) == ("", FinishedWhen.ALL)
    assert assignment(fresh=True).max_ranks_per_child == 1
    assert assignment(max_ranks_per_child=5).max_ranks_per_child == 5
    assert assignment(max_growth="500MB").max_growth_bytes == 500_000_000
    gang = assignment(nodes=2, rendezvous="torch", finished_when="leader", grace_s=3)
    assert (gang.rendezvous, gang.finished_when, gang.grace_s) == ("torch", FinishedWhen.LEADER, 3)
