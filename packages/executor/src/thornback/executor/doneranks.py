"""Which ranks are recorded as done, by this run or an earlier one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from thornback.executor.ports import Completion, Ranks


class DoneRanks:
    """Ranks that are done, by name of stage; a byte for each rank.

    Args:
        sizes: world size of each stage that is of interest.
        done: what earlier runs have recorded.
    """

    def __init__(self, sizes: Mapping[str, int], done: Mapping[str, Ranks]) -> None:
        self._flags = {name: bytearray(size) for name, size in sizes.items()}
        for name, flags in self._flags.items():
            mark(flags, done.get(name, ()))

    def note(self, records: Iterable[Completion]) -> None:
        """Take what is recorded now."""
        for record in records:
            if record.state == "done" and record.stage in self._flags:
                mark(self._flags[record.stage], record.ranks)

    def of(self, stage: str) -> Ranks:
        """Return the ranks of a stage that are done, as ascending ranges."""
        flags, found, stop = self._flags[stage], [], 0
        while (start := flags.find(1, stop)) != -1:
            stop = flags.find(0, start)
            stop = len(flags) if stop == -1 else stop
            found.append(range(start, stop))
        return tuple(found)


def mark(flags: bytearray, ranks: Ranks) -> None:
    """Set the flags of these ranks."""
    for piece in ranks:
        there = range(len(flags))[piece.start : piece.stop]  # more would make it longer
        flags[there.start : there.stop] = b"\1" * len(there)
