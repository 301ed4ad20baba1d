"""What `python -m thornback.scheduler` does with records: `story` and `replay`."""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import attrs

from thornback.scheduler.recorded import Header, RecordError, read_record
from thornback.scheduler.replaying import replay
from thornback.scheduler.states import UsageError
from thornback.scheduler.story import Moment, story

FILE_HELP = "written by a Recorder; may end in .gz; - for standard input"


def add_arguments(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
) -> None:
    """Add `story` and `replay` to the commands of a parser; `run` then carries them out."""
    tell = commands.add_parser("story", help="tell what happened to one rank of a recorded run")
    tell.add_argument("file", metavar="FILE", help=FILE_HELP)
    tell.add_argument("rank", metavar="[STAGE:]RANK", help="stage: its name or number; default: 0")
    tell.add_argument("--json", action="store_true", help="one JSON object a line")
    tell.set_defaults(run=run)
    again = commands.add_parser("replay", help="repeat a recorded run: are the commands the same?")
    again.add_argument("file", metavar="FILE", help=FILE_HELP)
    again.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Carry out a command; return its exit code: 1, the run went another way now; 2, no such rank,
    or no record."""
    try:
        with _opened(given.file) as lines:
            record = read_record(lines)
            if given.command == "replay":
                difference = replay(record)
                print(difference or "the same commands")
                return int(difference is not None)
            stage, rank = _place(given.rank, record.header)
            moments = story(record, stage, rank)
    except (OSError, EOFError, UnicodeDecodeError, RecordError, UsageError) as error:
        print(f"{given.file}: {error}", file=sys.stderr)
        return 2
    for moment in moments:
        print(json.dumps(_plain(moment)) if given.json else moment)
    return 0


def _plain(moment: Moment) -> dict[str, object]:
    return {**attrs.asdict(moment), "kind": moment.kind.value}


@contextmanager
def _opened(path: str) -> Iterator[TextIO]:
    if path == "-":
        yield sys.stdin
    elif path.endswith(".gz"):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            yield file
    else:
        with open(path, encoding="utf-8") as file:
            yield file


def _place(text: str, header: Header) -> tuple[int, int]:
    """Return (stage, rank) for `[STAGE:]RANK`. Raises `UsageError`."""
    before, _, rank = text.rpartition(":")
    names = [plan.name for plan in header.plans]
    if not rank.isdecimal():
        raise UsageError(f"{text!r} is not a rank: give its number, or STAGE:NUMBER.")
    if before in names:
        return names.index(before), int(rank)
    if before.isdecimal() or not before:
        return int(before or 0), int(rank)
    raise UsageError(f"there is no stage {before!r}; the stages are {', '.join(names)}.")
