"""Small pipelines that leave traces, for whole runs on the local platform."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep
from datatrove.utils.logging import logger

from thornback.datatrove import RayPipelineExecutor
from thornback.executor.on_local import LocalPlatform


class Touch(PipelineStep):  # type: ignore[misc]  # datatrove has no types
    """Leaves a file for each rank, and fails where it is told to."""

    name = "touch"
    type = "test"

    def __init__(self, folder: Path, failing: tuple[int, ...] = (), needs: Path | None = None):
        super().__init__()
        self.folder = str(folder)
        self.failing = failing
        self.needs = None if needs is None else str(needs)

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Any:
        import os

        with self.track_time():
            if self.needs is not None and not os.listdir(self.needs):
                raise RuntimeError(f"nothing is in {self.needs} yet")
            if rank in self.failing:
                raise ValueError(f"rank {rank} is to fail")
            os.makedirs(self.folder, exist_ok=True)
            with open(f"{self.folder}/{rank}", "a") as file:
                file.write("x")
            self.stat_update("ranks")
        yield from ()


def make(root: Path, name: str, **arguments: Any) -> RayPipelineExecutor:
    arguments.setdefault("pipeline", [Touch(root / f"{name}-out", arguments.pop("failing", ()))])
    arguments.setdefault("tasks", 2)
    arguments.setdefault("platform", LocalPlatform(cpus=2))
    arguments.setdefault("mem_per_cpu_gb", 0.1)
    return RayPipelineExecutor(logging_dir=str(root / name), **arguments)


def runs(root: Path, name: str) -> dict[int, int]:
    """Return how often each rank has run."""
    folder = root / f"{name}-out"
    found = folder.iterdir() if folder.exists() else ()
    return {int(path.name): len(path.read_text()) for path in sorted(found)}


def files(root: Path, name: str) -> set[str]:
    folder = root / name
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {str(path) for path in found if path.parts[0] != "thornback"}


@contextmanager
def listening() -> Iterator[list[str]]:
    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(str(message)), format="{level} {message}")
    yield lines
    logger.remove(sink)
