"""What the adapter has from the executor beneath it, whose own tests go deeper: each test is named
after the defect of datatrove's executor that it shows to be gone."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.integration.pipelines import Touch, make, runs
from thornback.executor import AttemptReport, RunFailed, RunInfo, RunReport, StageProgress


class Attempts:
    """Keeps what went wrong (fulfils `Observer`)."""

    def __init__(self) -> None:
        self.failed_ones: list[AttemptReport] = []

    @property
    def kinds(self) -> list[str]:
        return [attempt.fault.kind.value for attempt in self.failed_ones]

    def started(self, info: RunInfo, /) -> None: ...

    def progressed(self, stages: tuple[StageProgress, ...], /) -> None: ...

    def failed(self, attempt: AttemptReport, /) -> None:
        self.failed_ones.append(attempt)

    def finished(self, report: RunReport, /) -> None: ...


def once(folder: Path, body: Any) -> Any:
    """Return a step that does something in the first attempt of each rank."""

    def step(data: Any, rank: int = 0, world_size: int = 1) -> None:
        seen = folder / f"seen-{rank}"
        if not seen.exists():
            seen.touch()
            body()

    return step


def die() -> None:
    os.kill(os.getpid(), 9)


def hang() -> None:
    threading.Event().wait()


def take_300_mib() -> None:
    import time

    block = bytearray(300 << 20)
    block[::4096] = bytes(len(block[::4096]))
    end = time.monotonic() + 1.0  # the limit is polled
    while time.monotonic() < end:
        pass


def test_defect_3_what_kills_a_rank_is_told_apart_and_tried_again(tmp_path: Path) -> None:
    seen = Attempts()
    steps = [once(tmp_path, die), Touch(tmp_path / "a-out")]
    make(tmp_path, "a", tasks=2, pipeline=steps, observers=[seen]).run()
    assert runs(tmp_path, "a") == {0: 1, 1: 1}
    assert seen.kinds == ["worker_crash"] * 2
    assert all(attempt.retried for attempt in seen.failed_ones)


def test_defect_5_what_never_fits_is_refused_with_numbers(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"CPU: 64.*largest node has \{CPU: 2"):
        make(tmp_path, "a", cpus_per_task=64).run()
    assert runs(tmp_path, "a") == {}


def test_defect_8_a_node_that_fails_ends_the_others_of_its_rank(tmp_path: Path) -> None:
    def fail_on_node_1(data: Any, rank: int = 0, world_size: int = 1) -> None:
        if os.environ["DATATROVE_NODE_RANK"] == "1":
            raise ValueError("node 1 is to fail")
        hang()  # as in a collective whose peer is gone

    executor = make(
        tmp_path, "a", tasks=1, pipeline=[fail_on_node_1], nodes_per_task=2, strategy="PACK"
    )
    with pytest.raises(RunFailed, match="node 1 is to fail"):
        executor.run()


def test_defect_12_what_needs_more_memory_gets_it(tmp_path: Path) -> None:
    seen = Attempts()
    executor = make(
        tmp_path,
        "a",
        tasks=1,
        pipeline=[lambda data, rank, world_size: take_300_mib(), Touch(tmp_path / "a-out")],
        mem_per_cpu_gb=0.25,
        enforce_memory=True,
        observers=[seen],
    )
    executor.run()
    assert runs(tmp_path, "a") == {0: 1}
    assert {*seen.kinds} == {"oom"}


def test_defect_32_errors_of_the_code_are_tried_as_often_as_asked(tmp_path: Path) -> None:
    def fail() -> None:
        raise ConnectionError("the server is busy")

    seen = Attempts()
    steps = [once(tmp_path, fail), Touch(tmp_path / "a-out")]
    make(tmp_path, "a", tasks=1, pipeline=steps, retries=1, observers=[seen]).run()
    assert runs(tmp_path, "a") == {0: 1}
    assert seen.kinds == ["application"]
