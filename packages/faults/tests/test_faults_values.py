"""Values: made by name, never changed, equal and pickled by their fields."""

from __future__ import annotations

import copy
import inspect
import pickle
import sys
from collections.abc import Mapping
from types import MappingProxyType

import attrs
import pytest

from thornback.faults import Explanation, Fault, FaultBudget, FaultKind, Origin, Rule, Trial
from thornback.faults.testing import fault
from thornback.faults.values import Value


def _copied(tags: Mapping[str, int]) -> dict[str, int]:
    return dict(tags)


@attrs.frozen(kw_only=True)
class Point(Value):
    """A value with every kind of field."""

    x: int
    y: int = 0
    tags: Mapping[str, int] = attrs.field(factory=dict, converter=_copied)

    def __attrs_post_init__(self) -> None:
        if self.x < 0:
            raise ValueError("x must be >= 0")


@attrs.frozen(kw_only=True)
class Other(Value):
    x: int
    y: int = 0
    tags: Mapping[str, int] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class Point3(Point):
    z: int


def test_fields_are_given_by_name_and_wrong_ones_are_told_of_as_python_does() -> None:
    assert (Point(x=1).x, Point(x=1).y, Point(x=1, y=2).y) == (1, 0, 2)
    with pytest.raises(TypeError, match=r"Point.__init__\(\) missing 1 required .*: 'x'"):
        Point()  # type: ignore[call-arg]  # the test
    with pytest.raises(TypeError, match=r"Point.__init__\(\) got an unexpected .* 'zz'"):
        Point(x=1, zz=2)  # type: ignore[call-arg]  # the test
    with pytest.raises(TypeError, match=r"Point.__init__\(\) takes 1 positional argument"):
        Point(1)  # type: ignore[call-arg]  # the test
    with pytest.raises(ValueError, match="x must be >= 0"):
        Point(x=-1)


def test_nothing_can_be_changed() -> None:
    point = Point(x=1)
    for name in ("x", "new"):
        with pytest.raises(AttributeError):
            setattr(point, name, 2)
        with pytest.raises(AttributeError):
            delattr(point, name)
    assert point == Point(x=1)


def test_mappings_are_copied() -> None:
    tags = {"a": 1}
    point = Point(x=1, tags=tags)
    tags["b"] = 2
    assert point.tags == {"a": 1}
    assert Point(x=1).tags is not Point(x=1).tags
    view = MappingProxyType({"a": 1})
    assert pickle.loads(pickle.dumps(Point(x=1, tags=view))) == point


def test_equal_is_what_has_the_same_class_and_fields() -> None:
    assert Point(x=1) == Point(x=1, y=0)
    assert Point(x=1) != Point(x=2)
    others: list[object] = [Other(x=1), (1, 0, {})]
    assert Point(x=1) not in others
    assert Point3(x=1, z=0) != Point(x=1)


def test_hash_goes_by_the_fields() -> None:
    one, two = FaultBudget(retries=1), FaultBudget(retries=2)
    assert len({one, FaultBudget(retries=1), two}) == 2
    assert hash(pickle.loads(pickle.dumps(one))) == hash(one)
    with pytest.raises(TypeError, match="unhashable"):
        hash(Point(x=1))


def test_a_value_is_printed_as_it_is_made() -> None:
    point = Point(x=1, tags={"a": 1})
    assert repr(point) == "Point(x=1, y=0, tags={'a': 1})"
    assert eval(repr(point)) == point


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_values_survive_pickle_and_copy(protocol: int) -> None:
    what = fault(FaultKind.OOM, Origin.PROCESS, exit_code=-9)
    trial = Trial(rule="r", error_type="a.B", mismatch="")
    told = Explanation(fault=what, why="", trials=(trial,))
    for value in (what, told, FaultBudget(retries=None), Rule(name="n", kind=FaultKind.OOM)):
        assert pickle.loads(pickle.dumps(value, protocol)) == value
        assert copy.copy(value) == copy.deepcopy(value) == value


def test_a_copy_with_changes_is_checked_as_any_other() -> None:
    point = Point(x=1, y=2)
    assert point.__replace__(x=3) == Point(x=3, y=2)
    assert point == Point(x=1, y=2)
    with pytest.raises(ValueError, match="x must be >= 0"):
        point.__replace__(x=-1)
    with pytest.raises(TypeError, match="'zz'"):
        Value.__replace__(point, zz=1)
    if sys.version_info >= (3, 13):
        assert copy.replace(point, x=3) == Point(x=3, y=2)


def test_the_signature_is_that_of_the_fields() -> None:
    signature = inspect.signature(Fault)
    assert list(signature.parameters) == [field.name for field in attrs.fields(Fault)]
    assert {p.kind for p in signature.parameters.values()} == {inspect.Parameter.KEYWORD_ONLY}
    assert signature.parameters["phase"].default == ""
    assert list(inspect.signature(Point3).parameters) == ["x", "y", "tags", "z"]
