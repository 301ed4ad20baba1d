"""What user code can do in its process, row by row, on the local backend."""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest

from thornback.pool import SeenBy, WorkerSpec
from thornback.pool.on_local import LocalBackend
from thornback.pool.testing import (
    USER_CODE,
    Bench,
    UserCodeRow,
    UserCodeTrial,
    check_user_code,
)
from thornback.pool.usercode import UserProgram

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"], scope="module")
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@asynccontextmanager
async def local_bench() -> AsyncIterator[Bench]:
    yield Bench(
        backend=LocalBackend(),
        node="here",
        handle=None,
        spec=WorkerSpec(slots=2),
        ok=b"",
        fails=b"",
        blocks=b"",
        crash=lambda pid: os.kill(pid, signal.SIGKILL),
    )


@pytest.fixture(scope="module")
async def trial(anyio_backend: str) -> AsyncIterator[UserCodeTrial]:
    async with local_bench() as bench, UserCodeTrial(bench) as trial:
        yield trial


BY_NAME = {row.name: row for row in USER_CODE}
ON_TRIO = (
    "raise",
    "exception-group",
    "many-children-left",
    "setup-raises",
    "os-exit",
    "late-asleep",
)
"""What a rank process does knows nothing of the driver's loop. So under the other loop it is enough
to see that each kind of outcome arrives: whoever saw it, whatever it holds, and a long one."""


@pytest.mark.parametrize("anyio_backend", ["trio"], indirect=True, scope="module")
@pytest.mark.parametrize("name", ON_TRIO)
async def test_each_kind_of_outcome_arrives_under_the_other_loop(
    trial: UserCodeTrial, name: str
) -> None:
    await trial.check(BY_NAME[name])


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True, scope="module")
@pytest.mark.parametrize("row", USER_CODE, ids=lambda row: row.name)
async def test_it_comes_back_as_the_table_says(trial: UserCodeTrial, row: UserCodeRow) -> None:
    outcome = await trial.check(row)
    if row.name == "exception-group":
        assert outcome.error is not None
        assert [member.message for member in outcome.error.members] == ["one", "[Errno 28] full"]
    if row.name.startswith("late") and "grandchildren" not in row.name:
        assert 0.5 <= outcome.ran_s < 10.0


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("raise", {"error_type": "builtins.KeyError"}),
        ("raise", {"words": "good rank"}),
        ("raise", {"seen_by": SeenBy.PROCESS}),
        ("raise", {"in_setup": True}),
        ("raise", {"same_process": False}),
        ("os-exit", {"attributes": {"exit_code": 8}}),
        ("os-exit", {"same_process": True}),
        ("os-exit", {"ok": True}),
        ("grandchildren-left", {"processes": 2}),
    ],
)
async def test_a_wrong_row_is_noticed(
    trial: UserCodeTrial, name: str, wrong: dict[str, Any]
) -> None:
    with pytest.raises(AssertionError, match=name):
        await trial.check(attrs.evolve(BY_NAME[name], **wrong))


async def test_rows_have_names_of_their_own_and_travel_by_reference() -> None:
    assert len(BY_NAME) == len(USER_CODE)
    assert all(len(pickle.dumps(UserProgram(row.name))) < 200 for row in USER_CODE)


async def test_the_suite_needs_no_framework() -> None:
    # All rows are tested one by one above: here only that the suite enters, opens and leaves.
    with pytest.raises(RuntimeError, match="no bench"):
        await check_user_code(no_bench)


@asynccontextmanager
async def no_bench() -> AsyncIterator[Bench]:
    raise RuntimeError("no bench")
    yield  # a generator all the same
