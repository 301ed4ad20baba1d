"""What others read of an executor."""

from __future__ import annotations

import inspect
from typing import Any

import fsspec
import pytest
from datatrove.executor.ray import RayPipelineExecutor as StockRayPipelineExecutor
from datatrove.io import DataFolder
from fsspec.implementations.memory import MemoryFileSystem

from thornback.datatrove import RayPipelineExecutor
from thornback.executor import UsageError
from thornback.faults import NETWORK_RULES


class StaleFileSystem(MemoryFileSystem):  # type: ignore[misc]  # fsspec has no types
    """Shows what it has seen once, until it is told to forget it, as that of Hugging Face does."""

    protocol = "stale"
    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[str, Any] = {}

    def find(self, path: str, *args: Any, **options: Any) -> Any:
        if path not in self.known:
            self.known[path] = super().find(path, *args, **options)
        return self.known[path]

    def isfile(self, path: str) -> bool:
        return bool(self.known.setdefault(f"file {path}", super().isfile(path)))

    def invalidate_cache(self, path: str | None = None) -> None:
        self.known.clear()


@pytest.fixture
def stale() -> DataFolder:
    return DataFolder("/stale-executor", fs=StaleFileSystem())


def test_defect_7_completions_that_others_write_are_seen(stale: DataFolder) -> None:
    executor = RayPipelineExecutor([], tasks=3, logging_dir=stale)
    stock = StockRayPipelineExecutor([], tasks=3, logging_dir=stale)
    assert stock.get_incomplete_ranks() == [0, 1, 2]
    assert not stock.is_rank_completed(1)
    fsspec.filesystem("memory").pipe_file("/stale-executor/completions/00001", b"")
    assert stock.get_incomplete_ranks() == [0, 1, 2], "the defect itself"
    assert not stock.is_rank_completed(1)
    assert executor.is_rank_completed(1)
    assert stock.get_incomplete_ranks() == [0, 2]
    fsspec.filesystem("memory").pipe_file("/stale-executor/completions/00002", b"")
    assert stock.get_incomplete_ranks() == [0, 2]
    assert executor.get_incomplete_ranks() == [0]
    assert executor.get_incomplete_ranks([1, 2], skip_completed=False) == [1, 2]
    executor.skip_completed = False
    assert not executor.is_rank_completed(1)


def test_arguments_are_those_of_datatrove_in_order_and_default_and_ours_are_by_name() -> None:
    theirs = inspect.signature(StockRayPipelineExecutor).parameters
    ours = inspect.signature(RayPipelineExecutor).parameters
    for (name, parameter), mine in zip(theirs.items(), ours.items(), strict=False):
        assert (name, parameter.default, parameter.kind) == (mine[0], mine[1].default, mine[1].kind)
    more = list(ours.values())[len(theirs) :]
    assert more
    assert all(each.kind is inspect.Parameter.KEYWORD_ONLY for each in more)


def test_attributes_are_those_of_datatrove() -> None:
    arguments: dict[str, Any] = {"tasks": 7, "logging_dir": "memory://attributes", "time": 9}
    theirs = vars(StockRayPipelineExecutor([], **arguments))
    executor = RayPipelineExecutor([], **arguments)
    ours = vars(executor)
    folder = theirs.pop("logging_dir")
    assert {name: ours[name] for name in theirs} == theirs
    assert executor.logging_dir.path == folder.path
    assert executor.world_size == 7
    assert isinstance(executor, StockRayPipelineExecutor)
    assert RayPipelineExecutor([], tasks=7, workers=2, logging_dir="memory://a").workers == 2


@pytest.mark.parametrize("name", ["_run_for_rank", "mark_rank_as_completed"])
def test_a_subclass_is_told_which_of_its_methods_would_not_be_called(name: str) -> None:
    class Extra:
        pass

    setattr(Extra, name, lambda self, *args: None)
    kind = type("Mine", (Extra, RayPipelineExecutor), {})
    with pytest.raises(UsageError, match=rf"Mine\.{name} would never be called"):
        kind([], logging_dir="memory://a")


def test_a_rule_set_in_place_of_a_classifier_is_refused_with_the_mend() -> None:
    rules: Any = NETWORK_RULES
    with pytest.raises(UsageError, match=r"classifier=.* expected .*Classifier\(user_rules="):
        RayPipelineExecutor([], logging_dir="memory://a", classifier=rules)


def test_whole_numbers_of_other_kinds_become_int() -> None:
    class Whole:
        def __index__(self) -> int:
            return 5

    executor = RayPipelineExecutor([], tasks=Whole(), logging_dir="memory://a")  # type: ignore[arg-type]  # as numpy's are
    assert (type(executor.tasks), executor.world_size, executor.workers) == (int, 5, 5)
