"""The classifier as stamina's backoff hook: what has failed decides whether to try again, and when.

pip install thornback-faults stamina
"""

import random
from collections.abc import Callable

import stamina

from thornback.faults import THROTTLED_RULES, Classifier, FaultHistory, RetryPolicy

classifier = Classifier(user_rules=THROTTLED_RULES)  # opt-in: to ask again does no harm
policy = RetryPolicy(base_delay_s=0.05)
call = stamina.RetryingCaller(attempts=None, timeout=None)  # the policy is what ends it


def by_policy() -> Callable[[Exception], bool | float]:
    """Return the hook for one call: each call has a history of its own."""
    history = FaultHistory(policy, classifier)

    def hook(error: Exception) -> bool | float:
        verdict = history.failed(error, draw=random.random())
        print(verdict.reason)
        return verdict.retry and verdict.delay_s

    return hook


class ServerBusy(Exception):
    status_code = 429
    retry_after = 0.1  # s: the pause is as long as the server asks for


def ask(question: str, errors: list[Exception]) -> str:
    if errors:
        raise errors.pop(0)
    return f"{question}: yes"


if __name__ == "__main__":
    stamina.instrumentation.set_on_retry_hooks([])  # no log of retries besides what is printed here
    print(call(by_policy(), ask, "up", [ServerBusy(), ServerBusy()]))
    try:
        call(by_policy(), ask, "down", [ServerBusy(), KeyError("down")])
    except KeyError as error:
        print(f"it failed: {error!r}")
