"""Options of the file system reach every place where a state is opened, and no message."""

from __future__ import annotations

import logging
import uuid
from typing import Any, ClassVar

import anyio
import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from thornback.executor import Executor
from thornback.executor.journal.filejournal import FileJournal, JournalError, read_run
from thornback.executor.journal.store import open_store
from thornback.executor.journal.testing import done, job
from thornback.executor.logs import LogStore
from thornback.pool import LogChunk

SECRET = "s3cr3t"
OPTIONS = {"key": SECRET}


class Locked(MemoryFileSystem):  # type: ignore[misc]  # fsspec ships no types
    """A memory file system that wants a key."""

    protocol = "locked"
    listings: ClassVar[list[object]] = []

    def __init__(self, *args: Any, key: str = "", **options: Any) -> None:
        super().__init__(*args, **options)
        if key != SECRET:
            raise ValueError("who are you?")
        type(self).listings.append(options.get("use_listings_cache"))

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        stripped: str = super()._strip_protocol(path.replace("locked://", "memory://"))
        return stripped


@pytest.fixture
def locked() -> str:
    fsspec.register_implementation("locked", Locked, clobber=True)
    Locked.listings.clear()
    return f"locked://{uuid.uuid4().hex}"


def _content(url: str) -> dict[str, bytes]:
    fs, path = fsspec.url_to_fs(url, **OPTIONS)
    return {name: fs.cat_file(name) for name in fs.find(path)}


async def _run(url: str) -> None:
    async with FileJournal(url, storage_options=OPTIONS) as journal:
        await journal.open(job(), on_mismatch="refuse")
        await journal.commit([done("a", 1)])
        assert sorted(await journal.results("a")) == [1]


def test_a_journal_is_written_and_read_with_them(
    locked: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    anyio.run(_run, locked)
    assert Locked.listings
    recorded = read_run(locked, storage_options=OPTIONS)
    assert recorded.done == {"a": (range(1, 2),)}
    assert sorted(recorded.results("a")) == [1]
    assert SECRET not in repr(recorded) + caplog.text
    content = b"".join(_content(locked).values())
    assert content
    assert SECRET.encode() not in content


def test_without_them_it_is_said_what_was_expected(locked: str) -> None:
    with pytest.raises(JournalError, match=r"who are you\?.*storage_options"):
        read_run(locked)


def test_options_that_the_file_system_does_not_take_are_refused_without_their_values() -> None:
    class Narrow(MemoryFileSystem):  # type: ignore[misc]  # fsspec ships no types
        protocol = "narrow"

        def __init__(self) -> None:
            super().__init__()

    fsspec.register_implementation("narrow", Narrow, clobber=True)
    with pytest.raises(JournalError, match="storage_options") as caught:
        open_store("narrow://x", OPTIONS)
    assert SECRET not in str(caught.value)


def test_nobody_else_s_listing_answers_whatever_the_options_say(locked: str) -> None:
    options = {**OPTIONS, "skip_instance_cache": False, "use_listings_cache": True}
    open_store(locked, options)
    open_store(locked, options)
    assert Locked.listings == [False, False]  # twice: the second is not the first one again


def test_logs_are_stored_with_them(locked: str) -> None:
    chunk = LogChunk(gang=3, log="/node/a.log", offset=0, data=b"hello")

    async def main() -> None:
        async with LogStore(locked, flush_s=20.0, storage_options=OPTIONS) as store:
            store.put([chunk])

    anyio.run(main)
    (content,) = _content(locked).values()
    assert content == b"hello"


def test_an_executor_does_not_show_them() -> None:
    assert SECRET not in repr(Executor.on_local(state="x", storage_options=OPTIONS))
