"""Digests of what is bound to functions: the same in every process, and different where values are;
hostile values neither raise nor run."""

from __future__ import annotations

import collections
import datetime
import decimal
import enum
import functools
import hashlib
import logging
import os
import random
import re
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import attrs
import pytest

from thornback.executor.fingerprint import (
    MAX_PARAMS,
    digest,
    digest_of_items,
    digests_differ,
    fingerprint,
    is_plain,
)
from thornback.executor.names import function_name, is_main, same_name


def scale(factor: float, ctx: object, *, offset: int = 0) -> float:
    return factor + offset


def twice(value: float) -> float:
    return 2 * value


class Color(enum.Enum):
    RED = 1
    BLUE = 2


class Level(enum.IntEnum):
    LOW = 1


@attrs.frozen(slots=True)
class Point:
    x: int
    y: Any = 0


class Plain:
    """Its attributes are in a dict."""

    def __init__(self, n: object) -> None:
        self.n = n

    def __call__(self, ctx: object) -> object:
        return self.n

    def method(self, ctx: object) -> object:
        return self.n


class Slotted:
    __slots__ = ("n",)

    def __init__(self, n: int) -> None:
        self.n = n

    def __call__(self, ctx: object) -> int:
        return self.n


class Closed:
    """Says itself what it pickles as."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __getstate__(self) -> NoReturn:
        raise AssertionError("user code was run")


class Cached:
    def __init__(self, n: int) -> None:
        self.n = n

    @functools.cached_property
    def slow(self) -> float:
        return random.random()


class Hostile:
    """Every hook of it raises what ends a process."""

    def __init__(self) -> None:
        self.n = 1

    def _no(self, *_: object) -> NoReturn:
        raise SystemExit("user code was run")

    __eq__ = __hash__ = __repr__ = __str__ = __len__ = __bool__ = __iter__ = _no
    __getattr__ = __getattribute__ = _no


def of_hostile_metaclass() -> type:
    class Meta(type):
        def __getattribute__(cls, name: str) -> NoReturn:
            raise SystemExit("user code was run")

    return Meta("OfHostile", (), {})


class HostileText(str):
    __slots__ = ()

    def __str__(self) -> NoReturn:
        raise SystemExit("user code was run")

    __repr__ = __len__ = __iter__ = encode = __str__  # type: ignore[assignment]


class HostileDict(dict[str, int]):
    def items(self) -> NoReturn:
        raise SystemExit("user code was run")

    __iter__ = __len__ = keys = items


class BadPath:
    def __fspath__(self) -> NoReturn:
        raise RuntimeError("no path")


def closing_over(value: object) -> Callable[[object], object]:
    def inner(ctx: object) -> object:
        return value

    return inner


def params_of(fn: object, **hooks: object) -> dict[str, str]:
    return dict(fingerprint(fn, **hooks).params)


def of_default(n: int) -> Callable[[object], object]:
    def inner(ctx: object, n: int = n, *, m: int = n) -> int:
        return n + m

    return inner


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda v: functools.partial(scale, v), ["partial[0]"]),
        (lambda v: functools.partial(scale, offset=v), ["partial.offset"]),
        (lambda v: functools.partial(functools.partial(scale, v), None), ["partial[0]"]),
        (closing_over, ["closure.value"]),
        (of_default, ["default.n", "default.m"]),
        (Plain, ["self.n"]),
        (Slotted, ["self.n"]),
        (lambda v: Plain(v).method, ["self.n"]),
        (lambda v: functools.partial(Plain(v), None), ["self.n"]),
        (lambda v: functools.partial(Plain(v).method, None), ["self.n"]),
        (lambda v: functools.cache(closing_over(v)), ["closure.value"]),
        (lambda v: closing_over(closing_over(v)), ["closure.value"]),
        (lambda v: closing_over(functools.partial(twice, v)), ["closure.value"]),
        (lambda v: [v].append, ["self"]),
    ],
)
def test_fingerprint_other_value_differs_in_its_parameter(
    make: Callable[[int], object], names: list[str]
) -> None:
    first, again, other = params_of(make(1)), params_of(make(1)), params_of(make(2))
    assert first == again
    assert [name for name in first if digests_differ(first[name], other[name])] == names
    assert fingerprint(make(1)).code == fingerprint(make(2)).code


def test_fingerprint_of_hooks_is_told_apart() -> None:
    found = params_of(twice, setup=functools.partial(twice, 1), teardown=closing_over("x"))
    assert list(found) == ["setup.partial[0]", "teardown.closure.value"]


def test_fingerprint_function_attribute_counts() -> None:
    def with_attribute(n: int) -> Callable[[object], object]:
        inner = closing_over(0)
        inner.n = n  # type: ignore[attr-defined]
        return inner

    assert params_of(with_attribute(1)) != params_of(with_attribute(2))


def test_fingerprint_object_may_say_its_own_parameters() -> None:
    class Named(Plain):
        @property
        def __thornback_params__(self) -> dict[str, int]:
            return {"limit": 3}

    assert list(params_of(Named(threading.Lock()))) == ["self.limit"]


def test_fingerprint_many_attributes_are_bounded() -> None:
    def wide(last: int) -> Plain:
        it = Plain(0)
        vars(it).update({f"a{n}": n for n in range(10_000)}, a9999=last)
        return it

    assert len(params_of(wide(1))) == MAX_PARAMS + 1
    assert params_of(wide(1)) == params_of(wide(1))
    assert params_of(wide(1)) != params_of(wide(2))


def test_fingerprint_code_changes_with_the_code_and_not_with_its_place() -> None:
    def made(text: str) -> object:
        space: dict[str, Any] = {"__name__": "x"}
        exec(text, space)
        return space["f"]

    base = fingerprint(made("def f(ctx):\n    return [n + 1 for n in {'a', 'b', 'c'}]"))
    moved = fingerprint(
        made("\n\n# more\ndef f(ctx):\n\n    return [n + 1 for n in {'a', 'b', 'c'}]")
    )
    other = fingerprint(made("def f(ctx):\n    return [n + 2 for n in {'a', 'b', 'c'}]"))
    assert base.code == moved.code
    assert base.code != other.code
    assert base.code.startswith(f"{sys.implementation.cache_tag}:")
    assert fingerprint(print).code, "also of what is no Python code"


def test_fingerprint_code_of_wrapped_function_and_of_methods_counts() -> None:
    def wrap(fn: Callable[..., object]) -> Callable[..., object]:
        @functools.wraps(fn)
        def wrapper(*args: object) -> object:
            return fn(*args)

        return wrapper

    def one(ctx: object) -> int:
        return 1

    def other(ctx: object) -> int:
        return 2

    other.__qualname__ = one.__qualname__
    assert params_of(wrap(one)) == params_of(wrap(other))
    assert fingerprint(wrap(one)).code != fingerprint(wrap(other)).code
    first = type("T", (), {"__call__": lambda self: self.help(), "help": one})
    second = type("T", (), {"__call__": lambda self: self.help(), "help": other})
    assert fingerprint(first()).code != fingerprint(second()).code


VALUES: list[object] = [
    *(None, True, False, 1, 2, 1.0, -0.0, 0.0, float("nan"), float("inf"), 1j, "1", b"1", "", b""),
    *(bytearray(b"1"), "x" * 100_000, "x" * 100_001, 10**5000, 10**5000 + 1, (), {}, set(), [[]]),
    *([1, 2], [2, 1], {"a": 1}, {"a": 2}, {1: "a"}, {"1": "a"}, {1, 2}, frozenset({3}), ...),
    *(Color.RED, Color.BLUE, Level.LOW, Point(1), Point(2), Plain(1), Plain(2), Slotted(1)),
    *(Path("/a"), Path("/b"), range(3), range(0, 3, 2), slice(1, 2), SimpleNamespace(a=1)),
    *(datetime.datetime(2020, 1, 1), datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)),
    *(datetime.date(2020, 1, 1), datetime.timedelta(1), decimal.Decimal("1.5"), uuid.UUID(int=1)),
    *(re.compile("a"), re.compile("a", re.I), re.compile(b"a"), twice, scale, len, str.upper, int),
    *(collections.Counter("aab"), collections.OrderedDict(z=1), collections.deque([1], 2)),
    *(
        collections.defaultdict(int, a=1),
        collections.defaultdict(bool, a=1),
        logging.getLogger("a"),
    ),
    *(logging.getLogger("b"), os, sys, Point, functools.partial(twice, 1), Plain(1).method),
    list[int],
]


def test_digest_different_values_have_different_digests() -> None:
    found: dict[str, object] = {}
    for value in VALUES:
        one = digest(value)
        assert one, f"no digest: {value!r:.80}"
        assert one not in found, f"{value!r:.80} is like {found[one]!r:.80}"
        found[one] = value


def test_digest_depends_on_the_value_alone() -> None:
    same: list[tuple[object, object]] = [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ((1, 2), [1, 2]),
        (Path("/a"), "/a"),
    ]
    for one, other in same:
        assert digest(one) == digest(other), one
    cached = Cached(1)
    before = digest(cached)
    assert cached.slow >= 0
    assert digest(cached) == before, "what is computed from it is no part of it"


def test_digest_is_the_same_in_every_process() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import test_executor_fingerprint as it\n"
        "print([it.digest(value) for value in it.VALUES])\n"
        "print(it.fingerprint(it.Plain({'a', 'b'})))"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", code, os.path.dirname(__file__)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            timeout=60,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(told) == 1


def _generator() -> Iterator[int]:
    yield 1


@pytest.mark.parametrize(
    "value",
    [
        threading.Lock(),
        _generator(),
        iter([1]),
        random.Random(),
        lambda: 1,
        functools.partial(lambda: 1),
        Closed(1),
        ValueError("x"),
        Plain(threading.Lock()),
        {"a": [threading.RLock()]},
        BadPath(),
        sys.stdout,
    ],
)
def test_digest_without_stable_form_is_empty(value: object) -> None:
    assert digest(value) == ""
    assert params_of(closing_over(value)) == {"closure.value": ""}


@pytest.mark.parametrize(
    "make",
    [
        Hostile,
        of_hostile_metaclass,
        lambda: type.__call__(of_hostile_metaclass()),
        lambda: HostileText("a"),
        lambda: HostileDict(a=1),
        lambda: {"a": Hostile()},
    ],
)
def test_digest_runs_no_code_of_hostile_classes(make: Callable[[], object]) -> None:
    assert digest(make()) == digest(make()) != ""
    assert params_of(closing_over(make()))["closure.value"]


def test_fingerprint_hostile_callable_does_not_raise() -> None:
    class Callable_(Hostile):
        def __call__(self, ctx: object) -> None: ...

    assert params_of(Callable_()) == params_of(Callable_())
    assert function_name(print) == "builtins.print"


def test_digest_cycles_and_depth_are_bounded() -> None:
    cycle: list[object] = []
    cycle.append(cycle)
    assert digest(cycle)
    recursive = closing_over(0)
    recursive.__closure__[0].cell_contents = recursive  # type: ignore[index]
    assert params_of(recursive)["closure.value"]
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert digest(deep) == ""
    while deep:  # freed here, one by one
        deep = deep.pop()  # type: ignore[assignment]


def test_digest_too_many_values_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thornback.executor.fingerprint.MAX_VALUES", 1000)
    wide: list[object] = [1]
    for _ in range(40):  # 2 ** 40 values, few objects
        wide = [wide, wide]
    assert digest(wide) == ""
    monkeypatch.setattr("thornback.executor.fingerprint.MAX_BYTES", 1 << 20)
    assert digest(bytes(1 << 21)) == ""


def test_digest_of_file_system_does_not_depend_on_credentials_or_process() -> None:
    from fsspec.implementations.dirfs import DirFileSystem
    from fsspec.implementations.local import LocalFileSystem

    def folder(path: str, **options: object) -> str:
        return digest(DirFileSystem(path, LocalFileSystem(skip_instance_cache=True, **options)))

    assert folder("/a") == folder("/a", token="secret") != ""
    assert digests_differ(folder("/a"), folder("/b"))


def test_digest_of_items_is_that_of_the_first_version() -> None:
    items = [1, "a", {"x": [1.5, None]}, {2, 1}, Path("/p"), b"x"]
    texts = ["1", "'a'", "{'x':[1.5,None]}", "<1,2>", "'/p'", "b'x'"]
    wanted = hashlib.sha256("".join(f"{text}\n" for text in texts).encode()).hexdigest()
    assert digest_of_items(items) == (wanted, True)
    assert is_plain(wanted)


def test_digest_of_items_unseen_item_counts_by_its_class() -> None:
    locks = digest_of_items([threading.Lock(), 1])
    assert locks == digest_of_items([threading.Lock(), 1])
    assert not locks[1]
    assert digests_differ(locks[0], digest_of_items([threading.Lock(), 2])[0])
    assert not is_plain(locks[0])


def test_digests_of_scripts_differ_by_qualified_name_only() -> None:
    def in_module(module: str, name: str = "Item") -> str:
        cls = attrs.make_class(name, ["n"])
        cls.__module__ = module
        return digest(cls(1))

    assert not digests_differ(in_module("__main__"), in_module("job"))
    assert not digests_differ(in_module("__mp_main__"), in_module("job"))
    assert digests_differ(in_module("job"), in_module("other"))
    assert digests_differ(in_module("__main__"), in_module("job", "Thing"))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("job.f", "job.f", True),
        ("__main__.f", "job.f", True),
        ("pkg.job.make.<locals>.f", "__main__.make.<locals>.f", True),
        ("__mp_main__.f", "__main__.f", True),
        ("__main__.f", "job.g", False),
        ("__main__.f", "job.nof", False),
        ("job.f", "other.f", False),
    ],
)
def test_same_name_of_scripts_compares_qualified_names(one: str, other: str, same: bool) -> None:
    assert same_name(one, other) is same
    assert same_name(other, one) is same


def test_function_name_of_spawned_script_is_that_of_the_script() -> None:
    fn = closing_over(0)
    names = set()
    for module in ("__main__", "__mp_main__", "__prefect_loader_1__", None):
        fn.__module__ = module  # type: ignore[assignment]
        names.add(function_name(fn))
    assert names == {"__main__.closing_over.<locals>.inner"}
    assert not is_main("__future__")
