"""Exceptions that defend themselves become data like all others, in bounded time and memory."""

from __future__ import annotations

import json
import sys
import time
import tracemalloc

import pytest

from thornback.faults import Classifier, ErrorRecord, Fault, FaultKind, explain
from thornback.faults.testing import HOSTILE_ERRORS


def described(name: str) -> tuple[ErrorRecord, Fault]:
    """Return an exception of the catalogue as data, and classified."""
    try:
        HOSTILE_ERRORS[name](name)
    except:  # noqa: E722  # one of them is no BaseException by its MRO
        error = sys.exc_info()[1]
        assert error is not None
        return ErrorRecord.of(error), Classifier().classify(error, {"origin": "rank"})


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", HOSTILE_ERRORS)
def test_record_of_a_hostile_exception_names_its_class(name: str) -> None:
    began = time.process_time()
    record, fault = described(name)
    assert time.process_time() - began < 10
    assert record.type_names[0].endswith(f".{name}")
    # A group is judged by its members.
    assert fault.error_type == (record.members or [record])[0].type_names[0]
    assert fault.kind is FaultKind.APPLICATION
    assert fault.rule == "rank.raised"
    assert "in described" in record.traceback
    assert name in record.traceback
    text = json.dumps(record.as_json(), allow_nan=False)
    assert len(text) < 150_000
    assert ErrorRecord.from_json(json.loads(text)) == record
    text.encode("utf-8")
    assert explain(record, {"origin": "rank"}).fault.kind is FaultKind.APPLICATION


@pytest.mark.parametrize("name", ["NotesAreHuge", "MessageIsHuge", "MessageIsLines"])
def test_record_of_a_huge_exception_takes_bounded_memory(name: str) -> None:
    """It has 40 MB itself, and `str()` may copy them once."""
    tracemalloc.start()
    try:
        described(name)
        assert tracemalloc.get_traced_memory()[1] < 200_000_000
    finally:
        tracemalloc.stop()
