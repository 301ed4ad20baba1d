"""Plain Ray tasks in a loop of one's own: what has failed decides whether to try again, and when.

pip install thornback-faults ray        # RAY_ADDRESS names the cluster; without it, one is started
"""

import logging
import os
import random
import signal
import time

import ray

from thornback.faults import Classifier, FaultHistory, RetryPolicy


@ray.remote(max_retries=0)  # Ray tries nothing again: the loop below knows what is worth it
def square(number: int, attempt: int) -> int:
    if (number, attempt) == (1, 1):
        os.kill(os.getpid(), signal.SIGKILL)  # as a machine may do it
    if number == 2:
        raise ValueError("bad row")  # as it will every time
    return number * number


def run(histories: dict[int, FaultHistory]) -> dict[int, int]:
    """Return the results, by number; what has failed is in the histories."""
    results: dict[int, int] = {}
    due = dict.fromkeys(histories, 0.0)  # number: when to start it
    running: dict[object, int] = {}
    while due or running:
        for number in [number for number, when in due.items() if when <= time.monotonic()]:
            del due[number]
            running[square.remote(number, 1 + len(histories[number].faults))] = number
        pause_s = max(0.0, min(due.values()) - time.monotonic()) if due else None
        if not running:
            time.sleep(pause_s or 0.0)
            continue
        for ref in ray.wait(list(running), timeout=pause_s)[0]:
            number = running.pop(ref)
            try:
                results[number] = ray.get(ref)
            except ray.exceptions.RayError as error:
                verdict = histories[number].failed(error, draw=random.random())
                if verdict.retry:
                    due[number] = time.monotonic() + verdict.delay_s
    return results


if __name__ == "__main__":
    ray.init(log_to_driver=False, logging_level=logging.ERROR)
    policy, classifier = RetryPolicy(), Classifier()
    histories = {number: FaultHistory(policy, classifier) for number in range(4)}
    print("results:", dict(sorted(run(histories).items())))
    for number, history in histories.items():
        for attempt, verdict in enumerate(history.verdicts, 1):
            print(f"number {number}, attempt {attempt}: {verdict.reason}")
