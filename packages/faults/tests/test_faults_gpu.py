"""What an error says about a GPU, and which line of the user's code it comes from."""

from __future__ import annotations

import pytest

from thornback.faults import ErrorRecord, is_gpu_broken, is_gpu_fault, loses_gpu

ECC = "CUDA error: uncorrectable ECC error encountered"
BUSY = "CUDA error: CUDA-capable device(s) is/are busy or unavailable"
ILLEGAL = "CUDA error: an illegal memory access was encountered"
ASSERT = "CUDA error: device-side assert triggered"
FULL = "CUDA out of memory. Tried to allocate 2.00 GiB"


def record(message: str) -> ErrorRecord:
    return ErrorRecord.of(RuntimeError(message))


@pytest.mark.parametrize(
    ("message", "broken", "fault", "after_healthy", "loses"),
    [
        (ECC, True, True, True, True),
        ("GPU 0000:3B:00.0 has fallen off the bus.", True, True, True, True),
        (BUSY, False, True, True, True),
        ("No CUDA-capable device is detected", False, True, True, True),
        (ILLEGAL, False, False, True, True),
        ("CUDA error: unspecified launch failure", False, False, True, True),
        ("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling", False, False, True, True),
        (ASSERT, False, False, False, True),
        (FULL, False, False, False, False),
        ("expected all tensors to be on the same device, cuda:0", False, False, False, False),
        ("", False, False, False, False),
    ],
)
def test_gpu_predicates_by_text_say_whose_fault_it_is(
    message: str, broken: bool, fault: bool, after_healthy: bool, loses: bool
) -> None:
    error = record(message)
    assert is_gpu_broken(error) is broken
    assert is_gpu_fault(error) is fault
    assert is_gpu_fault(error, healthy_before=True) is after_healthy
    assert loses_gpu(error) is loses


def test_gpu_predicates_of_a_chain_and_a_group_look_at_all_of_it() -> None:
    outer = ValueError("the step failed")
    outer.__cause__ = RuntimeError(ECC)
    assert is_gpu_broken(ErrorRecord.of(outer))
    assert is_gpu_broken(ErrorRecord.of(ExceptionGroup("all", [KeyError(1), outer])))
