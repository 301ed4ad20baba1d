"""Looks at objects of user code without trusting them.

Exceptions come from anybody's code: their attributes, classes and metaclasses may lie, raise
anything, or never end. What the interpreter itself keeps of an object is read from there, and all
else goes through `attempt`. Only a call that never returns cannot be helped: a rank's time-out ends
that. Pure.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
D = TypeVar("D")

_BASE = type.__dict__["__base__"]
_MRO = type.__dict__["__mro__"]
_MODULE = type.__dict__["__module__"]
_QUALNAME = type.__dict__["__qualname__"]
_NAMESPACE = type.__dict__["__dict__"]
_CAUSE = BaseException.__dict__["__cause__"]
_CONTEXT = BaseException.__dict__["__context__"]
_SUPPRESSED = BaseException.__dict__["__suppress_context__"]
_TRACEBACK = BaseException.__dict__["__traceback__"]
_DICT = BaseException.__dict__["__dict__"]
_MEMBERS = BaseExceptionGroup.__dict__["exceptions"]


def attempt(default: D, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | D:
    """Return what a call returns, or `default` if it raises anything at all."""
    try:
        return call(*args, **kwargs)
    # Bare: the metaclass of an exception can see to it that it is no BaseException.
    except:  # noqa: E722
        return default


def str_of(thing: object) -> tuple[str | None, str]:
    """Return what `str` says of a thing, or None and the name of what it raised."""
    try:
        return text(str(thing)), ""
    except:  # noqa: E722  # as above
        return None, _short_name(type(sys.exception()))


def is_a(thing: object, cls: type) -> bool:
    """Return whether a thing is an instance of a class, by its real type: not by `__class__`."""
    kind = type(thing)
    if type.__subclasscheck__(cls, kind):
        return True
    return type(kind) is not type and any(c is cls for c in _above(kind))


def _above(cls: type) -> tuple[type, ...]:
    """Return the class and its first bases, which no `mro()` of a metaclass can hide."""
    found, base = [], cls
    while base is not None:
        found.append(base)
        base = _BASE.__get__(base)
    return tuple(found)


def get(thing: object, name: str) -> object:
    """Return an attribute; None if there is none, or it raises."""
    return attempt(None, getattr, thing, name, None)


def text(thing: object) -> str | None:
    """Return a real `str` for any kind of string; None for everything else."""
    return str.__str__(thing) if is_a(thing, str) else None


def mro(cls: type) -> tuple[type, ...]:
    """Return the real MRO; of an exception that hides what it is, the first bases as well."""
    found: tuple[type, ...] = _MRO.__get__(cls)
    if type(cls) is type:
        return found
    above = _above(cls)
    hidden = any(c is BaseException for c in above) and not any(c is BaseException for c in found)
    return (*found, *above[1:]) if hidden else found


def namespace(cls: type) -> Mapping[str, object]:
    """Return what a class itself defines."""
    found: Mapping[str, object] = _NAMESPACE.__get__(cls)
    return found


def class_name(cls: type) -> str:
    """Return `module.qualname`, with `?` for what is no text."""
    module = text(attempt(None, _MODULE.__get__, cls))
    return f"{module or '?'}.{text(_QUALNAME.__get__(cls)) or '?'}"


def _short_name(cls: type) -> str:
    return class_name(cls).rpartition(".")[2]


def cause(error: BaseException) -> BaseException | None:
    """Return what it was raised from."""
    return attempt(None, _CAUSE.__get__, error)


def context(error: BaseException) -> BaseException | None:
    """Return what was being handled when it was raised; None also if that is suppressed."""
    suppressed = attempt(True, _SUPPRESSED.__get__, error)
    return None if suppressed else attempt(None, _CONTEXT.__get__, error)


def traceback(error: BaseException) -> TracebackType | None:
    """Return its real traceback; of an exception that hides what it is, while it is handled."""
    found: TracebackType | None = attempt(None, _TRACEBACK.__get__, error)
    if found is None and sys.exc_info()[1] is error:
        return sys.exc_info()[2]
    return found


def instance_dict(error: BaseException) -> dict[object, object]:
    """Return the attributes of the instance itself."""
    return attempt({}, _DICT.__get__, error)


def members(group: BaseException) -> tuple[BaseException, ...]:
    """Return the exceptions in a group; none of an exception that is no group."""
    if not is_a(group, BaseExceptionGroup):
        return ()
    found: tuple[BaseException, ...] = _MEMBERS.__get__(group)
    return found
