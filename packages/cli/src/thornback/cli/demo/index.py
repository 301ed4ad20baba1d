"""The demo's arithmetic: index some sources, and combine what was indexed. Pure but for reading.

All values are JSON. Combining the shares in any split gives the same result as one share with
everything in it: that is what the demo verifies after the run.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias, TypedDict

from thornback.cli.demo.corpus import TOPIC, Corpus, decode

LARGEST = 10
TOP_WORDS = 20
Sized: TypeAlias = "list[str | int]"
"""[name, number]: a pair as JSON has it."""

_WORD = re.compile(r"[^\W\d_]{2,}")
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
COUNTS = ("files", "topics", "bytes", "lines", "words", "names", "undecodable", "unparsable")


class Summary(TypedDict):
    """What a share came to, without its words: small enough for the journal."""

    counts: dict[str, int]
    """By the names in `COUNTS`."""
    largest: list[Sized]
    """The largest files, in bytes, largest first."""


class Index(TypedDict):
    """The result of the demo."""

    counts: dict[str, int]
    distinct_words: int
    top_words: list[Sized]
    largest: list[Sized]


def index_sources(corpus: Corpus, sources: Iterable[str]) -> tuple[Summary, dict[str, int]]:
    """Return the summary of some sources, and how often each word occurs in them.

    A word is two or more letters, in lower case. Sources that do not decode are counted and
    skipped; files that do not parse (the test suite has some, on purpose) count without names.
    """
    counts = Counter(dict.fromkeys(COUNTS, 0))
    words: Counter[str] = Counter()
    sizes: list[tuple[str, int]] = []
    for source in sources:
        data = corpus.read(source)
        is_topic = source.startswith(TOPIC)
        text = data.decode() if is_topic else decode(data)
        if text is None:
            counts["undecodable"] += 1
            continue
        counts["topics" if is_topic else "files"] += 1
        counts["bytes"] += len(data)
        counts["lines"] += text.count("\n") + (text[-1:] not in ("", "\n"))
        found = [word.lower() for word in _WORD.findall(text)]
        counts["words"] += len(found)
        words.update(found)
        if not is_topic:
            sizes.append((source, len(data)))
            names = defined_names(text)
            counts["unparsable" if names is None else "names"] += 1 if names is None else names
    return {"counts": dict(counts), "largest": _most(sizes, LARGEST)}, dict(words)


def defined_names(text: str) -> int | None:
    """Return how many functions and classes Python source defines; None when it does not parse."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in the test suite's files
        try:
            tree = ast.parse(text)
        except (RecursionError, SyntaxError, ValueError):
            return None
    return sum(isinstance(node, _DEFINITIONS) for node in ast.walk(tree))


def combine(summaries: Sequence[Summary], words: Iterable[Mapping[str, int]]) -> Index:
    """Return the result of all shares: their summaries, and the words of each."""
    counts = Counter(dict.fromkeys(COUNTS, 0))
    largest: list[tuple[str, int]] = []
    for summary in summaries:
        counts.update(summary["counts"])
        largest += [(str(name), int(size)) for name, size in summary["largest"]]
    total: Counter[str] = Counter()
    for share in words:
        total.update(share)
    return {
        "counts": dict(counts),
        "distinct_words": len(total),
        "top_words": _most(total.items(), TOP_WORDS),
        "largest": _most(largest, LARGEST),
    }


def single_process(corpus: Corpus, sources: Sequence[str]) -> Index:
    """Return the result without any distribution: what the job's result is compared with."""
    summary, words = index_sources(corpus, sources)
    return combine([summary], [words])


def differences(expected: Index, found: object) -> list[str]:
    """Return one line for each value in which a result differs from the expected one."""
    if not isinstance(found, dict):
        return [f"expected an object, found {found!r}"]
    lines = []
    for key, value in _flat(expected).items():
        other = _flat(found).get(key)
        if other != value:
            lines.append(f"{key}: expected {value!r}, found {other!r}")
    return lines + [f"{key}: unexpected" for key in _flat(found) if key not in _flat(expected)]


def _flat(value: Mapping[str, object]) -> dict[str, object]:
    counts = value.get("counts")
    rest = {key: item for key, item in value.items() if key != "counts"}
    named = counts.items() if isinstance(counts, dict) else ()
    return {**{f"counts.{key}": item for key, item in named}, **rest}


def _most(sizes: Iterable[tuple[str, int]], limit: int) -> list[Sized]:
    """Return the largest, ties in order of name: the order of arrival must not show."""
    ranked = sorted(sizes, key=lambda pair: (-pair[1], pair[0]))[:limit]
    return [[name, size] for name, size in ranked]
