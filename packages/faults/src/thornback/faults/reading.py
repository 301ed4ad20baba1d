"""A failure from the bytes of a file: JSON, or the text of a traceback. Pure.

Files are data: nothing in them is executed, unpickled or imported, whatever it names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import attrs

from thornback.faults.kinds import Attribute, plain_facts
from thornback.faults.records import ErrorRecord
from thornback.faults.tracebacks import mro_of, record_of_text
from thornback.faults.values import Value

WRAPPERS = ("fault", "error", "last")
"""Keys under which an explanation, a report or a journal's certificate has the failure."""
MAX_WRAPPERS = 8
MAX_BYTES = 64 * 1024 * 1024
BINARY = {
    b"\x80": "a pickle, which could run any code when it is read",
    b"\x1f\x8b": "compressed by gzip: unpack it first",
    b"PK\x03\x04": "a zip archive: unpack it first",
    b"\x28\xb5\x2f\xfd": "compressed by zstd: unpack it first",
}
"""Formats that are told apart by how they begin."""


@attrs.frozen(kw_only=True)
class Read(Value):
    """What a file tells of a failure."""

    error: ErrorRecord
    """The exception."""
    facts: Mapping[str, Attribute] = attrs.field(factory=dict)
    """What was known besides, when it was classified: `origin`, `phase`, ..."""


def read_failure(data: bytes) -> Read:
    """Return the failure that these bytes tell of.

    Args:
        data: JSON (an `ErrorRecord`, a `Fault`, what holds one, the certificate of an attempt), or
            a text as Python prints it.

    Raises:
        ValueError: it is nothing of that kind; the message says what is the matter.
    """
    _refuse_binary(data)
    text = data.decode("utf-8", "replace")
    if text.lstrip().startswith("{"):
        try:
            return _of_json(json.loads(text))
        except json.JSONDecodeError as error:
            raise ValueError(f"it begins like JSON, but is none: {error}") from None
        except RecursionError:
            raise ValueError("its JSON is nested too deeply to be a failure") from None
    return Read(error=record_of_text(text))


def _refuse_binary(data: bytes) -> None:
    what = next((said for magic, said in BINARY.items() if data.startswith(magic)), "")
    if not what and b"\0" in data[:1000]:
        what = "binary"
    if len(data) > MAX_BYTES:
        what = f"longer than {MAX_BYTES // 1024**2} MiB: give the part with the failure"
    if what:
        raise ValueError(
            f"it is {what}. Expected JSON (a Fault, an ErrorRecord, a certificate: `as_json()` of "
            "one) or the text of a traceback"
        )


def _of_json(data: object) -> Read:
    for _ in range(MAX_WRAPPERS):
        if not isinstance(data, dict):
            raise ValueError(f"a failure is a JSON object, not {data!r:.100}")
        if "type_names" in data:
            return Read(error=ErrorRecord.from_json(data))
        if isinstance(data.get("error_type"), str):
            return _of_fault(data)
        data = next((data[name] for name in WRAPPERS if isinstance(data.get(name), dict)), {})
        if not data:
            break
    raise ValueError("a failure in JSON has 'type_names' (an error) or 'error_type' (a fault)")


def _of_fault(data: dict[str, object]) -> Read:
    facts, message, traceback = data.get("facts"), data.get("message"), data.get("traceback")
    known = {name: data[name] for name in ("origin", "phase") if data.get(name)}
    return Read(
        error=ErrorRecord(
            type_names=mro_of(str(data["error_type"])),
            message=message if isinstance(message, str) else "",
            traceback=traceback if isinstance(traceback, str) else "",
        ),
        facts=plain_facts((facts if isinstance(facts, dict) else {}) | known),
    )
