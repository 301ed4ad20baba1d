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

    __module__ = "thornback.datatrove"

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

    __module__ = "thornback.datatrove"

    def __str__(self) -> str:
        return (
            f"logging_dir {self.url!r} is in use by another driver: host "
            f"{self.host or 'unknown'}, process {self.pid or 'unknown'}, since "
            f"{self.since or 'unknown'} ({self.seen}). Wait until it has ended, stop it, or give "
            "another logging_dir"
        )


class DependencyFailed(Exception):
    """A pipeline of `depends=` has ended with incomplete ranks; what depends on it was not run. Not
    to be confused with `thornback.executor.RunFailed`: there ranks of this very run failed.

    Attributes:
        name: of the dependency.
        incomplete: number of its ranks without a completion.
        world_size: number of its ranks.
        logs: where its logs are.
    """

    __module__ = "thornback.datatrove"

    def __init__(self, name: str, incomplete: int, world_size: int, logs: str) -> None:
        super().__init__(name, incomplete, world_size, logs)
        self.name = name
        self.incomplete = incomplete
        self.world_size = world_size
        self.logs = logs

    def __str__(self) -> str:
        return (
            f"dependency {self.name!r} has ended with {self.incomplete}/{self.world_size} ranks "
            f"incomplete; their logs are in {self.logs}. Run it again, or give "
            "run_on_dependency_fail=True to go on without them"
        )
