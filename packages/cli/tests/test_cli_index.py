"""The demo's corpus and arithmetic."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thornback.cli.demo.corpus import Corpus, NoCorpusError, decode, installed, shares
from thornback.cli.demo.index import (
    LARGEST,
    combine,
    defined_names,
    differences,
    index_sources,
    single_process,
)

NOWHERE = Path("/nonexistent")


def write(root: Path, files: dict[str, bytes]) -> Corpus:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return Corpus(root=root, topics={})


def test_sources_are_sorted_and_leave_out_installed_packages_and_tests(tmp_path: Path) -> None:
    left_out = ("site-packages/x.py", "a/__pycache__/b.py", "test/b.py", "a/tests/b.py")
    names = ("z.py", "a/b.py", "a/note.txt", *left_out)
    topics_file = "pydoc_data/topics.py"
    write(tmp_path, dict.fromkeys((*names, topics_file), b""))
    corpus = Corpus(root=tmp_path, topics={"with": "", "class": ""})
    assert corpus.sources() == ["a/b.py", "z.py", "topic:class", "topic:with"]


def test_a_library_without_files_is_refused_with_the_mend(tmp_path: Path) -> None:
    with pytest.raises(NoCorpusError, match="installed with its sources"):
        Corpus(root=tmp_path, topics={"with": ""}).sources()


def test_the_interpreters_own_library_is_there() -> None:
    corpus = installed()
    sources = corpus.sources()
    assert "json/decoder.py" in sources
    assert "topic:with" in sources
    assert not [name for name in sources if "site-packages" in name]
    assert sources == corpus.sources()
    assert b"JSONDecoder" in corpus.read("json/decoder.py")


def test_decode_takes_the_declared_encoding_and_refuses_what_is_none() -> None:
    assert decode("# coding: latin-1\nx = 'é'".encode("latin-1")) == "# coding: latin-1\nx = 'é'"
    assert decode(b"\xef\xbb\xbfx = 1") == "x = 1"
    assert decode(b"x = '\xff'") is None
    assert decode(b"# coding: no-such-thing\n") is None
    assert decode(b"# coding: hex\nx = 1") is None  # a codec, but not of text


def test_counts(tmp_path: Path) -> None:
    files = {
        "one.py": b"class Ray:\n    async def swim(self): ...\n\ndef swim(): ...\n",
        "bad.py": b"def (:",
        "latin.py": b"x = '\xff'\n",
        "empty.py": b"",
    }
    corpus = write(tmp_path, files)
    with_topics = Corpus(root=corpus.root, topics={"fish": "A ray, a RAY\nx2 snake_case"})
    summary, words = index_sources(with_topics, with_topics.sources())
    topic_bytes = len("A ray, a RAY\nx2 snake_case")
    assert summary["counts"] == {
        "files": 3,
        "topics": 1,
        "bytes": len(files["one.py"]) + len(files["bad.py"]) + topic_bytes,
        "lines": 4 + 1 + 2,
        "words": 8 + 1 + 4,
        "names": 3,
        "undecodable": 1,
        "unparsable": 1,
    }
    assert words == {
        "class": 1, "ray": 3, "async": 1, "def": 3, "swim": 2, "self": 1, "snake": 1, "case": 1,
    }  # fmt: skip
    assert summary["largest"] == [["one.py", len(files["one.py"])], ["bad.py", 6], ["empty.py", 0]]
    assert json.loads(json.dumps(summary)) == summary


def test_names_are_counted_at_every_depth_and_warnings_stay_inside() -> None:
    assert defined_names("class A:\n def b(self):\n  def c(): '\\d'\n") == 3
    assert defined_names("\0") is None


def test_a_missing_source_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        index_sources(Corpus(root=tmp_path, topics={}), ["gone.py"])


@given(st.lists(st.integers()), st.integers(1, 40))
def test_shares_hold_every_source_once(numbers: list[int], count: int) -> None:
    sources = [str(number) for number in numbers]
    split = shares(sources, count)
    assert len(split) == count
    assert sorted(source for share in split for source in share) == sorted(sources)
    assert max(map(len, split)) - min(map(len, split)) <= 1


@given(
    st.dictionaries(st.text("ab", max_size=3), st.text("abc \n", max_size=20), max_size=12),
    st.integers(1, 5),
)
def test_any_split_in_another_order_combines_to_the_same(
    topics: dict[str, str], count: int
) -> None:
    corpus = Corpus(root=NOWHERE, topics=topics)
    sources = [f"topic:{name}" for name in sorted(topics)]
    indexed = [index_sources(corpus, share) for share in shares(sources, count)]
    indexed.reverse()
    split = combine([summary for summary, _ in indexed], [words for _, words in indexed])
    assert differences(single_process(corpus, sources), split) == []


def test_the_largest_files_of_all_shares_are_kept_ties_by_name(tmp_path: Path) -> None:
    sizes = {f"f{number:02d}.py": number % 13 for number in range(40)}
    corpus = write(tmp_path, {name: b"#" * size for name, size in sizes.items()})
    indexed = [index_sources(corpus, share) for share in shares(corpus.sources(), 3)]
    largest = combine([summary for summary, _ in indexed], [])["largest"]
    ranked = sorted(sizes.items(), key=lambda pair: (-pair[1], pair[0]))
    assert largest == [[name, size] for name, size in ranked[:LARGEST]]


def test_differences_name_the_value() -> None:
    corpus = Corpus(root=NOWHERE, topics={"with": "with open"})
    expected = single_process(corpus, ["topic:with"])
    assert differences(expected, json.loads(json.dumps(expected))) == []
    wrong = {**expected, "counts": {**expected["counts"], "words": 7}, "extra": 1}
    assert differences(expected, wrong) == [
        "counts.words: expected 2, found 7",
        "extra: unexpected",
    ]
    assert differences(expected, None) == ["expected an object, found None"]
