"""What is wrong with a call, in datatrove's terms. Positional arguments only, so that each
pickles."""

from __future__ import annotations

from collections.abc import Sequence

from thornback.executor import HeldByAnother, IdentityMismatch, UsageError


class PipelineMismatch(IdentityMismatch, UsageError):
    """The logging_dir holds the completions of another pipeline, or of another number of tasks;
    nothing was run. Not to be confused with `LoggingDirInUse`: it is this pipeline's, but taken.

    Attributes:
        url: the logging_dir.
        differences: what differs, one sentence each.
    """

    def __init__(self, url: str, differences: Sequence[str]) -> None:
        super().__init__(url, differences)

    def __str__(self) -> str:
        lines = "".join(f"\n  {difference}" for difference in self.differences)
        return (
            f"logging_dir {self.url!r} holds the completions of a different pipeline:{lines}\n"
            "Give another logging_dir; or skip_completed=False to forget them and run every task "
            "again; or on_mismatch='adopt' to count them as this pipeline's"
        )


class LoggingDirInUse(HeldByAnother):
    """Another driver runs a pipeline with this logging_dir. Attributes as `HeldByAnother`."""

    def __str__(self) -> str:
        return (
            f"logging_dir {self.url!r} is in use by another driver: host "
            f"{self.host or 'unknown'}, process {self.pid or 'unknown'}, since "
            f"{self.since or 'unknown'} ({self.seen}). Wait until it has ended, stop it, or give "
            "another logging_dir"
        )
