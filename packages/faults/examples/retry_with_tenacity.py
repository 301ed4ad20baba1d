"""The classifier inside tenacity: what has failed decides whether to try again, and when.

pip install thornback-faults tenacity
"""

import random

from tenacity import RetryCallState, Retrying

from thornback.faults import NETWORK_RULES, Classifier, FaultHistory, RetryPolicy

classifier = Classifier(user_rules=NETWORK_RULES)  # opt-in: to fetch again does no harm
policy = RetryPolicy(base_delay_s=0.05)


def retrying() -> Retrying:
    """Return the loop for one call: each call has a history of its own."""
    history = FaultHistory(policy, classifier)

    def again(state: RetryCallState) -> bool:
        error = state.outcome.exception() if state.outcome else None
        if error is None:
            return False
        verdict = history.failed(error, draw=random.random())
        print(verdict.reason)
        return verdict.retry  # False: tenacity raises the error as it is

    return Retrying(retry=again, wait=lambda state: history.verdicts[-1].delay_s)


def fetch(part: str, errors: list[Exception]) -> str:
    if errors:
        raise errors.pop(0)
    return f"{part} is here"


if __name__ == "__main__":
    print(retrying()(fetch, "part 0", [ConnectionResetError("gone"), ConnectionResetError("gone")]))
    try:
        retrying()(fetch, "part 1", [ConnectionResetError("gone"), ValueError("bad row")])
    except ValueError as error:
        print(f"part 1 failed: {error!r}")
