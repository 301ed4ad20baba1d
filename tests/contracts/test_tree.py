"""What the tree promises: namespace, layout of a package, nothing of one machine, one version."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = sorted(path.parent for path in ROOT.glob("packages/*/pyproject.toml"))

# Written so that this file does not match.
MACHINE = re.compile(
    r"(?<![\w.>])/(?:root|work|farm|scratch)/[\w.]|/tmp/(?:scratch|bash_jobs)"
    r"|python(?:hosted)(?:\.)org|pypi(?:\.)org/simple|npm(?:js)(?:\.)|deb(?:\.)debian"
)


def tracked() -> list[Path]:
    """Every file that git tracks; the test is skipped where there is no git clone."""
    try:
        listing = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, timeout=30
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"not a git clone, or git is missing: {error}")
    paths = [ROOT / name for name in listing.decode().split("\0") if name]
    return [path for path in paths if path.is_file()]


def project(package: Path) -> dict[str, object]:
    table = tomllib.loads((package / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert isinstance(table, dict)
    return table


def test_there_are_packages() -> None:
    assert {
        "faults",
        "graph",
        "scheduler",
        "placement",
        "pool",
        "executor",
        "cli",
        "datatrove",
    } <= {path.name for path in PACKAGES}


def test_thornback_is_a_namespace_package_everywhere() -> None:
    """One `__init__.py` there would hide every other package of the namespace."""
    assert list(ROOT.glob("packages/*/src/thornback/__init__.py")) == []


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_package_is_complete(package: Path) -> None:
    source = package / "src" / "thornback" / package.name
    expected = [
        package / "BUILD",
        package / "README.md",
        package / "src" / "BUILD",
        source / "__init__.py",
        source / "py.typed",
    ]
    assert [str(path.relative_to(ROOT)) for path in expected if not path.is_file()] == []
    (only,) = (path for path in (package / "src" / "thornback").iterdir() if path.is_dir())
    assert only == source


def test_all_versions_are_equal() -> None:
    assert len({project(package)["version"] for package in PACKAGES}) == 1


@pytest.mark.parametrize(
    "line",
    [
        "cd /ro" + "ot/.cache",
        "open('/farm" + "/data')",
        "/wo" + "rk/main/.venv",
        "https://files.python" + "hosted.org/x",
        "https://pypi" + ".org/simple",
    ],
)
def test_pattern_finds_what_must_not_be_committed(line: str) -> None:
    assert MACHINE.search(line)


@pytest.mark.parametrize(
    "line", ["ranks/wo" + "rk/part", "s3://bucket/wo" + "rk/x", "/tmp/thornback", "state/root/part"]
)
def test_pattern_leaves_ordinary_paths_alone(line: str) -> None:
    assert not MACHINE.search(line)


def test_no_tracked_file_names_a_machine_or_a_registry_host() -> None:
    found = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # not text
        for number, line in enumerate(text.splitlines(), start=1):
            if MACHINE.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert found == []


def test_locks_are_free_of_urls() -> None:
    locks = [*ROOT.glob("tools/*.lock"), *ROOT.glob("tools/pants/*.lock")]
    assert len(locks) == 4
    assert not [path for path in locks if "://" in path.read_text(encoding="utf-8")]
