"""Which folders are taken for a state of the demo, and what is removed of them."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest
from click.testing import CliRunner

from thornback.cli.__main__ import main
from thornback.cli.state_folder import MARKER, NotAState, check_usable, mark, remove

BASE = '{"format":"thornback-journal","version":1,"kind":"base","identity":{"job":"%s"}}\n'


def make_state(folder: Path) -> Path:
    mark(folder)
    for name in ("control", "parts", "traces"):
        (folder / name).mkdir()
        (folder / name / "file").write_text("")
    return folder


def make_old_state(folder: Path, job: str) -> Path:
    """As a demo left it that knew no marker, or another job."""
    (folder / "control").mkdir(parents=True)
    (folder / "control" / "base-000001-000000").write_text(BASE % job)
    (folder / "parts").mkdir()
    return folder


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_check_usable_new_empty_or_earlier_state_accepts(tmp_path: Path) -> None:
    check_usable(tmp_path / "new")
    check_usable(tmp_path)
    check_usable(make_state(tmp_path / "earlier"))
    check_usable(make_old_state(tmp_path / "old", "demo"))


def test_remove_state_removes_the_folder(tmp_path: Path) -> None:
    for state in (make_state(tmp_path / "state"), make_old_state(tmp_path / "old", "demo")):
        assert remove(state)
        assert not state.exists()
        assert not remove(state)


def test_remove_state_with_other_files_keeps_them(tmp_path: Path) -> None:
    state = make_state(tmp_path / "state")
    (state / "thesis.tex").write_text("years of work")
    (state / "photos").mkdir()
    assert remove(state)
    assert files_in(state) == {"thesis.tex", "photos"}


@pytest.mark.parametrize("name", ["thesis.tex", "control/notes.txt", "control/base-000001-000000"])
def test_remove_folder_of_others_refuses_and_keeps_it(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("years of work")
    before = files_in(tmp_path)
    for refuse in (check_usable, remove):
        with pytest.raises(NotAState, match="not the state of an earlier demo"):
            refuse(tmp_path)
    assert files_in(tmp_path) == before


def test_remove_state_of_another_job_refuses_and_keeps_it(tmp_path: Path) -> None:
    state = make_old_state(tmp_path / "state", "nightly")
    with pytest.raises(NotAState, match=MARKER):
        remove(state)
    assert (state / "control" / "base-000001-000000").exists()


def test_remove_file_or_link_refuses(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(make_state(tmp_path / "state"))
    for name in ("file", "link"):
        with pytest.raises(NotAState, match="give another --state"):
            remove(tmp_path / name)
    assert (tmp_path / "state" / "control" / "file").exists()


@pytest.mark.parametrize("name", ["parts", "control"])
def test_remove_linked_subfolder_refuses_and_keeps_both(tmp_path: Path, name: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "thesis.tex").write_text("years of work")
    state = tmp_path / "state"
    mark(state)
    (state / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NotAState, match="is a link"):
        remove(state)
    assert (tmp_path / "elsewhere" / "thesis.tex").read_text() == "years of work"


def test_remove_link_inside_a_subfolder_keeps_its_target(tmp_path: Path) -> None:
    target = tmp_path / "thesis.tex"
    target.write_text("years of work")
    state = make_state(tmp_path / "state")
    (state / "parts" / "link").symlink_to(target)
    assert remove(state)
    assert target.read_text() == "years of work"


def test_remove_state_in_use_refuses(tmp_path: Path) -> None:
    state = make_state(tmp_path / "state")
    with (state / "control" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(NotAState, match="in use by another run"):
            remove(state)
        assert (state / "parts").is_dir()
    assert remove(state)


def test_mark_unwritable_folder_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotAState, match="give another --state"):
        mark(tmp_path / "file" / "state")


def test_demo_fresh_on_a_project_with_control_removes_nothing(tmp_path: Path) -> None:
    """The case that lost work: `--fresh` in a folder that happens to have a folder `control`."""
    for name in ("control/pid.py", "src/main.py", "parts/list.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("years of work")
    before = files_in(tmp_path)
    arguments = ["demo", "--backend", "local", "--fresh", "--state", str(tmp_path)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "not the state of an earlier demo" in result.stderr
    assert files_in(tmp_path) == before
