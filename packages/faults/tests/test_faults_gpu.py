"""What an error says about a GPU, and which line of the user's code it comes from."""

from __future__ import annotations

import json
import traceback

import pytest

from thornback.faults import ErrorRecord, is_gpu_broken, is_gpu_fault, loses_gpu, user_frame

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


def test_user_frame_in_library_code_is_the_line_that_called_it() -> None:
    try:
        json.loads("{")
    except ValueError as error:
        text = "".join(traceback.format_exception(error))
    assert "json/decoder.py" in text
    frame = user_frame(text)
    assert frame.startswith(__file__)
    assert frame.endswith(" in test_user_frame_in_library_code_is_the_line_that_called_it")


def test_user_frame_of_a_chain_is_that_of_the_last_exception() -> None:
    cause = '  File "/a.py", line 1, in first\nValueError: 1\n'
    last = '  File "/b.py", line 22, in second\nKeyError: 2\n'
    assert user_frame(f"{cause}\nThe above exception ...\n\n{last}") == "/b.py:22 in second"


def test_user_frame_without_any_of_the_user_is_the_innermost() -> None:
    package = "/venv/lib/python3.11/site-packages/vllm/engine.py"
    assert user_frame(f'  File "{package}", line 5, in step\n') == f"{package}:5 in step"
    assert user_frame("RuntimeError: no frames") == ""
