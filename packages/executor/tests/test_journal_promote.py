"""Published outputs come to their final place once, whatever was done before."""

from __future__ import annotations

import uuid
from pathlib import Path

import fsspec
import pytest

from thornback.executor.journal.filejournal import JournalError
from thornback.executor.journal.promote import Mover

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
