"""A failure from the bytes of a file: JSON, a pickle, or the text of a traceback. Pure.

A pickle can run any code when it is read. So only values of this package and Python's own
exceptions are taken, unless the caller trusts the file.
"""

from __future__ import annotations

import builtins
import enum
import io
import json
import pickle
from collections.abc import Callable, Mapping
from typing import cast

from thornback.faults.kinds import Attribute, ErrorData, Fault, plain_facts
from thornback.faults.records import ErrorRecord
from thornback.faults.tracebacks import Bases, mro_of, record_of_text
from thornback.faults.values import Value

WRAPPERS = ("fault", "error", "last")
"""Keys under which an explanation, a report or a journal's certificate has the failure."""


class Read(Value):
    """What a file tells of a failure."""

    error: ErrorRecord
    """The exception."""
    facts: Mapping[str, Attribute] = {}
    """What was known besides, when it was classified: `origin`, `phase`, ..."""


def read_failure(data: bytes, *, trust: bool = False, bases: Bases = lambda name: ()) -> Read:
    """Return the failure that these bytes tell of.

    Args:
        data: JSON (an `ErrorRecord`, a `Fault`, what holds one, the certificate of an attempt), a
            pickle (of these, or of an exception), or a text as Python prints it.
        trust: unpickle whatever it is.
        bases: the MRO of a class by name: see `record_of_text`.

    Raises:
        ValueError: it is nothing of that kind; the message says what is the matter.
    """
    if data[:1] == b"\x80":
        return _of_object(_unpickle(data, trust), bases)
    text = data.decode("utf-8", "replace")
    if text.lstrip().startswith("{"):
        try:
            loaded = json.loads(text)
        except ValueError as error:
            raise ValueError(f"it begins like JSON, but is none: {error}") from None
        return _of_json(loaded, bases)
    return Read(error=record_of_text(text, bases))


def _of_json(data: object, bases: Bases) -> Read:
    if not isinstance(data, dict):
        raise ValueError(f"a failure is a JSON object, not {data!r:.100}")
    if "type_names" in data:
        return Read(error=ErrorRecord.from_json(data))
    if isinstance(data.get("error_type"), str):
        facts = data.get("facts")
        known = {name: data[name] for name in ("origin", "phase") if data.get(name)}
        return Read(
            error=_record(data["error_type"], data.get("message"), data.get("traceback"), bases),
            facts=plain_facts((facts if isinstance(facts, dict) else {}) | known),
        )
    for name in WRAPPERS:
        if isinstance(data.get(name), dict):
            return _of_json(data[name], bases)
    raise ValueError("a failure in JSON has 'type_names' (an error) or 'error_type' (a fault)")


def _record(error_type: str, message: object, traceback: object, bases: Bases) -> ErrorRecord:
    return ErrorRecord(
        type_names=mro_of(error_type, bases),
        message=message if isinstance(message, str) else "",
        traceback=traceback if isinstance(traceback, str) else "",
    )


def _of_object(thing: object, bases: Bases) -> Read:
    if isinstance(thing, Fault):
        return _of_json(thing.as_json(), bases)
    if isinstance(thing, BaseException):
        return Read(error=ErrorRecord.of(thing))
    if hasattr(thing, "type_names"):
        return Read(error=ErrorRecord.of(cast(ErrorData, thing)))
    inner = next((getattr(thing, name) for name in WRAPPERS if hasattr(thing, name)), None)
    if inner is None:
        raise ValueError(f"the pickle is no failure, but a {type(thing).__qualname__}")
    return _of_object(inner, bases)


class _OnlyFailures(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable[..., object]:
        if (module, name) == ("builtins", "getattr"):
            return _member
        if module in ("builtins", "exceptions"):  # The second is what old protocols say.
            found = getattr(builtins, name, None)
            if isinstance(found, type) and issubclass(found, BaseException):
                return found
        # A dotted name would lead out of the module, to anything that it imports.
        elif module.startswith("thornback.faults.") and "." not in name:
            thing = super().find_class(module, name)
            if isinstance(thing, type) and issubclass(thing, Value | enum.Enum):
                return thing
        raise pickle.UnpicklingError(f"it holds a {module}.{name}: trust the file, or use JSON")


def _member(kind: object, name: object) -> enum.Enum:
    """Stands in for `getattr`, with which early releases of Python 3.11 (3.11.2, of Debian 12)
    write the members of an enum. Gives those, and nothing else."""
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        member = kind.__members__.get(str(name))
        if member is not None:
            return member
    raise pickle.UnpicklingError(f"it takes {name!r} of {kind!r}: trust the file, or use JSON")


def _unpickle(data: bytes, trust: bool) -> object:
    reader = (pickle.Unpickler if trust else _OnlyFailures)(io.BytesIO(data))
    try:
        return reader.load()
    except Exception as error:
        raise ValueError(f"the pickle cannot be read: {type(error).__name__}: {error}") from error
