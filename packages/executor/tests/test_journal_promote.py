"""Published outputs come to their final place once, whatever was done before."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from thornback.executor.folders import make_folders
from thornback.executor.journal.filejournal import JournalError
from thornback.executor.journal.promote import Mover, Unpromotable, is_final, temporary_name

STAGED = "staging/s/000001.000000002/3/0.x"


def make(path: str, content: bytes = b"new") -> str:
    with fsspec.open(path, "wb", auto_mkdir=True) as file:
        file.write(content)
    return path


def content(path: str) -> bytes | None:
    fs, inside = fsspec.core.url_to_fs(path)
    return bytes(fs.cat_file(inside)) if fs.exists(inside) else None


def roots(tmp_path: Path) -> dict[str, str]:
    return {
        "path": str(tmp_path),
        "memory": f"memory://{uuid.uuid4().hex}",
    }


@pytest.mark.parametrize("to", ["path", "memory"])
@pytest.mark.parametrize("of", ["path", "memory"])
def test_promotion_is_idempotent(tmp_path: Path, of: str, to: str) -> None:
    state = roots(tmp_path)[of]
    staged = make(f"{state}/{STAGED}")
    final = f"{roots(tmp_path)[to]}/a/b/x"
    promote_all = Mover(state=state).promote_all
    promote_all([(staged, final)])
    assert (content(staged), content(final)) == (None, b"new")
    promote_all([(staged, final)])
    assert content(final) == b"new"
    make(staged, b"newer")
    promote_all([(staged, final)])
    assert (content(staged), content(final)) == (None, b"newer")
    leftovers = list(tmp_path.rglob("*.tmp"))
    assert leftovers == []


@pytest.mark.parametrize("kind", ["path", "memory"])
def test_a_lost_output_is_named(tmp_path: Path, kind: str) -> None:
    root = roots(tmp_path)[kind]
    with pytest.raises(JournalError) as caught:
        Mover(state=root).promote_all([(f"{root}/{STAGED}", f"{root}/final")])
    assert f"{root}/{STAGED}" in str(caught.value)
    assert f"{root}/final" in str(caught.value)


@pytest.mark.parametrize("of", ["path", "memory"])
@pytest.mark.parametrize("through_link", [False, True])
def test_promotion_never_replaces_a_special_file(
    tmp_path: Path, of: str, through_link: bool
) -> None:
    """Devices, pipes and sockets belong to the machine, and a record may be forged."""
    state = roots(tmp_path)[of]
    staged = make(f"{state}/{STAGED}")
    pipe, final = tmp_path / "pipe", tmp_path / "final"
    os.mkfifo(pipe)
    if through_link:
        final.symlink_to(pipe)
    else:
        final = pipe
    with pytest.raises(Unpromotable, match="not a regular file"):
        Mover(state=state).promote_all([(staged, str(final))])
    assert pipe.is_fifo()
    assert final.is_symlink() is through_link
    assert content(staged) == b"new"


def test_across_file_systems(tmp_path: Path) -> None:
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("this machine has one file system only")
    final = other / uuid.uuid4().hex / "x"
    staged = make(f"{tmp_path}/{STAGED}")
    promote_all = Mover(state=str(tmp_path)).promote_all
    try:
        promote_all([(staged, str(final))])
        assert final.read_bytes() == b"new"
        assert not Path(staged).exists()
        promote_all([(staged, str(final))])
        assert [p.name for p in final.parent.iterdir()] == ["x"]
    finally:
        final.unlink(missing_ok=True)
        final.parent.rmdir()


def test_half_made_copy_of_a_failed_promotion_is_removed(tmp_path: Path) -> None:
    """Across file systems: what is copied never has the final name before it is whole."""
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("this machine has one file system only")
    folder = other / uuid.uuid4().hex
    final = folder / ("x" * 255)  # a longer name is not possible, so the copy's is another
    final.mkdir(parents=True)
    staged = make(f"{tmp_path}/{STAGED}")
    mover = Mover(state=str(tmp_path), term=3)
    try:
        with pytest.raises(JournalError, match="IsADirectoryError"):
            mover.promote_all([(staged, str(final))])
        assert list(folder.iterdir()) == [final]
        assert Path(staged).exists()
        final.rmdir()
        mover.promote_all([(staged, str(final))])
        assert final.read_bytes() == b"new"
        assert list(folder.iterdir()) == [final]
    finally:
        shutil.rmtree(folder)


def test_only_half_made_copies_of_that_output_and_these_terms_are_cleaned(tmp_path: Path) -> None:
    staged, final = f"{tmp_path}/{STAGED}", f"{tmp_path}/x"
    mover = Mover(state=str(tmp_path), term=5)
    names = [temporary_name(staged, final, term) for term in (2, 3, 4, 5)]
    for name in (*names, temporary_name(staged, f"{final}2", 3)):
        (tmp_path / name).touch()
    mover.clean(staged, final, range(2, 5))
    assert {path.name for path in tmp_path.iterdir()} == {
        names[3],
        temporary_name(staged, f"{final}2", 3),
    }


@pytest.mark.parametrize("to", ["path", "memory"])
@pytest.mark.parametrize("kind", ["link", "linked folder", "pipe", "folder"])
def test_what_is_no_regular_file_in_staging_is_never_moved(
    tmp_path: Path, kind: str, to: str
) -> None:
    secret = tmp_path / "home" / "0.x"
    secret.parent.mkdir()
    secret.write_text("secret")
    staged = tmp_path / "state" / STAGED
    staged.parent.parent.mkdir(parents=True)
    if kind == "linked folder":
        staged.parent.symlink_to(secret.parent)
    else:
        staged.parent.mkdir()
    if kind == "link":
        staged.symlink_to(secret)
    elif kind == "pipe":
        os.mkfifo(staged)
    elif kind == "folder":
        staged.mkdir()
    final = f"{roots(tmp_path)[to]}/final"
    with pytest.raises(JournalError, match="cannot be promoted"):
        Mover(state=f"{tmp_path}/state").promote_all([(str(staged), final)])
    assert secret.read_text() == "secret"
    assert content(final) is None


@pytest.mark.parametrize("staged", ["/etc/passwd", "", "/s/staging/a/1.2/../3/x"])
def test_path_that_no_rank_can_have_staged_is_refused(staged: str) -> None:
    with pytest.raises(JournalError, match="expected a file that a rank has staged"):
        Mover().promote_all([(staged, "/x")])


class Failing(MemoryFileSystem):  # type: ignore[misc]  # fsspec ships no types
    """A store that is down."""

    protocol = "failing"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("failing://", "memory://")))

    def info(self, path: str, **options: object) -> object:
        raise ConnectionResetError("gone")


def test_store_that_is_down_is_not_taken_for_a_lost_output() -> None:
    fsspec.register_implementation("failing", Failing, clobber=True)
    mover = Mover(state="failing://bucket/state")
    with pytest.raises(ConnectionResetError):  # which is tried again
        mover.promote_all([(f"failing://bucket/state/{STAGED}", "failing://bucket/x")])


def named(name: str) -> Exception:
    error: Exception = type(name, (Exception,), {})()
    return error


def with_code(code: int) -> Exception:
    error = RuntimeError("http")
    error.code = code  # type: ignore[attr-defined]  # as gcsfs's errors have it
    return error


@pytest.mark.parametrize(
    ("error", "final"),
    [
        (OSError(errno.EFBIG, "x"), True),
        (OSError(errno.ENAMETOOLONG, "x"), True),
        (OSError(errno.EINVAL, "x"), True),
        (PermissionError("no credentials"), True),
        (FileNotFoundError("no such bucket"), True),
        (ImportError("s3fs"), True),
        (named("NoCredentialsError"), True),
        (with_code(403), True),
        (with_code(503), False),
        (OSError(errno.ENOSPC, "x"), False),
        (OSError(errno.EIO, "x"), False),
        (ConnectionResetError("x"), False),
        (TimeoutError("x"), False),
    ],
    ids=repr,
)
def test_is_final_knows_what_no_retry_heals(error: Exception, final: bool) -> None:
    assert is_final(error) is final


def test_text_of_an_error_is_shown_without_secrets(tmp_path: Path) -> None:
    staged = make(f"{tmp_path}/{STAGED}")
    (tmp_path / "final").mkdir()
    with pytest.raises(JournalError) as caught:
        Mover(state=str(tmp_path)).promote(staged, f"{tmp_path}/final")
    assert "IsADirectoryError" in str(caught.value)
    url = "nosuch://user:hunter22@host/x"
    with pytest.raises(JournalError) as caught:
        Mover(state=str(tmp_path)).promote(staged, url)
    assert "hunter22" not in str(caught.value)


def test_new_folders_are_synced_into_their_parents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino))
    make_folders(f"{tmp_path}/a/b/c")
    assert synced == [path.stat().st_ino for path in (tmp_path, tmp_path / "a", tmp_path / "a/b")]
    make_folders(f"{tmp_path}/a/b/c")
    assert len(synced) == 3
