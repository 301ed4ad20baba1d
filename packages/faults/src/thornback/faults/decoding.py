"""From JSON to values: every field is checked against its annotation. Pure."""

from __future__ import annotations

import enum
import types
import typing
from collections.abc import Mapping
from contextlib import suppress

import attrs

from thornback.faults.values import Value

V = typing.TypeVar("V", bound=Value)


def value_from_json(cls: type[V], data: object) -> V:
    """Return a value of a class. ValueError as `Value.from_json`."""
    if not isinstance(data, Mapping):
        raise ValueError(f"a {cls.__name__} is made of a JSON object, not of {data!r:.100}")
    fields = attrs.fields_dict(cls)
    unknown = [name for name in data if name not in fields]
    if unknown:
        raise ValueError(
            f"a {cls.__name__} has no {unknown[0]!r}; its fields are: {', '.join(fields)}"
        )
    needed = [name for name, field in fields.items() if field.default is attrs.NOTHING]
    missing = [name for name in needed if name not in data]
    if missing:
        raise ValueError(f"a {cls.__name__} needs {missing[0]!r}")
    hints = typing.get_type_hints(cls)
    return cls(
        **{name: decode(hints[name], item, f"{cls.__name__}.{name}") for name, item in data.items()}
    )


def decode(hint: object, data: object, where: str) -> object:
    """Return `data` as what `hint` says: a plain type, enum, `Value`, tuple, mapping or union."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _first_that_fits(inner, data, where)
    if origin is typing.Literal and data in inner:
        return data
    if origin is tuple and isinstance(data, list | tuple):
        return tuple(decode(inner[0], item, where) for item in data)
    if isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(data, Mapping):
        return {
            decode(inner[0], key, where): decode(inner[1], item, where)
            for key, item in data.items()
        }
    if isinstance(hint, type):
        if issubclass(hint, Value):
            return value_from_json(hint, data)
        if issubclass(hint, enum.Enum):
            return _member(hint, data, where)
        if _is_plain(hint, data):
            return data
    raise ValueError(f"{where} cannot be {data!r:.100}")


def _first_that_fits(hints: tuple[object, ...], data: object, where: str) -> object:
    for hint in hints:
        with suppress(ValueError):
            return decode(hint, data, where)
    raise ValueError(f"{where} cannot be {data!r:.100}")


def _member(hint: type[enum.Enum], data: object, where: str) -> enum.Enum:
    for member in hint:
        if member.value == data:
            return member
    allowed = ", ".join(repr(member.value) for member in hint)
    raise ValueError(f"{where} is one of {allowed}, not {data!r:.100}")


def _is_plain(hint: type, data: object) -> bool:
    """Return whether it is of this type, as JSON has it: a bool is no number, 1 is a float."""
    if hint is float:
        return type(data) in (int, float)
    return type(data) is hint
