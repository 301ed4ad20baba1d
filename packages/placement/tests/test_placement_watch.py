"""Which drains are news."""

from __future__ import annotations

from thornback.placement import NodeView
from thornback.placement.watch import drain_notices


def draining(left_s: float | None, name: str = "a") -> NodeView:
    return NodeView(name=name, resources={}, draining=True, left_s=left_s)


IDLE = NodeView(name="a", resources={})


def test_a_drain_is_told_once() -> None:
    first = drain_notices({}, [draining(60.0), NodeView(name="b", resources={})], 100.0, 5.0)
    assert first.fresh == (("a", 60.0),)
    again = drain_notices(first.known, [draining(58.5)], 101.5, 5.0)
    assert again.fresh == ()


def test_slow_drift_adds_up_to_a_new_notice() -> None:
    known = drain_notices({}, [draining(60.0)], 100.0, 5.0).known
    for step in range(1, 5):
        notices = drain_notices(known, [draining(60.0)], 100.0 + step, 5.0)
        assert notices.fresh == ()
        known = notices.known
    assert drain_notices(known, [draining(60.0)], 106.0, 5.0).fresh == (("a", 60.0),)


def test_a_deadline_that_moves_is_told_again() -> None:
    known = drain_notices({}, [draining(None)], 0.0, 5.0).known
    assert drain_notices(known, [draining(None)], 50.0, 5.0).fresh == ()
    notices = drain_notices(known, [draining(30.0)], 50.0, 5.0)
    assert notices.fresh == (("a", 30.0),)
    assert drain_notices(notices.known, [draining(3.0)], 55.0, 5.0).fresh == (("a", 3.0),)


def test_a_drain_past_its_deadline_is_not_told_for_ever() -> None:
    known = drain_notices({}, [draining(10.0)], 0.0, 5.0).known
    for now in range(10, 100, 10):
        notices = drain_notices(known, [draining(0.0)], float(now), 5.0)
        assert notices.fresh == ()
        known = notices.known


def test_a_drain_taken_back_is_forgotten() -> None:
    known = drain_notices({}, [draining(10.0)], 0.0, 5.0).known
    known = drain_notices(known, [IDLE], 1.0, 5.0).known
    assert known == {}
    assert drain_notices(known, [draining(9.0)], 1.0, 5.0).fresh == (("a", 9.0),)
