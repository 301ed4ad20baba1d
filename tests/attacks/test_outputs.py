"""A rank, or a record that somebody has forged, names files that are not its own to publish.

Nothing but what an attempt has staged is ever moved, it goes to no place that the run does not
name, and an honest user's run succeeds all the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from thornback.executor import Executor, Job, RunReport, Stage
from thornback.executor.journal.segments import encode_record
from thornback.executor.journal.steps import run_blocking
from thornback.executor.journal.store import open_store
from thornback.executor.journal.terms import flush, parse
from thornback.executor.ports import Completion
from thornback.faults import FaultKind

EPOCH = "000001.000000777"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's home with a secret in it; the current folder is another one."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "id_rsa").write_text("secret")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


def run(fn: Callable[..., Any], state: Path, **stage: Any) -> RunReport:
    executor = Executor.on_local(state=str(state), cpus=1)
    return executor.run(Job("job", [Stage("stage", fn, **stage)]), check=False)


def everything_below(folder: Path) -> dict[str, str]:
    """Return all files of a folder with their content, except a state's own and logs."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not {"control", "logs"} & set(path.parts):
            found[str(path.relative_to(folder))] = path.read_text()
    return found


# -- ranks -----------------------------------------------------------------------------------------


def test_rank_that_publishes_what_it_did_not_stage_fails_alone(home: Path, tmp_path: Path) -> None:
    """Each item is a way to name another file; only the honest rank's output appears."""
    secret = str(home / "id_rsa")

    def publish(ctx: Any, way: str) -> None:
        with ctx.publish(f"out/{way}.txt") as staged, open(staged, "w") as file:
            file.write("honest")
        pairs, folder = ctx._outputs, os.path.dirname(staged)
        final = pairs[0][1]
        if way == "absolute":
            pairs[:] = [(secret, final)]
        elif way == "climbing":
            pairs[:] = [(f"{folder}/../../../../../../home/id_rsa", final)]
        elif way == "another rank's":
            pairs[:] = [(f"{os.path.dirname(folder)}/0/0.txt", final)]
        elif way == "another assignment's":
            other = folder.replace(ctx.epoch, "000001.000000999")
            os.makedirs(other)
            with open(f"{other}/0.txt", "w") as file:
                file.write("stolen")
            pairs[:] = [(f"{other}/0.txt", final)]
        elif way == "link":
            os.unlink(staged)
            os.symlink(secret, staged)
        elif way == "linked folder":
            os.unlink(staged)
            os.rmdir(folder)
            os.symlink(os.path.dirname(secret), folder)
            pairs[:] = [(f"{folder}/id_rsa", final)]
        elif way == "pipe":
            os.unlink(staged)
            os.mkfifo(staged)
        elif way == "folder":
            os.unlink(staged)
            os.mkdir(staged)
        elif way == "relative target":
            pairs[:] = [(staged, "out/relative.txt")]
        elif way == "target in the record":
            state = folder.partition("/staging/")[0]
            pairs[:] = [(staged, f"{state}/control/base-000009-000000")]
        elif way == "target in linked record":
            state = folder.partition("/staging/")[0]
            os.symlink(f"{state}/control", f"{os.path.dirname(final)}/innocent")
            pairs[:] = [(staged, f"{os.path.dirname(final)}/innocent/base-000009-000000")]
        elif way == "chained target":
            pairs[:] = [(staged, "simplecache::memory://x/y")]
        elif way == "zero byte":
            pairs[:] = [(f"{staged}\0", final)]

    ways = [
        *("honest", "absolute", "climbing", "another rank's", "another assignment's", "link"),
        *("linked folder", "pipe", "folder", "relative target", "target in the record"),
        *("target in linked record", "chained target", "zero byte"),
    ]
    report = run(publish, tmp_path / "runs" / "state", items=ways, retries=3, fail_fast=None)
    assert report.stages["stage"].done == 1
    failed = {ended.ranks[0].start: ended for ended in report.given_up}
    assert {ways[rank] for rank in failed} == set(ways[1:])
    for rank, ended in failed.items():
        assert ended.last is not None
        assert ended.last.fault.kind is FaultKind.APPLICATION, ways[rank]
        assert ended.last.attempt == 1, f"{ways[rank]} was tried again"
    assert everything_below(home) == {"id_rsa": "secret"}
    assert everything_below(tmp_path / "work") == {"out/honest.txt": "honest"}
    assert not (tmp_path / "runs" / "state" / "control" / "base-000009-000000").exists()


def test_rank_whose_staged_file_is_lost_runs_again(tmp_path: Path) -> None:
    out = tmp_path / "out.txt"

    def publish(ctx: Any) -> None:
        with ctx.publish(str(out)) as staged, open(staged, "w") as file:
            file.write(f"attempt {ctx.attempt}")
        lost = tmp_path / "lost"
        if not lost.exists():
            lost.touch()
            os.unlink(staged)

    report = run(publish, tmp_path / "state")
    assert report.state == "succeeded"
    assert [attempt.fault.kind for attempt in report.attempts] == [FaultKind.RESOURCE]
    assert "is not there: it was removed" in report.attempts[0].fault.message
    assert out.exists()


def test_second_rank_with_a_final_name_is_refused_and_named(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "real")
    names = ["real/x", "real/x", "real//./x", "linked/x"]

    def publish(ctx: Any, name: str) -> None:
        with ctx.publish(f"{tmp_path}/{name}") as staged, open(staged, "w") as file:
            file.write(str(ctx.rank))

    report = run(publish, tmp_path / "state", items=names, retries=5, fail_fast=None)
    assert sorted(ended.ranks[0].start for ended in report.given_up) == [1, 2, 3]
    for ended in report.given_up:
        assert ended.last is not None
        assert "stage 'stage', rank 0" in ended.last.fault.message
        assert f"stage 'stage', rank {ended.ranks[0].start}" in ended.last.fault.message
        assert ended.last.attempt == 1, "it was tried again"
    assert (tmp_path / "real" / "x").read_text() == "0"


def test_final_name_of_an_earlier_run_is_known(tmp_path: Path) -> None:
    """In a state that was resumed and compacted since; the rank itself may publish it again."""
    state, flag = tmp_path / "state", tmp_path / "flag"

    def publish(ctx: Any) -> None:
        if ctx.rank and not flag.exists():
            raise RuntimeError("only rank 0 in the first run")
        with ctx.publish(f"{tmp_path}/x") as staged, open(staged, "w") as file:
            file.write(str(ctx.rank))

    assert run(publish, state, ranks=2).stages["stage"].done == 1
    flag.touch()
    for _ in range(2):
        (ended,) = run(publish, state, ranks=2).given_up
        assert ended.last is not None
        assert "published by stage 'stage', rank 0," in ended.last.fault.message
    assert (tmp_path / "x").read_text() == "0"


def test_rank_that_publishes_twice_under_one_name_keeps_the_last(tmp_path: Path) -> None:
    def publish(ctx: Any) -> None:
        for text in ("first", "last"):
            with ctx.publish(f"{tmp_path}/x") as staged, open(staged, "w") as file:
                file.write(text)

    assert run(publish, tmp_path / "state").state == "succeeded"
    assert (tmp_path / "x").read_text() == "last"


# -- forged records --------------------------------------------------------------------------------


def forge(state: Path, outputs: dict[int, tuple[str, str]]) -> None:
    """Put a segment into the state as its last driver would have, with an output of each rank."""
    store = open_store(str(state))
    names = [name for name in parse(store.list()) if name.kind in ("base", "seg")]
    term, number = names[-1].term, names[-1].n + 1
    records = [
        Completion(
            stage="stage",
            ranks=(range(rank, rank + 1),),
            state="done",
            epoch=EPOCH,
            results={rank: '"forged"'},
            outputs=[pair],
        )
        for rank, pair in outputs.items()
    ]
    lines = [encode_record(record) for record in records]
    run_blocking(store, flush(str(state), term, number, number - 1, lines))


def test_forged_record_moves_and_places_nothing(home: Path, tmp_path: Path) -> None:
    state, work = tmp_path / "runs" / "state", tmp_path / "work"

    def publish(ctx: Any) -> str:
        if ctx.rank >= 1 and not (tmp_path / "second").exists():
            raise RuntimeError("the first run does rank 0 only")
        with ctx.publish(f"part-{ctx.rank}.txt") as staged, open(staged, "w") as file:
            file.write("honest")
        return "honest"

    ranks = 9
    assert run(publish, state, ranks=ranks).stages["stage"].done == 1
    staging = state / "staging" / "stage" / EPOCH
    for rank in range(1, ranks):
        (staging / str(rank)).mkdir(parents=True)
    (staging / "1" / "0").symlink_to(home / "id_rsa")
    (staging / "2").rmdir()
    (staging / "2").symlink_to(home)
    (staging / "3" / "0").write_text("planted")
    (staging / "4" / "0").write_text("planted")
    (staging / "5" / "0").write_text("planted")
    (work / "link").symlink_to(home)
    (staging / "8" / "0").write_text("planted")
    forge(
        state,
        {
            1: (f"{staging}/1/0", f"{work}/stolen-1"),
            2: (f"{staging}/2/id_rsa", f"{work}/stolen-2"),
            3: (f"{staging}/3/0", f"{home}/authorized_keys"),
            4: (f"{staging}/4/0", f"{work}/link/authorized_keys"),
            5: (f"{staging}/5/0", f"{work}/../home/authorized_keys"),
            6: (str(home / "id_rsa"), f"{work}/stolen-6"),
            7: (f"{staging}/6/0", f"{work}/stolen-7"),
            8: (f"{staging}/8/0", f"{state}/control/claim-000099-x"),
        },
    )
    (tmp_path / "second").touch()
    report = run(publish, state, ranks=ranks)
    assert report.state == "succeeded"
    assert everything_below(home) == {"id_rsa": "secret"}
    assert everything_below(work) == {f"part-{rank}.txt": "honest" for rank in range(ranks)}
    assert set(report.results("stage").values()) == {"honest"}
    told = "\n".join(report.warnings)
    assert "their ranks run again" in told


def test_forged_record_of_hostile_shapes_refuses_nobody(tmp_path: Path) -> None:
    def publish(ctx: Any) -> str:
        return "honest"

    state = tmp_path / "state"
    assert run(publish, state, ranks=4).state == "succeeded"
    odd = [("", ""), ("\0", "\0"), ("x", "simplecache::s3://b"), ("s3://b/staging/s/1.2/1/0", "/x")]
    forge(state, dict(enumerate(odd)))
    report = run(publish, state, ranks=4)
    assert report.state == "succeeded"
    assert report.warnings


def test_declared_places_let_a_resumed_run_promote(tmp_path: Path, home: Path) -> None:
    state, out = tmp_path / "runs" / "state", tmp_path / "data"

    def publish(ctx: Any) -> str:
        if ctx.rank == 1:
            raise RuntimeError("this rank is recorded, or fails")
        return "ran"

    assert run(publish, state, ranks=2).state == "failed"
    staged = state / "staging" / "stage" / EPOCH / "1" / "0"
    staged.parent.mkdir(parents=True)
    staged.write_text("recorded")
    forge(state, {1: (str(staged), f"{out}/x")})
    job = Job("job", [Stage("stage", publish, ranks=2)], outputs=[str(out)])
    report = Executor.on_local(state=str(state), cpus=1).run(job)
    assert dict(report.results("stage")) == {0: "ran", 1: "forged"}
    assert (out / "x").read_text() == "recorded"
