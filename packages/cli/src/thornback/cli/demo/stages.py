"""The demo's job. Rank processes import this module: it imports no display or tracing library."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from thornback.cli.demo.corpus import installed, shares
from thornback.cli.demo.index import Index, Summary, combine, index_sources
from thornback.executor import Job, RankContext, Stage

RANKS = 32


class Share(TypedDict):
    """One rank's item."""

    sources: list[str]
    part: str
    """Where the words of this share are published: an absolute path."""


class Indexed(TypedDict):
    """What a rank of `index` returns."""

    summary: Summary
    part: str


def demo_job(sources: Sequence[str], parts: Path) -> Job:
    """Return the job: `index` in 32 ranks, then `merge`.

    Args:
        sources: what to index; part of the job's identity, as is the Python version: the state of
            another standard library is refused instead of being mixed in.
        parts: folder for the published parts, absolute; the ranks must be able to write there.
    """
    items: list[Share] = [
        {"sources": share, "part": str(parts / f"{rank:05d}.json")}
        for rank, share in enumerate(shares(sources, RANKS))
    ]
    version = platform.python_version()
    return Job(
        "demo",
        [
            Stage("index", index_share, items=items, timeout_s=300, version=version),
            Stage("merge", merge_parts, after="index", timeout_s=300, version=version),
        ],
    )


def index_share(ctx: RankContext, item: Share) -> Indexed:
    """Index one share: publish its words, return its summary."""
    summary, words = index_sources(installed(), item["sources"])
    with ctx.publish(item["part"]) as staged:
        Path(staged).write_text(json.dumps(words, sort_keys=True), encoding="utf-8")
    return {"summary": summary, "part": item["part"]}


def merge_parts(ctx: RankContext) -> Index:
    """Combine all shares, from their recorded summaries and their published parts."""
    indexed: list[Indexed] = [*ctx.results("index").values()]
    words = (json.loads(Path(one["part"]).read_text(encoding="utf-8")) for one in indexed)
    return combine([one["summary"] for one in indexed], words)
