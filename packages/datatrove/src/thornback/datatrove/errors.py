"""What the adapter raises besides what `thornback.executor` does. Positional arguments only, so
that each of them pickles; the messages say what to do."""

from __future__ import annotations

from collections.abc import Sequence

from thornback.executor import UsageError


class PipelineMismatch(UsageError):
    """A `logging_dir` holds the marks of another pipeline; nothing was run.

    Not to be confused with `thornback.executor.HeldByAnother`: there the same directory is in use
    now.

    Attributes:
        folder: the `logging_dir`.
        differences: one sentence each.
    """

    def __init__(self, folder: str, differences: Sequence[str]) -> None:
        super().__init__(folder, tuple(differences))
        self.folder = folder
        self.differences = tuple(differences)

    def __str__(self) -> str:
        lines = "".join(f"\n  {each}" for each in self.differences)
        return (
            f"logging_dir {self.folder!r} holds the marks of another pipeline:{lines}\n"
            "Ranks would be skipped that were never run. Give another logging_dir, or "
            "skip_completed=False to run all ranks again, or on_mismatch='adopt' (or 'warn') to "
            "take the marks as they are"
        )


class DependencyFailed(Exception):
    """A pipeline of `depends=` has ended with incomplete ranks; what depends on it was not run.

    Not to be confused with `thornback.executor.RunFailed`: ranks of this very run failed.

    Attributes:
        name: of the dependency.
        incomplete: number of its ranks without a completion.
        world_size: number of its ranks.
        logs: where its logs are.
    """

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
