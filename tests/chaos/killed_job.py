"""A job for a driver that is killed at random instants: stages that delete what earlier ones have
published, and files with odd names.

`python -m tests.chaos.killed_job FOLDER` runs it to its end, or goes on where the last one ended.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Sequence

from thornback.executor import After, Executor, Job, RankContext, RunReport, Stage

NAMES = (
    "plain.txt",
    "a::b.txt",
    "2024-01-01T00::00.json",
    "simplecache::x.txt",
    "zip:a.txt::b.zip",
    "file:/z.txt",
    "a?b#c%20d.txt",
    "a*[b].txt",
    "back\\slash.txt",
    " blanks at both ends ",
    "new\nline.txt",
    "not-utf-8-\udcff.txt",
    "\u00e9/\u00fc.txt",
    "~home.txt",
    "trailing.",
    "x" * 250,
)
RANKS = len(NAMES)
STATE = "runs::1/\u00e9 state"
STAGES = ("part", "sum", "clean", "raw", "eat")


def path_of(folder: str, stage: str, rank: int) -> str:
    """Return the final path of what a rank publishes."""
    return os.path.join(folder, "out", stage, str(rank % 3), NAMES[rank])


def text_of(stage: str, rank: int) -> str:
    """Return what is in that file."""
    return f"{stage} {rank}\n" * 500


def started(folder: str, ctx: RankContext) -> None:
    """Leave a trace of each try of a rank, which nobody removes."""
    with open(os.path.join(folder, "starts", f"{ctx.stage}-{ctx.rank}"), "ab") as file:
        file.write(f"{ctx.epoch}\n".encode())
    time.sleep(0.005 * (1 + ctx.rank % 4))


def publish(folder: str, ctx: RankContext) -> None:
    with ctx.publish(path_of(folder, ctx.stage, ctx.rank)) as staged, open(staged, "w") as file:
        file.write(text_of(ctx.stage, ctx.rank))


def make(ctx: RankContext, folder: str) -> int:
    """Publish a file."""
    started(folder, ctx)
    publish(folder, ctx)
    return ctx.rank


def add(ctx: RankContext, folder: str) -> int:
    """Read what the rank before has published, and publish its sum."""
    started(folder, ctx)
    with open(path_of(folder, "part", ctx.rank)) as file:
        assert file.read() == text_of("part", ctx.rank)
    publish(folder, ctx)
    return ctx.rank


def remove(ctx: RankContext, folder: str) -> int:
    """Delete what was published two stages before, and is not needed any more."""
    started(folder, ctx)
    _unlink(path_of(folder, "part", ctx.rank))
    return ctx.rank


def eat(ctx: RankContext, folder: str) -> int:
    """Delete what it has read at once, and take a second time for what it is."""
    started(folder, ctx)
    _unlink(path_of(folder, "raw", ctx.rank))
    time.sleep(0.02)
    return ctx.rank


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):  # an earlier try of this rank has removed it
        os.unlink(path)


def job(folder: str) -> Job:
    """Return the job that works in this folder."""
    items: Sequence[str] = [folder] * RANKS
    return Job(
        "killed",
        [
            Stage("part", make, items=items, cpus=0.5),
            Stage("sum", add, items=items, cpus=0.5, after=After("part", kind="one_to_one")),
            Stage("clean", remove, items=items, cpus=0.5, after="sum"),
            Stage("raw", make, items=items, cpus=0.5),
            Stage("eat", eat, items=items, cpus=0.5, after=After("raw", kind="one_to_one")),
        ],
        outputs=[folder],  # else a pending output outside of the state's folder is made again
    )


def run(folder: str) -> RunReport:
    """Run it, or the rest of it."""
    os.makedirs(os.path.join(folder, "starts"), exist_ok=True)
    return Executor.on_local(state=os.path.join(folder, STATE), cpus=1).run(job(folder))


if __name__ == "__main__":
    run(sys.argv[1])
