"""What a real Ray raises when the task or actor of an argument has failed."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

from thornback.faults import Classifier, FaultKind, Origin, is_retriable

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

TIMEOUT_S = 60.0


def dies() -> Any:
    """Return what a task that dies gives."""
    import ray

    return ray.remote(max_retries=0)(lambda: os._exit(1)).remote()


def actor() -> Any:
    """Start an actor with one method that ends its process, and another that never returns."""
    import ray

    class Actor:
        def leave(self) -> None:
            os._exit(1)

        def hang(self) -> None:
            threading.Event().wait()

    return ray.remote(Actor).remote()


def answer_of_a_dead_actor() -> Any:
    return actor().leave.remote()


def answer_of_a_killed_actor() -> Any:
    import ray

    killed = actor()
    # A call that could end would now and then win against the kill, which Ray does not wait for.
    answer = killed.hang.remote()
    ray.kill(killed)
    return answer


def raises_a_bug() -> Any:
    import ray

    def bug() -> None:
        raise ValueError("bad row")

    return ray.remote(bug).remote()


@pytest.mark.parametrize(
    ("argument", "kind"),
    [
        (dies, FaultKind.WORKER_CRASH),
        (answer_of_a_dead_actor, FaultKind.WORKER_CRASH),
        (answer_of_a_killed_actor, FaultKind.INTERRUPTED),
    ],
)
def test_lost_argument_has_kind_of_its_loss_secondhand(
    argument: Callable[[], Any], kind: FaultKind
) -> None:
    import ray

    user: Any = ray.remote(max_retries=0)(lambda value: value)
    with pytest.raises(ray.exceptions.RayTaskError) as caught:
        ray.get(user.remote(argument()), timeout=TIMEOUT_S)
    fault = Classifier().classify(caught.value)
    assert (fault.kind, fault.origin) == (kind, Origin.WORKER), fault
    assert fault.facts["secondhand"] is True
    assert is_retriable(caught.value)


def test_argument_of_task_with_bug_is_the_bug() -> None:
    import ray

    user: Any = ray.remote(max_retries=0)(lambda value: value)
    with pytest.raises(ray.exceptions.RayTaskError) as caught:
        ray.get(user.remote(raises_a_bug()), timeout=TIMEOUT_S)
    fault = Classifier().classify(caught.value)
    assert (fault.kind, fault.error_type) == (FaultKind.APPLICATION, "builtins.ValueError")
    assert not is_retriable(caught.value)
