"""The record of a run: what a user gets with `Executor(record=...)`."""

from __future__ import annotations

import gzip
import logging
from pathlib import Path

import pytest

from thornback.executor import Job, RankContext, Stage
from thornback.executor.plan import RunPlan, Settings
from thornback.executor.recording import deciding, record_file
from thornback.faults import Fault, FaultKind, Origin
from thornback.scheduler.commands import Dispatch, OpenGang
from thornback.scheduler.events import RunStarted
from thornback.scheduler.recorder import MomentKind, read_record, replay, story


def work(ctx: RankContext) -> int:
    return ctx.rank


def plan() -> RunPlan:
    stages = [Stage("clean", work, ranks=2, retries=1), Stage("total", work, after="clean")]
    return RunPlan(Job("j", stages), Settings(state_url="/state", cwd="/", seed=1))


def test_nothing_stands_between_when_nothing_is_recorded() -> None:
    made = plan()
    scheduler, decide = deciding(made, made.scheduler_stages(made.policies()), None)
    assert decide == scheduler.handle


@pytest.mark.parametrize("name", ["deep/er/run.jsonl", "run.jsonl.gz"])
def test_a_run_is_recorded_with_the_faults_and_names_of_its_stages(
    tmp_path: Path, name: str
) -> None:
    made, path = plan(), tmp_path / name
    fault = Fault(
        kind=FaultKind.APPLICATION,
        origin=Origin.RANK,
        rule="user code",
        error_type="builtins.ValueError",
        message="bad",
    )
    with record_file(str(path)) as record:
        scheduler, decide = deciding(made, made.scheduler_stages(made.policies()), record)
        opening = decide(RunStarted(), 0.0)[0]
        assert isinstance(opening, OpenGang)
        dispatch = decide(opening.ready("n1"), 1.0)[0]
        assert isinstance(dispatch, Dispatch)
        decide(dispatch.failed(0, fault, "n1"), 2.0)
        assert scheduler.counts(0).backoff == 1
        if not name.endswith(".gz"):
            assert path.read_text().count("\n") == 4, "a line is not in the file at once"
    data = path.read_bytes()
    text = (gzip.decompress(data) if name.endswith(".gz") else data).decode()
    assert replay(read_record(text.splitlines(keepends=True))) is None
    record_again = read_record(text.splitlines(keepends=True))
    assert [each.name for each in record_again.header.plans] == ["clean", "total"]
    failed = next(m for m in story(record_again, 0, 0) if m.kind is MomentKind.FAILED)
    assert failed.fault == str(fault)
    assert '"error_type":"builtins.ValueError"' in text


def test_a_disk_that_is_full_harms_only_the_record(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    made = plan()
    with caplog.at_level(logging.WARNING), record_file(str(full)) as record:
        _, decide = deciding(made, made.scheduler_stages(made.policies()), record)
        assert [type(command) for command in decide(RunStarted(), 0.0)] == [OpenGang] * 2
    assert "the record in /dev/full ends here" in caplog.text
    assert caplog.text.count("ends here") == 1


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError), record_file(str(tmp_path)):
        pass
