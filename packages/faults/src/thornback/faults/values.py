"""What the values of this package have in common: JSON, and copies with changes. Pure."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Self

import attrs


@attrs.frozen(kw_only=True)
class Value:
    """Base of immutable classes that become JSON and come back.

    Their fields are plain types, enums, other values, tuples and mappings of these, or unions.
    """

    def __replace__(self, **changes: object) -> Self:
        """Return a copy with other values in some fields; from Python 3.13 on by `copy.replace`."""
        return type(self)(**(_fields(self) | changes))

    def as_json(self) -> Mapping[str, object]:
        """Return what `json.dumps` takes, and `from_json` gives back. TypeError for code."""
        return {name: _as_json(value) for name, value in _fields(self).items()}

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> Self:
        """Return the value that `as_json` was called on; fields that are left out have defaults.

        Raises:
            ValueError: a field is missing, unknown, or not of its type: the message names it.
        """
        # Not above: what reads JSON is not what is imported where nothing has gone wrong.
        from thornback.faults.decoding import value_from_json

        return value_from_json(cls, data)


def _fields(value: Value) -> dict[str, object]:
    """Return the fields by name; not what they hold, as `attrs.asdict` would."""
    return {field.name: getattr(value, field.name) for field in attrs.fields(type(value))}


def _as_json(value: object) -> object:
    if isinstance(value, Value):
        return value.as_json()
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return {_as_json(key): _as_json(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_as_json(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{value!r} is code, which cannot become JSON")
