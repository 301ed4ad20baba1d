"""`python -m thornback.scheduler`: simulate a job, or read what a `Recorder` has written."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from thornback.scheduler import commandline_record, commandline_simulate


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m thornback.scheduler", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commandline_simulate.add_arguments(commands)
    commandline_record.add_arguments(commands)
    given = parser.parse_args(arguments)
    code: int = given.run(given)
    return code


if __name__ == "__main__":
    sys.exit(main())
