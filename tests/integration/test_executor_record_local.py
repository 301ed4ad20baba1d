"""A whole run on the local backend, recorded: its file repeats it and tells of every rank."""

from __future__ import annotations

from pathlib import Path

from thornback.executor import Executor, Job, RankContext, Stage
from thornback.scheduler.recorder import read_record, replay, story


def work(ctx: RankContext) -> int:
    return ctx.rank


def test_the_executor_records_its_run(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    executor = Executor.on_local(state=str(tmp_path / "state"), cpus=2, record=str(path))
    report = executor.run(Job("j", [Stage("a", work, ranks=3)]))
    assert report.state == "succeeded"
    lines = path.read_text().splitlines(keepends=True)
    assert replay(read_record(lines)) is None
    assert str(story(read_record(lines), 0, 2)[-1]).endswith("is DONE: its result is recorded")
