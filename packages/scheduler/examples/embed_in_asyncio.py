"""The scheduler drives an asyncio loop: a task for each assignment, and no other library."""

import asyncio
from collections.abc import Awaitable, Callable
from itertools import chain
from typing import assert_never

from thornback.faults import NETWORK_RULES, Classifier, Fault, RetryPolicy
from thornback.graph import Dag
from thornback.scheduler import Scheduler, StagePlan, commands, events

Work = Callable[[int, int, int], Awaitable[None]]


async def run(scheduler: Scheduler[Fault], work: Work, slots: int) -> None:
    inbox: asyncio.Queue[events.Event[Fault]] = asyncio.Queue()
    post, loop = inbox.put_nowait, asyncio.get_running_loop()
    classify = Classifier(user_rules=NETWORK_RULES).classify
    free_slot = asyncio.Semaphore(slots)
    recalled: set[int] = set()

    async def carry_out(command: commands.Dispatch) -> None:
        async with free_slot:
            until = loop.time() + 2.0  # `reclaim_s`: others may have free slots
            for rank in chain(*command.ranks):
                if (began := loop.time()) > until or command.assignment in recalled:
                    break
                try:
                    await work(command.stage, rank, command.attempt)
                    post(command.succeeded(rank, loop.time() - began))
                except BaseException as error:  # whatever it is, it is the answer
                    if (task := asyncio.current_task()) and task.cancelling():
                        raise  # `run` itself was cancelled
                    post(command.failed(rank, classify(error, {"origin": "rank"}), "here"))
        post(command.returned())  # those that have no answer yet

    post(events.RunStarted())
    async with asyncio.TaskGroup() as tasks:
        while not scheduler.finished:
            try:
                async with asyncio.timeout_at(scheduler.wake_at):
                    event = await inbox.get()
            except TimeoutError:
                event = events.Ticked()
            for command in scheduler.handle(event, loop.time()):
                match command:
                    case commands.OpenGang():
                        post(command.ready("here"))
                    case commands.CloseGang():
                        post(command.closed())
                    case commands.Dispatch():
                        tasks.create_task(carry_out(command))
                    case commands.Recall():  # a rank that runs is left to end by itself
                        recalled.add(command.assignment)
                    case commands.Record():  # to be resumed, a run would write this down first
                        post(command.recorded())
                    case commands.FinishRun():
                        print(command.state.name, command.reason or "and nothing to complain of")
                    case _:
                        assert_never(command)


async def work(stage: int, rank: int, attempt: int) -> None:
    if (stage, rank, attempt) == (0, 3, 1):
        raise ConnectionResetError("a retry mends it")
    if (stage, rank) == (0, 5):
        raise ValueError("no retry would mend it: what comes after is skipped")


if __name__ == "__main__":
    policy = RetryPolicy(base_delay_s=0.02)
    plans = [StagePlan(world_size=n, slots=4, max_gangs=1, policy=policy) for n in (8, 1)]
    order = Dag.from_names([("clean", ()), ("total", ("clean",))], [8, 1])
    scheduler = Scheduler(plans, order)
    asyncio.run(run(scheduler, work, slots=4))
    print("clean:", scheduler.counts(0).done, "of 8 done, total:", scheduler.counts(1).done, "of 1")
    print("rank 5 of clean:", scheduler.reason(0, 5))
    print("rank 0 of total:", scheduler.reason(1, 0))
