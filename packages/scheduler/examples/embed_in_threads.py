"""The scheduler drives a pool of threads: one queue of events, and no other library."""

import queue
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from itertools import chain
from typing import assert_never

from thornback.faults import NETWORK_RULES, Classifier, Fault, RetryPolicy
from thornback.graph import Dag
from thornback.scheduler import Scheduler, StagePlan, commands, events


def run(scheduler: Scheduler[Fault], work: Callable[[int, int, int], None], pool: Executor) -> None:
    inbox: queue.SimpleQueue[events.Event[Fault]] = queue.SimpleQueue()
    classify = Classifier(user_rules=NETWORK_RULES).classify
    recalled: set[int] = set()

    def carry_out(command: commands.Dispatch) -> None:  # in a thread
        until = time.monotonic() + 2.0  # `reclaim_s`: others may have free threads
        for rank in chain(*command.ranks):
            if (began := time.monotonic()) > until or command.assignment in recalled:
                break
            try:
                work(command.stage, rank, command.attempt)
                inbox.put(command.succeeded(rank, time.monotonic() - began))
            except BaseException as error:  # noqa: BLE001 - whatever it is, it is the answer
                inbox.put(command.failed(rank, classify(error, {"origin": "rank"}), "here"))
        inbox.put(command.returned())  # those that have no answer yet

    inbox.put(events.RunStarted())
    while not scheduler.finished:
        try:
            event = inbox.get(timeout=scheduler.wait_s(time.monotonic()))
        except queue.Empty:
            event = events.Ticked()
        for command in scheduler.handle(event, time.monotonic()):
            match command:
                case commands.OpenGang():
                    inbox.put(command.ready("here"))
                case commands.CloseGang():
                    inbox.put(command.closed())
                case commands.Dispatch():
                    pool.submit(carry_out, command)
                case commands.Recall():  # a thread cannot be killed: its rank ends by itself
                    recalled.add(command.assignment)
                case commands.Record():  # to be resumed, a run would write this down first
                    inbox.put(command.recorded())
                case commands.FinishRun():
                    print(command.state.name, command.reason or "and nothing to complain of")
                case _:
                    assert_never(command)


def work(stage: int, rank: int, attempt: int) -> None:
    if (stage, rank, attempt) == (0, 3, 1):
        raise ConnectionResetError("a retry mends it")
    if (stage, rank) == (0, 5):
        raise ValueError("no retry would mend it; one such is tolerated")


if __name__ == "__main__":
    policy = RetryPolicy(base_delay_s=0.02)
    clean = StagePlan(world_size=8, slots=4, max_gangs=1, max_failed=1, policy=policy)
    total = StagePlan(world_size=1, slots=4, max_gangs=1, policy=policy)
    order = Dag.from_names([("clean", ()), ("total", ("clean",))], [8, 1], max_failed=[1, 0])
    scheduler = Scheduler([clean, total], order)
    with ThreadPoolExecutor(max_workers=4) as pool:
        run(scheduler, work, pool)
    print("clean:", scheduler.counts(0).done, "of 8 done, total:", scheduler.counts(1).done, "of 1")
    print("rank 5 of clean:", scheduler.reason(0, 5))
