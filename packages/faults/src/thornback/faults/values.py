"""Immutable values, as `dataclass(frozen=True, kw_only=True)` would make them. Pure.

Not by `dataclasses`, and not by attrs: importing either takes longer than all of this package does
(they bring `inspect`, and with it `ast`, `dis` and `tokenize`), and a classifier is imported where
nothing has gone wrong yet. Type checkers know these classes as they know dataclasses (PEP 681).
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from typing import ClassVar, NoReturn, Self, cast, dataclass_transform


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Value:
    """Base of what has named fields, cannot be changed, and equals what has the same fields.

    A field is an annotated name of the class, with its default. A dict among the defaults says that
    any mapping may be given; it is copied. `__post_init__` may refuse what makes no sense.
    """

    _types: ClassVar[Mapping[str, str]] = {}
    """What the fields are annotated with."""

    def __init_subclass__(cls) -> None:
        cls._types = {**cls._types, **cls.__annotations__}
        cls.__init__ = _make_init(cls, cls._types)  # type: ignore[method-assign]  # mypy knows its own

    def __post_init__(self) -> None:
        """Raise what is to be raised about the fields."""

    def __replace__(self, **changes: object) -> Self:
        """Return a copy with other values in some fields; from Python 3.13 on by `copy.replace`."""
        return type(self)(**(vars(self) | changes))

    def as_json(self) -> Mapping[str, object]:
        """Return what `json.dumps` takes, and `from_json` gives back. TypeError for code."""
        return {name: _as_json(value) for name, value in vars(self).items()}

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> Self:
        """Return the value that `as_json` was called on; fields that are left out have defaults.

        Raises:
            ValueError: a field is missing, unknown, or not of its type: the message names it.
        """
        # Not above: what reads JSON is not what is imported where nothing has gone wrong.
        from thornback.faults.decoding import fields_from_json

        return cls(**fields_from_json(cls, cls._types, data))

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a {type(self).__name__} cannot be changed, and so not its {name!r}")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a {type(self).__name__} cannot be changed, and so not its {name!r}")

    def __eq__(self, other: object) -> bool:
        return vars(self) == vars(other) if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(vars(self).values()))

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__qualname__}({fields})"


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


def _make_init(cls: type, types: Mapping[str, str]) -> Callable[..., None]:
    """Return an `__init__` with the signature of the fields, so that wrong arguments raise what
    they always raise, and `help` shows the right ones."""
    defaults = {name: getattr(cls, name) for name in types if hasattr(cls, name)}
    taken = ", ".join(f"{n}=defaults[{n!r}]" if n in defaults else n for n in types)
    kept = ", ".join(
        f"{n}=dict({n})" if isinstance(defaults.get(n), dict) else f"{n}={n}" for n in types
    )
    made: dict[str, object] = {}
    exec(
        f"def __init__(self, *, {taken}):\n self.__dict__.update({kept})\n self.__post_init__()",
        {"defaults": defaults},
        made,
    )
    init = cast(Callable[..., None], made["__init__"])
    init.__module__ = cls.__module__
    init.__qualname__ = f"{cls.__qualname__}.__init__"
    init.__annotations__ = {**types, "return": None}
    return init
