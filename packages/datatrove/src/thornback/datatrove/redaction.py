"""What of an executor goes into `executor.json`: plain data, without secrets. Pure.

Byte for byte what datatrove's own encoder writes, but for the secrets, and for what that cannot
encode: a key of a mapping that is no text becomes text, and a value that holds itself is named
instead of entered. Of a value that is only described, a long text is cut: a step that holds 100 MB
of bytes would make a file of 350 MB, before the first rank runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from datatrove.executor.base import PipelineExecutor
from datatrove.pipeline.base import PipelineStep
from thornback.faults import looks_secret, redact

REDACTED = "***"
_DESCRIBED = 10_000
"""Characters of the text of what is no JSON."""


def plain(value: object, *, wide: bool = False) -> object:
    """Return a copy that `json.dumps` takes as it is.

    Args:
        value: anything; an executor as its attributes and `world_size`, with what it depends on.
        wide: inside options of Ray or of a file system, where any name that has a word like "key"
            in it is a secret.
    """
    return _plain(value, wide, ())


def _plain(value: object, wide: bool, above: tuple[int, ...]) -> object:
    if isinstance(value, str):
        return redact(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if id(value) in above:
        return _described(value)
    inside = (*above, id(value))
    if isinstance(value, list | tuple):
        if len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], dict):
            return [redact(value[0]), _mapping(value[1], True, inside)]  # a folder, its options
        return [_plain(each, wide, inside) for each in value]
    if isinstance(value, dict):
        return _mapping(value, wide, inside)
    if (fields := _fields(value)) is not None:
        return _mapping(fields, wide, inside)
    return _described(value)


def _described(value: object) -> str:
    if isinstance(value, bytes | bytearray):
        value = value[: 2 * _DESCRIBED]  # its text is up to four times as long
    # More than is kept: a password that lies across the end is seen as one.
    text = redact(str(value)[: 2 * _DESCRIBED])
    return text if len(text) <= _DESCRIBED else f"{text[:_DESCRIBED]}..."


def _fields(value: object) -> Mapping[str, object] | None:
    """Return the attributes of what datatrove's encoder takes apart, in its order; else None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, PipelineExecutor):
        own = getattr(value, "_recorded", lambda: vars(value))
        return {**own(), "world_size": value.world_size}
    if isinstance(value, PipelineStep):
        return {name: each for name, each in vars(value).items() if name != "stats"}
    return None


def _mapping(
    values: Mapping[object, object] | Mapping[str, object], wide: bool, above: tuple[int, ...]
) -> dict[object, object]:
    found: dict[object, object] = {}
    for key, value in values.items():
        known = key is None or isinstance(key, str | int | float)
        name = key if known else str(key)
        if looks_secret(str(key), wide=wide):
            found[name] = _hidden(value)
        elif wide and key == "env_vars" and isinstance(value, Mapping):
            found[name] = {str(variable): REDACTED for variable in value}
        else:
            inner = wide or key in ("ray_remote_kwargs", "storage_options", "runtime_env")
            found[name] = _plain(value, inner, above)
    return found


def _hidden(value: object) -> object:
    """Return a stand-in; what holds no secret stays, so that one sees that none was given."""
    if value is None or isinstance(value, bool | int | float) or value in ("", b""):
        return value
    if isinstance(value, Mapping):
        return {str(name): _hidden(each) for name, each in value.items()}
    return REDACTED
