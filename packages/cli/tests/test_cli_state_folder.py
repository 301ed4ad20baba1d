"""Which folders are taken for a state, and which are removed."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from thornback.cli.state_folder import NotAState, check_usable, remove


def make_state(folder: Path) -> Path:
    (folder / "control").mkdir(parents=True)
    (folder / "control" / "claim-000001-x").write_text("{}")
    (folder / "parts").mkdir()
    return folder


def test_a_new_an_empty_and_an_earlier_state_are_usable(tmp_path: Path) -> None:
    check_usable(tmp_path / "new")
    check_usable(tmp_path)
    check_usable(make_state(tmp_path / "earlier"))


def test_a_state_is_removed_whole(tmp_path: Path) -> None:
    state = make_state(tmp_path / "state")
    assert remove(state)
    assert not state.exists()
    assert not remove(state)


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for refuse in (check_usable, remove):
        with pytest.raises(NotAState, match="no control/ folder"):
            refuse(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_file_and_a_link_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(make_state(tmp_path / "state"))
    for name in ("file", "link"):
        with pytest.raises(NotAState, match="give another --state"):
            remove(tmp_path / name)
    assert (tmp_path / "state" / "control").is_dir()


def test_a_state_in_use_is_not_pulled_from_under_its_run(tmp_path: Path) -> None:
    state = make_state(tmp_path / "state")
    with (state / "control" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(NotAState, match="in use by another run"):
            remove(state)
        assert (state / "parts").is_dir()
    assert remove(state)
