"""Turns what user code returns into JSON text, and says where it cannot be JSON.

Nothing here may import the driver side: rank processes import this module.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterator
from typing import Any

from thornback.executor.results import MISSING, Results

_MAX_DEPTH = 200
_MAX_VALUES = 100_000
_PLAIN = (str, int, float, type(None))


class NotJson(TypeError):
    """A value is not JSON; the message names the path to it."""


def dumps(value: object, what: str) -> str:
    """Return the value as JSON text. `Results` become a list of their values.

    Keys are not looked at: see `check_keys`.

    Args:
        value: any.
        what: its name, with which the path in an error begins.

    Raises:
        NotJson: it is not JSON.
    """
    try:
        return json.dumps(value, default=_default)
    except Exception as error:  # user classes may raise anything
        found = next(_problems(value, what), "")
        raise NotJson(found or f"{what}: {said(error)}") from error


def check_keys(value: object, what: str) -> None:
    """Return if every key in a value that is JSON otherwise is text. `json.dumps` would make text
    of a number, and 1 and "1" the same key.

    Raises:
        NotJson: one is not.
    """
    for found in _problems(value, what):
        raise NotJson(found)


def _default(value: object) -> object:
    if isinstance(value, Results):
        return [*value.values()]
    raise TypeError


def _problems(value: object, what: str) -> Iterator[str]:
    """Yield what is not JSON in a value, with the path to it; within bounds."""
    waiting: list[tuple[Any, str, int]] = [(value, what, 0)]
    for _ in range(_MAX_VALUES):
        if not waiting:
            return
        each, path, depth = waiting.pop()
        kind = type(each)
        if depth > _MAX_DEPTH:
            yield f"{path[:200]}...: it is nested too deeply, or contains itself"
        elif issubclass(kind, dict):
            pairs = list(dict.items(each))
            for key, _ in pairs:
                if not issubclass(type(key), str):
                    yield (
                        f"{path}: key {_shown(key)} is {type(key).__qualname__}; JSON objects have "
                        "text keys: use str(key), or a list of pairs"
                    )
            inner = [(v, f"{path}[{_shown(k)}]", depth + 1) for k, v in pairs]
            waiting += reversed(inner)
        elif issubclass(kind, list | tuple):
            base: Any = list if issubclass(kind, list) else tuple
            inner = [(v, f"{path}[{n}]", depth + 1) for n, v in enumerate(base.__iter__(each))]
            waiting += reversed(inner)
        elif each is MISSING:
            yield (
                f"{path}: MISSING stands for a rank without a result, and is not JSON: leave it "
                "out, or put None in its place"
            )
        elif issubclass(kind, Results):
            waiting.append(([*each.values()], path, depth))
        elif not issubclass(kind, _PLAIN):
            yield f"{path}: a {kind.__qualname__} is not JSON"


def _shown(key: object) -> str:
    try:
        return reprlib.repr(str(key) if isinstance(key, str) else key)
    except Exception:  # noqa: BLE001  # user code
        return f"a {type(key).__qualname__}"


def said(error: Exception) -> str:
    """Return the text of an error; its class where it has none."""
    try:
        return str(error) or type(error).__qualname__
    except Exception:  # noqa: BLE001  # user code
        return type(error).__qualname__
