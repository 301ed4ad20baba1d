"""Errors cross process borders and are matched by name."""

from __future__ import annotations

import pickle

import pytest

from thornback.placement import (
    AllocatorClosed,
    PlacementError,
    PlacementRemoved,
    PlacementTimedOut,
    Unschedulable,
)

ERRORS = [
    AllocatorClosed("closed"),
    PlacementError("base"),
    PlacementRemoved("removed"),
    PlacementTimedOut("late", 2.5),
    Unschedulable("too big", 1024),
    Unschedulable("too big"),
]


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_errors_pickle_with_their_data(error: PlacementError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_errors_have_the_public_name_that_classifiers_match(error: PlacementError) -> None:
    kind = type(error)
    assert f"{kind.__module__}.{kind.__qualname__}" == f"thornback.placement.{kind.__name__}"
    assert isinstance(error, PlacementError)
