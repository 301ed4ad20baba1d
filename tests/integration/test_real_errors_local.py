"""Raises real errors with what is installed, against local servers: the recorded table is true."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

import pytest
import tenacity

from tests.integration.real_errors import CASES, TABLE, NotHere, answering, judged, record_of
from thornback.faults import NETWORK_RULES, THROTTLED_RULES, ErrorRecord, backoff_s, is_retriable

ROWS: dict[str, dict[str, Any]] = {
    row["name"]: row for row in json.loads(TABLE.read_text(encoding="utf-8"))
}
NOT_INSTALLED = ("aiohttp", "botocore", "grpcio", "openai")
"""The development environment has none of these: their records were made in another one."""
RULES = (*THROTTLED_RULES, *NETWORK_RULES)


def test_recorded_table_expects_what_the_cases_expect() -> None:
    """Otherwise `python -m tests.integration.real_errors --write` has not been run."""
    assert list(ROWS) == list(CASES)
    for name, one in CASES.items():
        row = ROWS[name]
        assert (row["error"], row["sets"]) == (one.error, list(one.sets)), name
        assert (row["kind"], row["final"]) == (one.kind.value, one.final), name
        assert row["facts"] == one.facts, name


def classes(record: ErrorRecord) -> list[tuple[str, ...]]:
    return [record.type_names, *(cause.type_names for cause in record.causes)]


@pytest.mark.parametrize("name", list(CASES))
def test_real_error_is_as_recorded_and_gets_its_verdict(name: str) -> None:
    one = CASES[name]
    try:
        record = record_of(one)
    except NotHere as reason:
        if isinstance(reason.__cause__, ImportError) and one.library not in NOT_INSTALLED:
            raise
        pytest.skip(str(reason))
    fault = judged(one, record)
    assert fault.kind is one.kind, fault
    assert (fault.facts.get("non_retryable") is True) is one.final
    assert fault.facts == {**fault.facts, **one.facts}
    assert classes(record) == classes(ErrorRecord.from_json(ROWS[name]["record"]))


def retrying(sleep: Callable[[float], None], rules: bool) -> tenacity.Retrying:
    """Return what a user of tenacity writes, with the sleep taken out."""
    known = RULES if rules else ()

    def pause(state: tenacity.RetryCallState) -> float:
        assert state.outcome is not None
        error = state.outcome.exception()
        assert error is not None
        return backoff_s(error, state.attempt_number, rules=known)

    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(functools.partial(is_retriable, rules=known)),
        wait=pause,
        sleep=sleep,
        stop=tenacity.stop_after_attempt(3),
        reraise=True,
    )


@pytest.mark.parametrize(("rules", "pauses"), [(True, [7.0, 7.0]), (False, [])])
def test_tenacity_retries_503_with_rules_only(rules: bool, pauses: list[float]) -> None:
    import requests

    slept: list[float] = []
    with answering(503, Retry_After="7") as url:

        def ask() -> None:
            requests.get(url, timeout=20).raise_for_status()

        with pytest.raises(requests.HTTPError):
            retrying(slept.append, rules)(ask)
    assert [round(pause) for pause in slept] == [pause + 1 for pause in pauses], "with its jitter"
