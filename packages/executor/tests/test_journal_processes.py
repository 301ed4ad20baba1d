"""Real processes: a driver that is killed, a driver that lives, and what the operating system tells
of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import attrs
import pytest

from thornback.executor.journal.filejournal import FileJournal, HeldByAnother
from thornback.executor.journal.holder import Holder, certainly_gone, this_process
from thornback.executor.journal.store import open_store
from thornback.executor.journal.terms import claim_name
from thornback.executor.journal.testing import done, job

HOLDER = """
import sys, anyio
from thornback.executor.journal.filejournal import FileJournal
from thornback.executor.journal.testing import done, job

async def main():
    async with FileJournal(sys.argv[1]) as journal:
        await journal.open(job(), on_mismatch="refuse")
        for rank in range(5):
            await journal.commit([done("a", rank)])
            print("recorded", rank, flush=True)
        await anyio.to_thread.run_sync(sys.stdin.read)

anyio.run(main)
"""


@contextmanager
def holder_of(state: str) -> Iterator[subprocess.Popen[str]]:
    """Run a driver that has recorded ranks 0 to 4 and goes on to hold the state."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, state],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        try:
            assert [process.stdout.readline() for _ in range(5)] == [
                f"recorded {rank}\n" for rank in range(5)
            ]
            yield process
        finally:
            process.kill()


async def never(delay_s: float) -> None:
    """Let beats never be due; watching would hang."""
    await anyio.sleep_forever()


async def opened(state: str) -> tuple[int, dict[str, tuple[range, ...]]]:
    async with FileJournal(state, sleep=never) as journal:
        with anyio.fail_after(20):
            found = await journal.open(job(), on_mismatch="refuse")
            await journal.commit([done("a", 50)])
        return found.term, dict(found.done)


def test_after_kill_9_the_next_driver_opens_at_once_and_sees_everything(tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    with holder_of(state) as process:
        process.kill()
        process.wait(20)
    assert anyio.run(opened, state) == (2, {"a": (range(0, 5),)})
    assert anyio.run(opened, state) == (3, {"a": (range(0, 5), range(50, 51))})


def test_a_living_driver_is_not_disturbed(tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    with holder_of(state) as process:
        with pytest.raises(HeldByAnother) as caught:
            anyio.run(opened, state)
        assert caught.value.pid == process.pid
        assert caught.value.host == os.uname().nodename
        assert f"process {process.pid}" in str(caught.value)
        process.communicate("", timeout=20)
        assert process.returncode == 0
    assert anyio.run(opened, state) == (2, {"a": (range(0, 5),)})


def test_without_a_lock_a_dead_process_is_known_by_its_id(tmp_path: Path) -> None:
    """As in an object store, where the same machine starts the job again."""
    me = this_process(0, locked=False)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        other = attrs.evolve(me, id="other", pid=process.pid)
        assert not certainly_gone(other, me)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert certainly_gone(other, me)  # dead, and not yet reaped by its parent
    assert certainly_gone(other, me)
    state = "memory://test-journal-processes"
    open_store(state).put(claim_name(1, "other"), other.encode())
    assert anyio.run(opened, state)[0] == 2


@pytest.mark.parametrize(
    ("other", "gone"),
    [
        ({}, False),
        ({"boot": "another"}, False),
        ({"pids": "another", "pid": 2**22 + 1}, False),
        ({"pid": 2**22 + 1}, True),
        ({"boot": "", "pid": 2**22 + 1}, False),
        ({"locked": True}, True),
        ({"locked": True, "boot": "another"}, False),
    ],
)
def test_who_is_certainly_gone(other: dict[str, object], gone: bool) -> None:
    me = Holder(id="me", host="h", boot="b", pids="n", pid=os.getpid(), locked=True)
    fields: dict[str, object] = {**attrs.asdict(me), "id": "other", "locked": False, **other}
    assert certainly_gone(Holder(**fields), me) is gone  # type: ignore[arg-type]  # as from JSON


def test_a_lock_that_only_the_other_took_says_nothing() -> None:
    me = Holder(id="me", boot="b", pids="n", pid=os.getpid(), locked=False)
    assert not certainly_gone(attrs.evolve(me, id="other", locked=True), me)


def test_claims_that_cannot_be_read_are_of_unknown_holders() -> None:
    for data in (b"", b"\xff", b"[]", b'{"id": 1, "later": 2}', b"3"):
        assert Holder.decode(data) == Holder(id="")
    me = this_process(1_700_000_000_000_000_000, locked=True)
    assert Holder.decode(me.encode()) == me
    assert me.since == "2023-11-14T22:13:20+00:00"
