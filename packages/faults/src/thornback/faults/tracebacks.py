"""From the text of a traceback back to an exception as data: for people who have only a log. Pure.

What a text does not say is not known: attributes (but for `errno`), and the bases of classes other
than Python's, Ray's, and those that the caller knows.
"""

from __future__ import annotations

import builtins
import re
from collections.abc import Callable, Sequence

from thornback.faults.kinds import MESSAGE_CHARS, TRACEBACK_CHARS
from thornback.faults.on_ray import RAY_TASK_ERROR
from thornback.faults.ray_bases import RAY_BASES
from thornback.faults.records import MAX_CAUSES, MAX_MEMBERS, ErrorRecord, is_translation
from thornback.faults.text import safe
from thornback.faults.values import Value

HEADER = "Traceback (most recent call last):"
CHAINED = re.compile(
    r"^(The above exception was the direct cause of the following exception:"
    r"|During handling of the above exception, another exception occurred:)\n",
    re.MULTILINE,
)
FRAME = re.compile(r'^[ |]*File "([^"]+)", line \d+', re.MULTILINE)
ANSI = re.compile(r"\x1b\[[0-9;]*m")
RAISED = re.compile(r"^(?P<type>[A-Za-z_][\w.<>]*(?:\(\w+\))?)(?:: ?(?P<text>.*))?$")
MEMBER = re.compile(r"^[ |]*\+[-+]+ (?:\d+|\.\.\.) -+$", re.MULTILINE)
BOX_END = re.compile(r"^[ |]*\+-+\n?$", re.MULTILINE)
BOX = re.compile(r"^[ |]*[|+] ?", re.MULTILINE)
GROUPS = ("builtins.ExceptionGroup", "builtins.BaseExceptionGroup")

Bases = Callable[[str], Sequence[str]]
"""Returns the MRO of a class of this name, as `ErrorRecord.type_names`; empty: not known."""


class _Raised(Value):
    name: str
    text: str


def record_of_text(text: str, bases: Bases = lambda name: ()) -> ErrorRecord:
    """Return what was raised last in this text, with its causes; ValueError: nothing was.

    Args:
        text: what Python, or Ray, prints: with what comes before each line in a log, if it is the
            same for all. A last line (`ValueError: bad row`) is enough.
        bases: for classes that are neither Python's nor Ray's.
    """
    text = _without_prefix(ANSI.sub("", text).replace("\r\n", "\n"))
    links: list[ErrorRecord] = []
    parts = CHAINED.split(text)
    for at in range(len(parts) - 1, -1, -2):
        # The first frame of what was handled is the one that handled it.
        handler = FRAME.search(parts[at])
        handled = at + 1 < len(parts) and parts[at + 1].startswith("During handling")
        file = handler[1] if handler else ""
        if handled and links and not is_translation(links[-1].type_names, file):
            break
        links += _links(parts[at], bases)
    if not links:
        raise ValueError(
            "there is no exception in this text: its last line should be like 'ValueError: bad row'"
        )
    head, *causes = links
    return head.__replace__(
        causes=tuple(causes[:MAX_CAUSES]), traceback=safe(text, TRACEBACK_CHARS)
    )


def mro_of(name: str, bases: Bases = lambda name: ()) -> tuple[str, ...]:
    """Return the names along the MRO of a class: `Exception` is all that may be known of it."""
    short = name.rpartition(".")[2]
    if name == f"builtins.{short}" and _is_builtin(short):
        cls: type = getattr(builtins, short)
        return tuple(f"{c.__module__}.{c.__qualname__}" for c in cls.__mro__ if c is not object)
    if name == f"ray.exceptions.{short}" and short in RAY_BASES:
        above = [mro_of(_full(base), bases) for base in RAY_BASES[short]]
        return tuple(dict.fromkeys([name, *(each for mro in above for each in mro)]))
    if name.startswith(f"{RAY_TASK_ERROR}("):
        return (name, *mro_of(RAY_TASK_ERROR, bases))
    return tuple(bases(name)) or (name, "builtins.Exception", "builtins.BaseException")


def _full(name: str) -> str:
    return f"ray.exceptions.{name}" if name in RAY_BASES else f"builtins.{name}"


def _links(part: str, bases: Bases) -> list[ErrorRecord]:
    """Return the exception of one traceback, and what a `RayTaskError` in it carries."""
    boxes = [BOX.sub("", box) for box in MEMBER.split(BOX_END.sub("", part))]
    raised = _raised(boxes[0])
    if raised is None:
        return []
    head = _record(raised, bases)
    members = []
    for box in boxes[1:]:
        last = CHAINED.split(box)[-1]
        leaf = _raised(last)
        if leaf is not None and leaf.name not in GROUPS:
            members.append(_record(leaf, bases))
    head = head.__replace__(members=tuple(members[:MAX_MEMBERS]))
    inner = _carried(raised)
    return [head] if inner is None else [head, _record(inner, bases)]


def _carried(raised: _Raised) -> _Raised | None:
    """Return what user code raised, from the message of a `RayTaskError`: a remote traceback."""
    if not raised.name.startswith(RAY_TASK_ERROR):
        return None
    wanted = raised.name.partition("(")[2].removesuffix(")")
    lines = raised.text.splitlines()
    for number in reversed(range(len(lines))):
        found = _line(lines[number])
        if found is not None and (not wanted or found.name.rpartition(".")[2] == wanted):
            return _Raised(name=found.name, text="\n".join([found.text, *lines[number + 1 :]]))
    return None


def _record(raised: _Raised, bases: Bases) -> ErrorRecord:
    number = re.match(r"\[Errno (\d+)\]", raised.text)
    return ErrorRecord(
        type_names=mro_of(raised.name, bases),
        message=safe(raised.text, MESSAGE_CHARS),
        attributes={"errno": int(number[1])} if number else {},
    )


def _raised(part: str) -> _Raised | None:
    """Return the exception of a traceback: the first line after its frames that is not indented."""
    at = part.rfind(HEADER)
    lines = (part[at + len(HEADER) :] if at >= 0 else part).splitlines()
    for number, line in enumerate(lines):
        found = None if line.startswith(" ") else _line(line)
        if found is not None:
            text = "\n".join([found.text, *lines[number + 1 :]]).strip()
            return _Raised(name=found.name, text=text)
    return None


def _line(line: str) -> _Raised | None:
    """Return the exception that a line names, if it does: `Name: text`, or a name alone."""
    match = RAISED.match(line)
    if match is None:
        return None
    name, text = match["type"], match["text"]
    if "." not in name:
        # Python leaves out only these two modules.
        if _is_builtin(name):
            name = f"builtins.{name}"
        elif text is not None and name[:1].isupper():
            name = f"__main__.{name}"
        else:
            return None
    return _Raised(name=name, text=text or "")


def _is_builtin(name: str) -> bool:
    found = getattr(builtins, name, None)
    return isinstance(found, type) and issubclass(found, BaseException)


def _without_prefix(text: str) -> str:
    """Return the text without what a log has put before each of its lines."""
    for line in text.splitlines():
        prefix, found, _ = line.partition(HEADER)
        if found and prefix.strip() and "Exception Group" not in prefix:
            return "\n".join(each.removeprefix(prefix) for each in text.splitlines())
    return text
