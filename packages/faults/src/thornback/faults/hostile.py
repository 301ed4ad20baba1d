"""Exceptions that defend themselves: for tests of whatever describes exceptions.

None of them may end the process that describes it, or hide which class it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any, NoReturn

_HUGE = 40_000_000


def _exits(*args: object, **kwargs: object) -> NoReturn:
    raise SystemExit("hostile")


def _interrupts(*args: object, **kwargs: object) -> NoReturn:
    raise KeyboardInterrupt("hostile")


class Text(str):
    """Text of which every method ends the process."""

    __slots__ = ()
    __contains__ = __eq__ = __format__ = __getitem__ = __hash__ = _exits
    __iter__ = __len__ = __lt__ = __ne__ = __repr__ = __str__ = _exits
    encode = endswith = isprintable = lower = partition = _exits
    replace = rpartition = split = startswith = strip = _exits


class Number(int):
    """A number of which every method ends the process."""

    __eq__ = __hash__ = __int__ = __index__ = __repr__ = bit_length = _exits


class Impostor:
    """Has a class that ends the process when it is asked for."""

    __class__ = property(_exits)
    __eq__ = __bool__ = __repr__ = _exits


class Answer(dict[str, object]):
    """A mapping that cannot be asked."""

    get = items = keys = __getitem__ = __iter__ = _exits


class Guarded(type):
    """A metaclass that answers no question about its classes.

    But for `__subclasscheck__`: Python itself asks that at a `raise`, and would raise its error.
    """

    __instancecheck__ = __eq__ = __repr__ = _exits
    __hash__ = type.__hash__

    def __getattribute__(cls, name: str) -> object:
        raise SystemExit("hostile")


class Hidden(type):
    """A metaclass whose classes are no exceptions by their MRO: only a bare `except` works."""

    def mro(cls) -> list[type]:
        return [cls, object]


def _raises(bases: tuple[type, ...] = (Exception,), **namespace: Any) -> Callable[[str], NoReturn]:
    """Return what raises an exception of a class with this namespace, and the name it is given."""

    def raise_it(name: str) -> NoReturn:
        raise type(name, bases, {"__module__": "hostile", **namespace})("a message")

    return raise_it


def _guarded(name: str) -> NoReturn:
    raise Guarded(name, (Exception,), {"__module__": "hostile"})("a message")


def _hidden(name: str) -> NoReturn:
    raise Hidden(name, (Exception,), {"__module__": "hostile"})("a message")


def _with(**attributes: Any) -> Callable[[str], NoReturn]:
    def raise_it(name: str) -> NoReturn:
        error = _made(name)
        error.__dict__.update(attributes)
        raise error

    return raise_it


def _made(name: str, text: str = "a message") -> Exception:
    cls: type[Exception] = type(name, (Exception,), {"__module__": "hostile"})
    return cls(text)


def _odd_keys(name: str) -> NoReturn:
    error = _made(name)
    keys: dict[Any, object] = {7: 1, Impostor: 2, "fine": Impostor(), "\ud800": 3, "nul\0": "a\0b"}
    for key, value in keys.items():
        error.__dict__[key] = value
    raise error


def _many_attributes(name: str) -> NoReturn:
    error = _made(name)
    error.__dict__.update((f"a{n}", "x" * 1000) for n in range(100_000))
    raise error


def _with_message(text: Callable[[], str]) -> Callable[[str], NoReturn]:
    def raise_it(name: str) -> NoReturn:
        raise _made(name, text())

    return raise_it


def _cycle(name: str) -> NoReturn:
    error, cause = _made(name), ValueError("a cause")
    error.__cause__, cause.__cause__ = cause, error
    raise error


def _long_chain(name: str) -> NoReturn:
    error = link = _made(name)
    for _ in range(100_000):
        link.__context__ = ValueError("before")
        link = link.__context__
    raise error


def _deep_group(name: str) -> NoReturn:
    inner: Exception = ValueError("innermost")
    for _ in range(100_000):
        inner = ExceptionGroup("nested", [inner])
    raise type(name, (ExceptionGroup,), {"__module__": "hostile"})("a message", [inner])


def _wide_group(name: str) -> NoReturn:
    cls = type(name, (ExceptionGroup,), {"__module__": "hostile"})
    raise cls("a message", [ValueError(str(n)) for n in range(100_000)])


def _lying_group(name: str) -> NoReturn:
    namespace = {"__module__": "hostile", "exceptions": property(_exits), "derive": _exits}
    raise type(name, (ExceptionGroup,), namespace)("a message", [ValueError("inside")])


def _from_odd_source(name: str) -> NoReturn:
    """Raise it in a frame whose lines of code only a loader knows, which ends the process."""
    loader = type("Loader", (), {"get_source": _exits})()
    code = _raise_global.__code__.replace(co_filename="/nowhere/odd.py")
    FunctionType(code, {"__name__": "odd", "__loader__": loader, "error": _made(name)})()
    raise AssertionError("it was not raised")


def _raise_global() -> NoReturn:
    raise error  # type: ignore[name-defined]  # noqa: F821  # in the globals that it is run with


def _endless(self: BaseException) -> BaseException:
    return type(self)("another cause")


def _recursion(name: str) -> NoReturn:
    def deeper() -> NoReturn:
        deeper()

    try:
        deeper()
    except RecursionError as error:
        raise _made(name) from error


HOSTILE_ERRORS: Mapping[str, Callable[[str], NoReturn]] = {
    "StrExits": _raises(__str__=_exits, __repr__=_exits),
    "StrIsNumber": _raises(__str__=lambda self: 7),
    "StrIsHostile": _raises(__str__=lambda self: Text("a message")),
    "MessageIsHostile": _with_message(lambda: Text("a message")),
    "AttributesExit": _raises(__getattribute__=_exits),
    "AttributesInterrupt": _raises(__getattr__=_interrupts),
    "PropertiesExit": _raises(
        __cause__=property(_exits),
        __context__=property(_exits),
        __dict__=property(_exits),
        __notes__=property(_exits),
        __suppress_context__=property(_exits),
        __traceback__=property(_exits),
        args=property(_exits),
        code=property(_exits),
        errno=property(_exits),
        headers=property(_exits),
        response=property(_exits),
        retry_after=property(_exits),
    ),
    "CauseIsEndless": _raises(__cause__=property(_endless), __context__=property(_endless)),
    "CauseIsNumber": _raises(__cause__=7, __context__=7, __traceback__=7),
    "ClassIsOther": _raises(__class__=property(lambda self: int)),
    "ClassExits": _raises(__class__=property(_exits)),
    "MetaclassExits": _guarded,
    "MroHides": _hidden,
    "ModuleIsNumber": _raises(__module__=7),
    "ModuleIsHostile": _raises(__module__=Text("hostile")),
    "NotesAreNumber": _with(__notes__=7),
    "NotesAreNumbers": _with(__notes__=[7, Impostor(), Text("x")]),
    "NotesAreHuge": _with(__notes__=["\n" * _HUGE]),
    "ValuesAreHostile": _with(
        code=Number(3), status=Text("x"), signal=Impostor(), errno=Number(11)
    ),
    "ClassValuesAreHostile": _raises(code=Number(3), status=Text("x"), signal=Impostor()),
    "KeysAreOdd": _odd_keys,
    "AttributesAreMany": _many_attributes,
    "ResponseIsHostile": _with(response=Answer(Error=Answer(Code=7))),
    "HeadersAreHostile": _with(headers=Answer({"Retry-After": "7"})),
    "ResponseIsImpostor": _with(response=Impostor()),
    "ErrnoIsHostile": _raises((OSError,), errno=property(lambda self: Impostor())),
    "SyntaxIsHostile": _raises((SyntaxError,), text=Text("x"), filename=Impostor(), lineno="x"),
    "ReduceExits": _raises(__reduce__=_exits, __reduce_ex__=_exits, __deepcopy__=_exits),
    "DelExits": _raises(__del__=_exits),
    "MessageIsHuge": _with_message(lambda: "x" * _HUGE),
    "MessageIsLines": _with_message(lambda: "\n" * _HUGE),
    "MessageIsUnencodable": _with_message(lambda: "\ud800 \0 \udfff"),
    "CauseIsItself": _cycle,
    "ContextsAreMany": _long_chain,
    "GroupIsDeep": _deep_group,
    "GroupIsWide": _wide_group,
    "GroupLies": _lying_group,
    "SourceIsHostile": _from_odd_source,
    "StackIsDeep": _recursion,
}
"""By the name of its class: what raises it, if given that name."""
