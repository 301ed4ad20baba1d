"""Digests of what is bound to a stage's functions, and of items: the same in every process.

A digest is made of a text that depends on the value alone: not on hash seeds, addresses or pickles.
Plain data, and what is made of it, has such a text: dataclasses, attrs classes, objects that pickle
as Python pickles them by default, enums, functions and classes by name, arrays. What a connection,
a model or an iterator is cannot be seen; such a value has no digest, and is not compared.

User code is run only where nothing else tells what a value is: `__fspath__` of a path that is not
`pathlib`'s. `==`, `hash`, `repr`, `getattr` and `__reduce__` of user classes are never called.
Nothing here raises, and the work is bounded: by the depth, by the number of values, and by the
bytes that are hashed.

A digest is `A` or `A:B`. `B` stands for the modules of the functions and classes in the value, and
says `__main__` if one of them is a script; then only `A` is compared (see `names`). Plain data has
no `B`, and its `A` is what thornback has recorded of items since its first version.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import logging
import os
import re
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs

from thornback.executor.names import MAIN, module_of

MAX_DEPTH = 60
MAX_VALUES = 1_000_000
"""In one parameter, or one item."""
MAX_BYTES = 1 << 30
"""Hashed of one parameter, or one item: as much as anybody would send to each worker."""
MAX_PARAMS = 200
"""Of one function. An object with more attributes has one digest for all of them."""
OWN_PARAMS = "__thornback_params__"
"""An object that has this attribute, a mapping by name, is known by that instead of its
attributes."""
PLAIN = (str, bytes, bytearray, int, float, complex, list, tuple, dict, set, frozenset)
_LONG = 1 << 16
_HEX = 32
_POINTER = 8
_MANAGED_DICT = 1 << 4
"""`Py_TPFLAGS_MANAGED_DICT`: the dict of an instance is not in its `__basicsize__`."""
_BY_REDUCE = (
    *("array", "collections", "datetime", "decimal", "fractions", "ipaddress", "operator", "time"),
    *("uuid", "zoneinfo"),
)
"""Modules of the standard library whose classes pickle as a name and plain arguments."""
_REDUCED = (range, slice, types.SimpleNamespace)
_CUSTOM = ("__reduce_ex__", "__reduce__", "__getstate__", "__getnewargs_ex__", "__getnewargs__")
_mro = type.__dict__["__mro__"].__get__
_namespace = type.__dict__["__dict__"].__get__


class Unseen(Exception):
    """The value has a part without a stable form."""


@attrs.frozen(kw_only=True, slots=True)
class Fingerprint:
    """What is bound to the functions of a stage, and their code."""

    params: Mapping[str, str]
    """By name: its digest; empty if it has no stable form."""
    code: str
    """`python version:digest` of the bytecode, without line numbers."""


def fingerprint(fn: object, *, setup: object = None, teardown: object = None) -> Fingerprint:
    """Return what is bound to these functions, and the digest of their code. Never raises."""
    params: dict[str, str] = {}
    code: list[str] = []
    for prefix, function in (("", fn), ("setup.", setup), ("teardown.", teardown)):
        if function is None:
            continue
        try:
            bound = _bounded(list(_bound(function, code)))
        except Exception:  # noqa: BLE001  # a hostile object
            bound = [("self", _HIDDEN)]
        for name, value in bound:
            params[prefix + name] = digest(value, code)
    own = hashlib.sha256("\n".join(sorted(set(code))).encode()).hexdigest()[:_HEX]
    return Fingerprint(params=params, code=f"{_python()}:{own}")


def digest(value: object, code: list[str] | None = None) -> str:
    """Return the digest of a value; empty: it has no stable form. Never raises.

    Args:
        value: any.
        code: is given the digest of the code of each function in it.
    """
    walk = _Walk(code)
    try:
        text = walk.text(value)
    except Exception:  # noqa: BLE001  # a hostile value, or one that is too deep
        return ""
    sha = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:_HEX]
    return sha + walk.suffix


def digest_of_items(items: Sequence[object]) -> tuple[str, bool]:
    """Return the digest of the items, and whether all of them have a stable form. Of one that has
    none, only its class counts. Never raises."""
    sha, whole, walk = hashlib.sha256(), True, _Walk(None)
    for item in items:
        walk.restart()
        try:
            text = walk.text(item)
        except Exception:  # noqa: BLE001  # as in `digest`
            whole, text = False, walk.class_name(type(item))
        sha.update(text.encode(errors="surrogatepass") + b"\n")
    return sha.hexdigest() + walk.suffix, whole


def digests_differ(one: str, other: str) -> bool:
    """Return whether two digests are those of different values; False where that is not known."""
    if not one or not other:
        return False
    (a, _, modules), (b, _, others) = one.partition(":"), other.partition(":")
    return a != b or (modules != others and MAIN not in (modules, others))


def is_plain(value: str) -> bool:
    """Return whether a digest is that of plain data, which every version has digested alike."""
    return ":" not in value


def _python() -> str:
    return (
        f"{sys.implementation.cache_tag}{f'-O{sys.flags.optimize}' if sys.flags.optimize else ''}"
    )


# -- what is bound to a function


def _bounded(bound: list[tuple[str, object]]) -> list[tuple[str, object]]:
    """Return not more than `MAX_PARAMS`: the rest is one parameter."""
    if len(bound) <= MAX_PARAMS:
        return bound
    kept, rest = bound[:MAX_PARAMS], bound[MAX_PARAMS:]
    return [*kept, ("self.*", dict(rest))]


def _bound(fn: object, code: list[str]) -> Iterator[tuple[str, object]]:
    """Yield what is bound to a function, by name; note the code of what is called."""
    seen: set[int] = set()
    while id(fn) not in seen:  # a wrapper may wrap itself
        seen.add(id(fn))
        kind = type(fn)
        if kind is functools.partial or issubclass(kind, functools.partial):
            partial: Any = fn
            for number, value in enumerate(_member(partial, "args")):
                yield f"partial[{number}]", value
            for name, value in _member(partial, "keywords").items():
                yield f"partial.{_short(name)}", value
            fn = _member(partial, "func")
        elif kind is types.MethodType:
            method: Any = fn
            yield from _of_object(method.__self__)
            fn = method.__func__
        elif kind is types.FunctionType:
            yield from _of_function(fn, code)
            return
        elif issubclass(kind, type):
            code += _code_of_class(fn)
            return
        elif (wrapped := _wrapped(fn)) is not None:
            fn = wrapped
        elif issubclass(kind, types.BuiltinFunctionType):
            owner: Any = getattr(fn, "__self__", None)
            if owner is not None and type(owner) is not types.ModuleType:
                yield "self", owner
            return
        else:
            yield from _of_object(fn)
            code += _code_of_class(kind)
            return


def _member(partial: Any, name: str) -> Any:
    return getattr(functools.partial, name).__get__(partial)


def _wrapped(fn: object) -> object:
    """Return what a wrapper that is not Python code wraps (`functools.cache`)."""
    if type(fn) is functools._lru_cache_wrapper:
        return getattr(fn, "__wrapped__", None)
    return None


def _of_function(fn: Any, code: list[str]) -> Iterator[tuple[str, object]]:
    code.append(code_digest(fn.__code__))
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=False):
        if name == "__class__":  # of `super()`
            continue
        try:
            yield f"closure.{_short(name)}", cell.cell_contents
        except ValueError:  # it is not bound yet
            continue
    named = fn.__code__.co_varnames[: fn.__code__.co_argcount]
    defaults = fn.__defaults__ or ()
    for name, value in zip(named[len(named) - len(defaults) :], defaults, strict=False):
        yield f"default.{_short(name)}", value
    for name, value in (fn.__kwdefaults__ or {}).items():
        yield f"default.{_short(name)}", value
    for name, value in fn.__dict__.items():
        if isinstance(name, str) and not name.startswith("__"):
            yield f"attribute.{_short(name)}", value


def _of_object(value: object) -> Iterator[tuple[str, object]]:
    """Yield the attributes of an object whose method is called."""
    kind = type(value)
    if issubclass(kind, type):
        return  # a class method
    own = _declared(value)
    if own is not None:
        for name, each in own.items():
            yield f"self.{_short(name)}", each
        return
    if _plain_base(kind) is not object:
        yield "self", value
        return
    names = _field_names(kind)
    state = _state(value)
    for name, each in state.items():
        if names is None or name in names:
            yield f"self.{_short(name)}", each
    if _is_hiding(kind, object):
        yield "self", _HIDDEN


def _declared(value: object) -> Mapping[str, object] | None:
    if not any(OWN_PARAMS in _namespace(cls) for cls in _mro(type(value))):
        return None
    try:
        own = getattr(value, OWN_PARAMS)
    except Exception:  # noqa: BLE001  # user code
        return None
    return own if isinstance(own, Mapping) else None


def _short(name: object) -> str:
    return (name if isinstance(name, str) else type(name).__name__)[:60]


# -- code


def code_digest(code: types.CodeType) -> str:
    """Return a digest of bytecode and constants, without files and line numbers."""
    sha = hashlib.sha256(code.co_code)
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    numbers = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
    sha.update(repr((names, numbers)).encode())
    sha.update(getattr(code, "co_exceptiontable", b""))
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            sha.update(f"code {constant.co_qualname} {code_digest(constant)}".encode())
        else:  # `repr` of a frozenset depends on hash seeds
            sha.update(digest(constant).encode())
    return sha.hexdigest()[:_HEX]


def _code_of_class(cls: Any) -> list[str]:
    """Return the digest of the code of each method, also of base classes."""
    found = []
    for each in _mro(cls):
        for value in list(_namespace(each).values()):
            function = getattr(value, "__func__", value) if _is_method(value) else value
            if type(function) is types.FunctionType:
                found.append(code_digest(function.__code__))
    return found


def _is_method(value: object) -> bool:
    return _is_one(type(value), (staticmethod, classmethod))


# -- values


class _Hidden:
    """Stands for state that cannot be seen."""


_HIDDEN = _Hidden()


class _Walk:
    """Makes the text of one value."""

    def __init__(self, code: list[str] | None) -> None:
        self.modules: dict[str, None] = {}
        self.plain = True
        self._code = code
        self.restart()

    def restart(self) -> None:
        """Go on with another value, whose modules are added to those of the last."""
        self._left = MAX_VALUES
        self._bytes_left = MAX_BYTES
        self._path: list[int] = []

    @property
    def suffix(self) -> str:
        """Return the second half of the digest."""
        if self.plain:
            return ""
        if MAIN in self.modules:
            return f":{MAIN}"
        return ":" + hashlib.sha256("\n".join(sorted(self.modules)).encode()).hexdigest()[:16]

    def text(self, value: object) -> str:
        """Return the text of a value.

        Raises:
            Unseen: it has none.
            Exception: whatever a hostile value raises.
        """
        self._left -= 1
        if self._left < 0:
            raise Unseen
        kind = type(value)
        if value is None or kind is bool or kind is float:
            return repr(value)
        if kind is int or kind is str or kind is bytes:
            return self._scalar(value, kind)
        if id(value) in self._path:
            self.plain = False
            return f"^{len(self._path) - self._path.index(id(value))}"
        if len(self._path) >= MAX_DEPTH:
            raise Unseen
        self._path.append(id(value))
        try:
            if _is_one(kind, PLAIN):
                return self._container(value, kind)
            return self._other(value, kind)
        finally:
            self._path.pop()

    def _scalar(self, value: Any, kind: type) -> str:
        if kind is int:
            if value.bit_length() <= 4096:
                return repr(value)
            self.plain = False
            return hex(value)  # the decimal form of a long one is slow, or refused
        if len(value) <= _LONG:
            return repr(value)
        data = value if kind is bytes else value.encode(errors="surrogatepass")
        return self._hashed(kind.__name__, data)

    def _hashed(self, what: str, data: Any) -> str:
        self.plain = False
        view = memoryview(data)
        self._bytes_left -= view.nbytes
        if self._bytes_left < 0:
            raise Unseen
        return f"{what}#{hashlib.sha256(view).hexdigest()}"

    def _container(self, value: Any, kind: type) -> str:
        """Return the text of the part of a value that is plain, whatever its subclass says."""
        if kind is dict:
            pairs = sorted(f"{self.text(k)}:{self.text(v)}" for k, v in dict.items(value))
            return f"{{{','.join(pairs)}}}"
        if kind is list or kind is tuple:
            return f"[{','.join([self.text(each) for each in kind.__iter__(value)])}]"
        if kind is set or kind is frozenset:
            return f"<{','.join(sorted([self.text(each) for each in kind.__iter__(value)]))}>"
        if kind is bytearray:
            return self._hashed("bytearray", value)
        if kind is complex:
            self.plain = False
            return complex.__repr__(value)
        if kind is str:
            return self._scalar("".join(str.__iter__(value)), str)
        if kind is bytes:
            return self._scalar(bytes(memoryview(value)), bytes)
        if kind is int:
            return self._scalar(int.__index__(value) + 0, int)
        return float.__repr__(value)

    def _other(self, value: Any, kind: type) -> str:
        if value is _HIDDEN:
            raise Unseen
        if any("__fspath__" in _namespace(cls) for cls in _mro(kind)):
            return self._path_like(value)
        self.plain = False
        for known in (self._named, self._enum, self._foreign, self._standard):
            text = known(value, kind)
            if text is not None:
                return text
        return self._object(value, kind)

    def class_name(self, cls: type) -> str:
        """Return the qualified name of a class, and note its module."""
        self.plain = False
        self.modules[module_of(cls)] = None
        return f"@{type.__getattribute__(cls, '__qualname__')}"

    def _named(self, value: Any, kind: type) -> str | None:
        """Return the text of what is known by its name: functions, classes, modules."""
        if kind is types.FunctionType:
            if value.__name__ == "<lambda>":  # many have this name
                if self._code is not None:
                    self._code.append(code_digest(value.__code__))
                raise Unseen
            self.modules[module_of(value)] = None
            return f"def {value.__qualname__}{self._bound(value)}"
        if issubclass(kind, functools.partial) or kind is types.MethodType:
            inner = _member(value, "func") if kind is not types.MethodType else value.__func__
            what = "method" if kind is types.MethodType else "partial"
            return f"{what} {self.text(inner)}{self._bound(value, inner=False)}"
        if kind is types.BuiltinFunctionType:
            owner = value.__self__
            of = "" if owner is None or type(owner) is types.ModuleType else self.text(owner)
            self.modules[value.__module__ or "builtins"] = None
            return f"def {value.__qualname__}{of}"
        if kind is functools._lru_cache_wrapper:
            return f"cached {self.text(value.__wrapped__)}"
        if _is_one(kind, (types.MethodDescriptorType, types.WrapperDescriptorType)):
            return f"def {value.__qualname__}"
        if issubclass(kind, type):
            return self.class_name(value)
        if kind is types.ModuleType:
            name = types.ModuleType.__getattribute__(value, "__name__")
            return f"module {name}" if isinstance(name, str) else None
        if kind is logging.Logger or kind is logging.RootLogger:
            return f"logger {value.name}"
        return None

    def _bound(self, fn: object, *, inner: bool = True) -> str:
        """Return the text of what is bound to a function that is itself a value."""
        code = [] if self._code is None else self._code
        bound = [
            (name, value)
            for name, value in _bound(fn, code)
            if inner or name.startswith(("partial", "self"))
        ]
        return "".join(f"|{name}={self.text(value)}" for name, value in bound)

    def _enum(self, value: Any, kind: type) -> str | None:
        if not issubclass(kind, enum.Enum):
            return None
        name = object.__getattribute__(value, "_name_")
        inner = object.__getattribute__(value, "_value_")
        return f"{self.class_name(kind)}.{self.text(name)}={self.text(inner)}"

    def _foreign(self, value: Any, kind: type) -> str | None:
        """Return the text of what belongs to libraries that are not imported here: if a value is
        theirs, they are there."""
        numpy: Any = sys.modules.get("numpy")
        array, generic = getattr(numpy, "ndarray", None), getattr(numpy, "generic", None)
        if isinstance(array, type) and issubclass(kind, array):
            if not _is_one(kind, (array, getattr(numpy, "memmap", array))):
                raise Unseen  # a mask, units, ...
            return self._array(value)
        if isinstance(generic, type) and issubclass(kind, generic):
            if value.dtype.hasobject:
                raise Unseen
            return f"{value.dtype.str}#{value.tobytes().hex()}"
        for name in ("dtype", "ufunc"):
            special = getattr(numpy, name, None)
            if isinstance(special, type) and issubclass(kind, special):
                return f"{name} {value.descr if name == 'dtype' else value.__name__}"
        system = getattr(sys.modules.get("fsspec.spec"), "AbstractFileSystem", None)
        if isinstance(system, type) and issubclass(kind, system):
            # Not its options: credentials change, and a process id is among its attributes.
            state = _state(value)
            parts = [state[name] for name in ("path", "fs") if name in state]
            return f"{self.class_name(kind)}{''.join(map(self.text, parts))}"
        return None

    def _array(self, value: Any) -> str:
        what = f"array{value.shape}{value.dtype.descr}"
        if value.dtype.hasobject:
            return f"{what}{self.text(value.tolist())}"
        if value.nbytes > self._bytes_left:
            raise Unseen
        plain = value.flags.c_contiguous and value.dtype.kind in "biufc" and value.size
        return self._hashed(what, value.data.cast("B") if plain else value.tobytes())

    def _standard(self, value: Any, kind: type) -> str | None:
        if kind is re.Pattern:
            return f"pattern {self.text(value.pattern)}{value.flags}"
        if kind is types.MappingProxyType:
            return f"proxy {self.text(dict(value))}"
        if kind is types.GenericAlias:
            return f"{self.text(value.__origin__)}{self.text(value.__args__)}"
        if value is Ellipsis or value is NotImplemented:
            return repr(value)
        module = type.__getattribute__(kind, "__module__")
        if not _is_one(kind, _REDUCED) and not _is_of(kind, module):
            return None
        reduced = value.__reduce_ex__(2)
        if isinstance(reduced, str):
            return reduced
        make, args, state, items, pairs = (*reduced, *(None,) * 5)[:5]
        parts = [self.text(make), self.text(args), self.text(state)]
        if items is not None:
            parts.append(self.text(list(items)))
        if pairs is not None:
            parts.append(self.text(dict(pairs)))
        return f"{self.class_name(kind)}({','.join(parts)})"

    def _path_like(self, value: Any) -> str:
        path = os.fspath(value)
        return (
            self._scalar(path, type(path)) if _is_one(type(path), (str, bytes)) else self.text(path)
        )

    def _object(self, value: Any, kind: type) -> str:
        """Return the text of an object of a Python class: its class and its attributes."""
        own = _declared(value)
        if own is not None:
            return f"{self.class_name(kind)}{self._attributes(own)}"
        names, base = _field_names(kind), _plain_base(kind)
        if _is_hiding(kind, base):
            raise Unseen
        if base is object and not _has_fields(kind) and _pickles_its_own_way(kind):
            raise Unseen
        state = _state(value)
        if names is not None:
            state = {name: each for name, each in state.items() if name in names}
        content = "" if base is object else self._container(value, base)
        return f"{self.class_name(kind)}{content}{self._attributes(state)}"

    def _attributes(self, state: Mapping[str, object]) -> str:
        texts = sorted(f"{name!r}:{self.text(each)}" for name, each in state.items())
        return f"{{{','.join(texts)}}}"


def _is_one(kind: type, kinds: Sequence[object]) -> bool:
    """Return whether a class is one of these; `in` would call `==` of a metaclass."""
    return any(kind is each for each in kinds)


def _is_of(kind: type, module: object) -> bool:
    """Return whether a class really is the one that a module of `_BY_REDUCE` has under its name."""
    if type(module) is not str or module not in _BY_REDUCE:
        return False
    name = type.__getattribute__(kind, "__qualname__")
    return getattr(sys.modules.get(module), name, None) is kind


def _plain_base(kind: type) -> Any:
    """Return the plain type that a class derives from; `object`: none."""
    return next((base for base in PLAIN if issubclass(kind, base)), object)


def _field_names(kind: type) -> frozenset[str] | None:
    """Return the fields of a dataclass, an attrs class or a pydantic model; None: it is none
    itself."""
    names = _namespace(kind)
    for known in ("__dataclass_fields__", "__pydantic_fields__"):
        fields = names.get(known)
        if type(fields) is dict:
            return frozenset(fields)
    fields = names.get("__attrs_attrs__")
    return frozenset(each.name for each in fields) if isinstance(fields, tuple) else None


def _has_fields(kind: type) -> bool:
    """Return whether a class has fields, also by inheritance: what they generate for pickling tells
    nothing more."""
    return any(_field_names(cls) is not None for cls in _mro(kind))


def _state(value: Any) -> dict[str, object]:
    """Return the attributes in the slots and the dict of an object, without calling anything of its
    class. What `cached_property` keeps there is left out."""
    state: dict[str, object] = {}
    cached: set[str] = set()
    for cls in reversed(_mro(type(value))):
        names = _namespace(cls)
        for name, member in list(names.items()):
            if type(member) is functools.cached_property:
                cached.add(name)
            elif "__slots__" in names and type(member) is types.MemberDescriptorType:
                try:
                    state[name] = member.__get__(value)
                except AttributeError:  # never set
                    continue
    try:
        own = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return state
    if type(own) is dict:
        state |= {n: v for n, v in own.items() if isinstance(n, str) and n not in cached}
    return state


def _is_hiding(kind: type, base: type) -> bool:
    """Return whether instances have state in C that no attribute shows: a lock, a tensor."""
    slots = 0
    for cls in _mro(kind):
        names = _namespace(cls)
        if "__slots__" in names:
            slots += sum(type(each) is types.MemberDescriptorType for each in names.values())
    words = slots + (_flag(kind, "__weakrefoffset__") > 0)
    words += bool(_flag(kind, "__dictoffset__")) and not _flag(kind, "__flags__") & _MANAGED_DICT
    size = _flag(kind, "__basicsize__") - _flag(base, "__basicsize__")
    return size > words * _POINTER


def _flag(kind: type, name: str) -> int:
    value: int = type.__getattribute__(kind, name)
    return value


def _pickles_its_own_way(kind: type) -> bool:
    """Return whether a class says itself what it is made of, which only its code tells."""
    for name in _CUSTOM:
        for cls in _mro(kind):
            if name in _namespace(cls):
                if cls is not object:
                    return True
                break
    return False
