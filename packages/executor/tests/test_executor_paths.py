"""A text is a local path or a URL, decided in one place; names that cannot be are refused."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packages.executor.tests.test_executor_program import call, program
from thornback.executor import Executor, Job, Stage, UsageError
from thornback.executor.journal.store import LocalStore, file_system, open_store, protocols
from thornback.executor.paths import (
    check_file_name,
    is_below,
    is_url,
    located,
    located_state,
    normalised,
    staged_name,
    staged_parts,
    staging_of,
    without_slash,
)

KNOWN = protocols()
ODD = (
    *("a::b.txt", "simplecache::x.txt", "2024-01-01T00::00.json", "~/home.txt", "file:/z.txt"),
    *("a?b#c%20d.txt", "a*[b].txt", "back\\slash.txt", " lead ", "new\nline", "\udcff.txt", "é/ü"),
    *("x:y://z", "./s3://bucket/x", "c://x", "trailing.", "-rf", "a//b"),
)
TEXTS = st.text(
    st.one_of(
        st.sampled_from("/:.~?#%*[]\\ \n-ab"),
        st.characters(codec="utf-8", exclude_characters="\0"),
        st.integers(0xDC80, 0xDCFF).map(chr),  # what Python has for bytes that are not UTF-8
    ),
    min_size=1,
)


@pytest.mark.parametrize("text", ODD)
def test_located_local_path_with_odd_characters_stays_a_local_path(text: str) -> None:
    assert located(text, "/cwd", KNOWN) == f"/cwd/{text}"
    assert not is_url(located(text, "/cwd", KNOWN))


@pytest.mark.parametrize("text", ["s3://b/k::v", "memory://a/b?c#d", "gs://b/2024-01-01T00::00"])
def test_located_url_stays_as_it_is(text: str) -> None:
    assert located(text, "/cwd", KNOWN) == text
    assert is_url(text)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("file:///a/b", "/a/b"),
        ("local:///a/b", "/a/b"),
        ("file://a/b", "/cwd/a/b"),
        ("file://./a", "/cwd/./a"),
        ("file://localhost/a", "/a"),
        ("file:///a%20b%3F%ff", "/a b?\udcff"),
        ("file:///a::b", "/a::b"),
    ],
)
def test_located_file_url_becomes_the_plain_path(text: str, path: str) -> None:
    assert located(text, "/cwd", KNOWN) == path


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it is empty"),
        ("a\0b", "zero byte"),
        ("s3://a\0b", "zero byte"),
        ("file:///a%00b", "zero byte"),
        ("file://", "no path"),
        ("simplecache::s3://b/k", "chained URLs"),
        ("zip://a.txt::b.zip", "zip:// is a view"),
        ("s4://b/k", "knows no protocol 's4'.*./s4://"),
        ("\ud800", "cannot be the name of a file"),
    ],
)
def test_located_text_that_can_be_neither_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        located(text, "/cwd", KNOWN)


@given(TEXTS)
def test_located_text_without_a_scheme_is_below_the_folder(text: str) -> None:
    if is_url(text):
        return
    place = located(text, "/cwd", KNOWN)
    assert place == (text if text.startswith("/") else f"/cwd/{text}")
    assert not is_url(place)
    assert file_system(place)[1] == place  # fsspec is not asked


@given(TEXTS)
def test_located_file_url_of_a_path_is_that_path(text: str) -> None:
    path = f"/{text}"
    url = f"file://{quote(path, errors='surrogateescape')}"
    assert os.fsencode(located(url, "/cwd", KNOWN)) == os.fsencode(path)


@given(TEXTS, st.integers(0, 99), st.integers(0, 9))
def test_staged_name_is_short_and_safe(final: str, number: int, node: int) -> None:
    name = staged_name(number, node, final)
    assert len(name) <= 45
    assert name.isascii()
    assert "/" not in name
    assert name.partition(".")[0] == (f"{node}-{number}" if node else f"{number}")


@pytest.mark.parametrize(
    ("final", "name"),
    [
        ("x.tar.gz", "0.tar.gz"),
        ("a::b.txt", "0.txt"),
        ("x" * 254, "0"),
        ("dir/x.parquet", "0.parquet"),
    ],
)
def test_staged_name_keeps_the_suffix(final: str, name: str) -> None:
    assert staged_name(0, 0, final) == name


def test_staged_parts_of_what_staging_of_makes_are_those() -> None:
    staged = staging_of("s3://b/run/staging", "s", "000001.000000002", 7) + "/0.txt"
    assert staged_parts(staged) == ("s3://b/run", "s", "000001.000000002", 7, "0.txt")


@pytest.mark.parametrize(
    "staged",
    [
        "",
        "/etc/passwd",
        "/state/staging/s/1.2/7/../0",
        "/state/staging/s/1.2/x/0",
        "/state/staging/s/../7/0",
        "/state/staging/s/1.2/7/",
        "/state/stage/s/1.2/7/0",
        "/state/staging/s/1.2/7/a\0",
        "/state/staging/s/1.2/\u0667/0",
    ],
)
def test_staged_parts_of_another_path_are_none(staged: str) -> None:
    assert staged_parts(staged) is None


def test_is_below_compares_components() -> None:
    assert is_below("/a/b", "/a")
    assert is_below("/a", "/a")
    assert not is_below("/ab", "/a")
    assert is_below("s3://b/x", "s3://b")


def test_normalised_keeps_keys_of_object_stores() -> None:
    assert normalised("/a//b/./c/../d") == "/a/b/d"
    assert normalised("s3a://b/x//y") == "s3://b/x//y"


@pytest.mark.parametrize("place", ["/", "memory://", "/a/", "s3://b/k///"])
def test_without_slash_leaves_something(place: str) -> None:
    assert without_slash(place) in ("/", "memory://", "/a", "s3://b/k")


@pytest.mark.parametrize("name", ["", "nul\0", "simplecache::s3://b/k", "zip://x", "s4://b/k"])
def test_executor_state_that_cannot_be_is_a_usage_error(name: str) -> None:
    job = Job("j", [Stage("s", len)])
    with pytest.raises(UsageError, match=r"state=.*cannot hold a run"):
        Executor.on_local(state=name).run(job)


@pytest.mark.parametrize("url", ["s3://b/run[1]", "s3://b/run?versionId=1", "s3://b/*", "s3://b/#"])
def test_state_url_that_fsspec_takes_for_a_pattern_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="pattern or a query"):
        located_state(url, "/cwd", KNOWN)


def test_states_whose_names_differ_behind_colons_are_two(tmp_path: Path) -> None:
    monday, tuesday = (open_store(f"{tmp_path}/run::2024/{day}") for day in ("monday", "tuesday"))
    assert isinstance(monday, LocalStore)
    monday.put("base-000001-000000", b"x")
    assert tuesday.list() == ()
    assert os.path.isdir(tmp_path / "run::2024" / "monday" / "control")


@pytest.mark.parametrize(
    ("final", "why"),
    [
        ("", "it is empty"),
        (".", "name a file"),
        ("..", "name a file"),
        ("dir/", "name a file"),
        ("nul\0", "zero byte"),
        ("x" * 256, "256 bytes, at most 255"),
        ("ü" * 128, "256 bytes, at most 255"),
        ("/".join(["x" * 200] * 21), "at most 4095"),
        ("memory://", "name a file"),
        ("memory://x/", "name a file"),
    ],
)
def test_publish_of_a_name_that_cannot_be_fails_before_the_block(
    tmp_path: Path, final: str, why: str
) -> None:
    entered = []

    def fn(ctx: object) -> None:
        with ctx.publish(final):  # type: ignore[attr-defined]  # a RankContext
            entered.append(True)

    made = program(fn, str(tmp_path / "staging"), protocols=KNOWN)
    with pytest.raises(ValueError, match=why) as caught:
        made.run(call())
    assert entered == []
    assert getattr(caught.value, "non_retryable", False) is True


def test_publish_into_the_record_of_the_state_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)

    def fn(ctx: object) -> None:
        with ctx.publish(f"{tmp_path}/link/control/base-000009-000000"):  # type: ignore[attr-defined]  # a RankContext
            raise AssertionError("the block must not run")

    with pytest.raises(ValueError, match="folder 'control' of the state"):
        program(fn, str(tmp_path / "staging")).run(call())


@pytest.mark.parametrize("name", ["x" * 255, "a::b", "\udcff", "é\n", "~", "a?b#c"])
def test_publish_of_an_odd_name_gives_a_path_that_open_takes(tmp_path: Path, name: str) -> None:
    def fn(ctx: object) -> None:
        with ctx.publish(f"{tmp_path}/out/{name}") as staged:  # type: ignore[attr-defined]  # a RankContext
            Path(staged).write_text("x")

    ((staged, final),) = program(fn, str(tmp_path / "staging")).run(call()).outputs
    assert Path(staged).read_text() == "x"
    assert final == f"{tmp_path}/out/{name}"


def test_check_file_name_at_the_limits_returns() -> None:
    check_file_name(f"/{'x' * 255}")
    check_file_name("s3://b/" + "x" * 900)
