"""What a rank changes in its process is undone."""

from __future__ import annotations

import multiprocessing
import os
import time
import warnings
from pathlib import Path

import pytest

from thornback.datatrove.surroundings import undone


def test_environment_and_folder_are_as_before_also_after_an_exception(tmp_path: Path) -> None:
    before, folder = dict(os.environ), os.getcwd()

    def disorder() -> None:
        os.environ["NEW"] = "1"
        os.environ.pop("PATH")
        os.chdir(tmp_path)
        raise KeyError("x")

    with pytest.raises(KeyError), undone():
        disorder()
    assert (dict(os.environ), os.getcwd()) == (before, folder)


def test_a_folder_that_is_gone_is_told_and_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    with undone():
        os.chdir(tmp_path)
        folder.rmdir()
    assert "cannot go back to" in capsys.readouterr().err


def sleeper() -> multiprocessing.process.BaseProcess:
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: threads of other tests
        process.start()
    return process


def test_children_that_are_left_end_and_those_from_before_go_on() -> None:
    old = sleeper()
    with undone():
        new = sleeper()
    assert not new.is_alive()
    assert new.exitcode is not None
    assert old.is_alive()
    assert multiprocessing.active_children() == [old]
    old.kill()
    old.join()


def test_a_pool_held_by_the_frames_of_an_exception_ends_in_order() -> None:
    threads: list[object] = []

    def fails() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pool = multiprocessing.get_context("fork").Pool(1)
        threads.append(pool._worker_handler)  # type: ignore[attr-defined]  # to see its end
        assert pool.map(len, ["a"]) == [1]
        raise ValueError("with an open pool")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        with pytest.raises(ValueError, match="open pool") as caught, undone():
            fails()
    assert multiprocessing.active_children() == []
    assert not threads[0].is_alive()  # type: ignore[attr-defined]  # a thread
    assert "in fails" in "".join(map(str, caught.traceback))


def test_a_forked_copy_that_comes_out_of_the_body_ends_nobody() -> None:
    mine, left = os.getpid(), list[multiprocessing.process.BaseProcess]()

    def forks() -> None:
        with undone():
            left.append(sleeper())
            copy = os.fork()
            if copy == 0:
                return
            _, status = os.waitpid(copy, 0)
            assert os.waitstatus_to_exitcode(status) == 0
            assert left[0].exitcode is None
            assert (
                os.waitid(os.P_PID, left[0].pid or 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
            )

    try:
        forks()
    finally:
        if os.getpid() != mine:  # also if it failed: it must not go on with the tests
            os._exit(0)
    assert left[0].exitcode is not None
