"""Which pipelines belong together, how they are called, and in which order they come."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
from datatrove.executor.local import LocalPipelineExecutor

from thornback.datatrove import DependencyFailed, PipelineMismatch, RayPipelineExecutor
from thornback.datatrove.chain import collect, dependencies
from thornback.datatrove.launch import Launch, claim
from thornback.executor import UsageError


def make(name: str, depends: Any = None, **arguments: Any) -> RayPipelineExecutor:
    folder = f"memory://chain/{name}" if name else None
    return RayPipelineExecutor([], logging_dir=folder, depends=depends, **arguments)


def names(root: RayPipelineExecutor) -> list[str]:
    chain = collect(root)
    return [chain.name(member) for member in chain.members]


def test_defect_37_one_a_list_and_a_tuple_of_dependencies_are_accepted() -> None:
    a, b = make("a"), make("b")
    assert dependencies(make("c")) == ()
    assert dependencies(make("c", a)) == (a,)
    assert dependencies(make("c", [a, b])) == dependencies(make("c", (a, b))) == (a, b)


def test_defect_37_a_diamond_has_each_pipeline_once_and_parents_first() -> None:
    top = make("top")
    left, right = make("left", top), make("right", [top])
    end = make("end", [left, right, top])
    assert names(end) == ["top", "left", "right", "end"]
    chain = collect(end)
    assert chain.root is end
    edges = chain.edges(end, lambda member: True, also_failed=False)
    assert [(edge.stage, edge.condition) for edge in edges] == [
        ("left", "all_success"),
        ("right", "all_success"),
        ("top", "all_success"),
    ]


def test_defect_37_a_circle_is_an_error_that_names_it() -> None:
    a = make("a")
    b = make("b", a)
    c = make("c", [make("other"), b])
    a.depends = c
    with pytest.raises(UsageError, match="a -> c -> b -> a") as caught:
        collect(a)
    assert "Take one of them out" in str(caught.value)
    a.depends = a
    with pytest.raises(UsageError, match="circle: a -> a"):
        collect(a)


def test_a_long_chain_needs_no_recursion() -> None:
    executor = make("0")
    for number in range(1, 3000):
        executor = make(str(number), executor)
    assert len(collect(executor).members) == 3000


def test_many_ways_to_one_pipeline_are_gone_once() -> None:
    layer = [make("a"), make("b")]
    for number in range(60):
        layer = [make(f"{name}{number}", layer) for name in "ab"]
    assert len(collect(make("root", layer)).members) == 123


def test_what_waits_for_a_complete_pipeline_waits_for_the_stages_before_that() -> None:
    first = make("first")
    middle = [make("m1", first), make("m2", first)]
    last = make("last", middle)
    chain = collect(last)
    assert chain.stages_before(last, lambda member: member in (first, last)) == (first,)
    assert chain.stages_before(last, lambda member: member is last) == ()


def test_run_on_dependency_fail_is_an_edge_that_takes_any_end() -> None:
    child = make("child", make("parent"))
    edges = collect(child).edges(child, lambda member: True, also_failed=True)
    assert [edge.condition for edge in edges] == ["all_done"]


def test_two_pipelines_with_one_logging_dir_are_refused_with_the_reason() -> None:
    first = make("same")
    second = RayPipelineExecutor([len], logging_dir="memory://chain/same/", depends=first)
    with pytest.raises(UsageError, match="have the logging_dir 'memory:///chain/same'") as caught:
        collect(second)
    assert "the first is empty, the other len" in str(caught.value)
    assert "give each its own" in str(caught.value)


def test_a_slurm_executor_is_refused_since_it_does_not_wait() -> None:
    SlurmPipelineExecutor = type("SlurmPipelineExecutor", (LocalPipelineExecutor,), {})
    slurm = SlurmPipelineExecutor([], logging_dir="memory://chain/slurm")
    with pytest.raises(UsageError, match="does not wait for them"):
        make("child", slurm)


def step(data: Any, rank: int, world_size: int) -> Any:
    return data


def test_names_come_from_the_logging_dir_or_the_steps_and_are_unique_and_legal() -> None:
    automatic = RayPipelineExecutor([step, [], len])
    again = RayPipelineExecutor([step], depends=automatic)
    generic = RayPipelineExecutor([], logging_dir="memory://minhash/sigs/logs", depends=again)
    odd = RayPipelineExecutor([], logging_dir="memory://x/-_my dir!", depends=generic)
    root = RayPipelineExecutor([], logging_dir="memory://y/sigs-logs", depends=odd)
    assert names(root) == ["step-len", "step", "sigs-logs", "my-dir-", "sigs-logs-2"]
    assert names(root) == names(root), "stable"
    from thornback.executor import Stage

    for name in names(root):
        Stage(name, print)


def test_a_launch_is_claimed_whole_or_not_at_all() -> None:
    a, b, root, other = Launch(), Launch(), object(), object()
    assert claim(lambda: [a], [a, b], root)
    assert a.active
    assert not b.active
    assert not claim(lambda: [a, b], [a, b], other)
    assert not b.active
    assert a.was_claimed_by(root)
    a.settle()
    a.settle()
    assert claim(lambda: [a, b], [a, b], other)
    assert a.was_claimed_by(other)
    b.settle()


def test_who_waits_for_a_launch_is_told_and_woken() -> None:
    launch = Launch()
    launch.wait(1.0, lambda: pytest.fail("nobody runs it"))
    assert claim(lambda: [launch], [launch], object())
    told = threading.Event()
    waiting = threading.Thread(target=launch.wait, args=(0.01, told.set))
    waiting.start()
    assert told.wait(10)
    launch.settle()
    waiting.join(10)
    assert not waiting.is_alive()


@pytest.mark.parametrize(
    "error",
    [
        lambda: DependencyFailed("a", 2, 5, "/logs"),
        lambda: PipelineMismatch("/dir", ["world size was 1, is 2"]),
    ],
)
def test_exceptions_pickle(error: Callable[[], Exception]) -> None:
    made = error()
    again = pickle.loads(pickle.dumps(made))
    assert (type(again), str(again), vars(again)) == (type(made), str(made), vars(made))
