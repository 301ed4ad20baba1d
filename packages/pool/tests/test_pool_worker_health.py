"""When a rank process is replaced, and when its slot is parked: told by hand."""

from __future__ import annotations

import pytest

from thornback.pool import CaughtError
from thornback.pool.caught import catch
from thornback.pool.worker.health import FRUITLESS, SlotHealth


def raised(
    message: str = "the engine is dead", *, line: int = 7, kind: str = "RuntimeError"
) -> CaughtError:
    return CaughtError(
        type_names=(f"builtins.{kind}", "builtins.RuntimeError", "builtins.Exception"),
        message=message,
        attributes={"user_frame": f"job.py:{line} in step"},
    )


BUSY = CaughtError(
    type_names=("app.ServerBusy", "builtins.Exception"), message="", attributes={"status_code": 503}
)
RESET = catch(ConnectionResetError("by peer"))
ECC = raised("CUDA error: uncorrectable ECC error encountered")
ILLEGAL = raised("CUDA error: an illegal memory access was encountered")
ASSERT = raised("CUDA error: device-side assert triggered")
UNAVAILABLE = raised("CUDA error: CUDA-capable device(s) is/are busy or unavailable")


def begun(*, own_gpus: bool = False) -> SlotHealth:
    health = SlotHealth(own_gpus=own_gpus)
    health.began("p")
    return health


def replaced(health: SlotHealth, rank: int, error: CaughtError | None = None) -> bool:
    """Let a rank fail; if the process is to be replaced, it is. Without an error: of a bug."""
    found = health.failed(rank, error or raised())
    if found:
        health.began("p")
    return found


def test_health_of_two_different_ranks_in_a_row_replaces() -> None:
    health = begun()
    health.succeeded()
    assert [replaced(health, rank) for rank in (2, 3)] == [False, True]


def test_health_of_one_rank_that_fails_each_time_does_not_replace() -> None:
    health = begun()
    assert [replaced(health, 2) for _ in range(5)] == [False] * 5


def test_health_after_a_success_counts_anew() -> None:
    health = begun()
    assert not replaced(health, 1)
    health.succeeded()
    assert not replaced(health, 2)
    assert replaced(health, 3)


@pytest.mark.parametrize("passing", [BUSY, RESET])
def test_health_errors_of_servers_neither_count_nor_reset(passing: CaughtError) -> None:
    health = begun()
    assert [replaced(health, rank, passing) for rank in range(10)] == [False] * 10
    assert not replaced(health, 10)
    assert not replaced(health, 11, passing)
    assert replaced(health, 12)
    assert not health.has_failed((11,))


def test_health_of_a_bug_in_every_rank_replaces_once() -> None:
    health = begun()
    assert [replaced(health, rank) for rank in range(50)] == [False, True] + [False] * 48


def test_health_of_a_known_bug_in_some_ranks_replaces_ever_more_seldom() -> None:
    health, count = begun(), 0
    for pair in range(100):
        count += sum(replaced(health, 2 * pair + each) for each in range(2))
        health.succeeded()
    assert count == 1


def test_health_of_an_engine_that_dies_again_replaces_again() -> None:
    health = begun()
    assert [replaced(health, rank) for rank in (1, 2)] == [False, True]
    health.succeeded()
    assert [replaced(health, rank) for rank in (4, 5, 6, 7)] == [False, False, False, True]


def test_health_of_another_signature_replaces_once_more() -> None:
    health = begun()
    assert [replaced(health, rank) for rank in (1, 2)] == [False, True]
    other = raised(line=99)
    assert [replaced(health, rank, other) for rank in (3, 4)] == [False, True]
    assert [replaced(health, rank, other) for rank in (5, 6, 7, 8)] == [False] * 4


def test_health_without_any_success_replaces_a_bounded_number_of_times() -> None:
    health = begun()
    found = [replaced(health, rank, raised(line=rank)) for rank in range(100)]
    assert sum(found) == FRUITLESS


def test_health_is_told_of_another_program_and_judges_it_by_itself() -> None:
    health = begun()
    assert [replaced(health, rank) for rank in (1, 2)] == [False, True]
    health.began("q")
    assert [health.failed(rank, raised()) for rank in (1, 2)] == [False, True]


def test_health_of_a_lost_context_replaces_at_once_and_again() -> None:
    health = begun()
    for _ in range(5):
        health.succeeded()
        assert replaced(health, 1, ASSERT)
    assert health.parked is None


def test_health_tells_which_ranks_have_failed_in_the_process() -> None:
    health = begun()
    assert not health.has_failed((1,))
    assert not replaced(health, 1)
    assert health.has_failed((0, 1))
    assert replaced(health, 2)
    assert not health.has_failed((1, 2))


def test_health_of_broken_hardware_parks_at_once() -> None:
    health = begun(own_gpus=True)
    assert health.failed(1, ECC)
    assert health.parked is ECC


def test_health_of_shared_gpus_never_parks() -> None:
    health = begun()
    for rank in range(5):
        replaced(health, rank, ECC)
        health.set_up_failed(ECC)
    assert health.parked is None


def test_health_of_a_lost_context_in_the_next_process_too_parks() -> None:
    health = begun(own_gpus=True)
    health.succeeded()
    assert replaced(health, 1, ILLEGAL)
    assert health.parked is None
    assert health.failed(2, ILLEGAL)
    assert health.parked is ILLEGAL


def test_health_of_one_rank_that_loses_each_context_does_not_park() -> None:
    health = begun(own_gpus=True)
    health.succeeded()
    for _ in range(5):
        replaced(health, 1, ILLEGAL)
    assert health.parked is None


def test_health_of_contexts_lost_with_successes_between_does_not_park() -> None:
    health = begun(own_gpus=True)
    for rank in range(5):
        health.succeeded()
        assert replaced(health, rank, ILLEGAL)
    assert health.parked is None


def test_health_of_a_kernel_with_a_bug_in_every_rank_does_not_park() -> None:
    health = begun(own_gpus=True)
    for rank in range(20):
        replaced(health, rank, ILLEGAL)
        replaced(health, rank, ASSERT)
    assert health.parked is None


def test_health_of_a_gpu_that_no_set_up_finds_parks_at_the_second() -> None:
    health = begun(own_gpus=True)
    health.set_up_failed(UNAVAILABLE)
    assert health.parked is None
    health.began("p")
    health.set_up_failed(UNAVAILABLE)
    assert health.parked is UNAVAILABLE


def test_health_of_a_set_up_that_fails_by_itself_does_not_park() -> None:
    health = begun(own_gpus=True)
    for _ in range(5):
        health.set_up_failed(raised("no such model"))
        health.began("p")
    assert health.parked is None
