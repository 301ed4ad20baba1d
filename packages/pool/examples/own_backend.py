"""Workers behind a command of your own: here one that limits their memory to what was leased."""

import resource
from collections.abc import Callable, Sequence

import anyio
import cloudpickle

from thornback.pool import Assignment, ProgramResult, RankCall, Worker, WorkerPool, WorkerSpec
from thornback.pool.processes import WorkerProcess, worker_command

Prefix = Callable[[str, WorkerSpec], Sequence[str]]


def limited(node: str, spec: WorkerSpec) -> Sequence[str]:
    """Limit each process of a worker; `systemd-run --scope -p MemoryMax=...` would limit all."""
    return ["prlimit", f"--as={spec.memory_bytes}"]


class PrefixBackend:
    """Starts every worker behind the command that `prefix` returns (fulfils `WorkerBackend`)."""

    def __init__(self, prefix: Prefix = limited) -> None:
        self._prefix = prefix

    async def start(
        self, node: str, index: int, nodes: int, handle: object, spec: WorkerSpec, /
    ) -> Worker:
        command = [*self._prefix(node, spec), *worker_command()]
        return await WorkerProcess.start(command, node, index, nodes, spec)


class Limit:
    """What a rank process runs."""

    def setup(self, context: RankCall) -> None:
        pass

    def run(self, context: RankCall) -> ProgramResult:
        return ProgramResult(result=str(resource.getrlimit(resource.RLIMIT_AS)[0] >> 20))


async def main() -> None:
    program: bytes = cloudpickle.dumps(Limit())

    async def blob(key: str) -> bytes:
        return program

    async with WorkerPool(PrefixBackend(), blob) as pool:
        await pool.open(1, ["here"], None, WorkerSpec(memory_bytes=2 << 30), timeout_s=60)
        for rank in range(3):
            ranks, epoch = (range(rank, rank + 1),), f"000001.{rank:09}"
            work = Assignment(assignment=rank, epoch=epoch, stage=0, ranks=ranks, program="limit")
            async for report in pool.run(1, work):
                for done in report.outcomes:
                    print(f"rank {done.rank} on {done.node} had at most {done.result} MiB")


if __name__ == "__main__":
    anyio.run(main)
