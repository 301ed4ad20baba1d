"""A datatrove pipeline as a plain stage function on Ray: the protocols carry it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from thornback.executor import Executor, Job, RankContext, Stage

pytestmark = pytest.mark.ray
SHARDS = 4
LINES = 25


def _pipeline_stage(source: str, target: str, least: int) -> Any:
    """Return a rank function with a closure as its middle step; it travels by value."""

    def run(ctx: RankContext) -> dict[str, int]:
        from datatrove.pipeline.readers import JsonlReader
        from datatrove.pipeline.writers import JsonlWriter

        def longer(data: Any, rank: int = 0, world_size: int = 1) -> Any:
            for document in data:
                if len(document.text.split()) >= least:
                    yield document

        reader = JsonlReader(source, glob_pattern="*.jsonl")
        writer = JsonlWriter(target, output_filename="${rank}.jsonl.gz")
        data: Any = None
        for step in (reader, longer, writer):
            data = step(data, ctx.rank, ctx.world_size)
        return {"documents": sum(1 for _ in data)}

    return run


def test_two_step_pipeline_with_a_closure_between(ray_cluster: Any, tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for shard in range(SHARDS):
        lines = [
            json.dumps({"text": " ".join(["word"] * (i + 1)), "id": f"{shard}-{i}"})
            for i in range(LINES)
        ]
        (source / f"{shard}.jsonl").write_text("\n".join(lines))

    def add(ctx: RankContext) -> int:
        return sum(int(r["documents"]) for r in ctx.results("filter"))

    job = Job(
        "datatrove",
        [
            Stage("filter", _pipeline_stage(str(source), str(target), 11), ranks=SHARDS),
            Stage("add", add, after="filter"),
        ],
    )
    report = Executor.on_ray(state=str(tmp_path / "state")).run(job)

    assert report.results("add") == {0: SHARDS * (LINES - 10)}
    written = []
    for path in target.glob("*.jsonl.gz"):
        with gzip.open(path, "rt") as file:
            written += [json.loads(line)["id"] for line in file]
    assert sorted(written) == sorted(f"{s}-{i}" for s in range(SHARDS) for i in range(10, LINES))
