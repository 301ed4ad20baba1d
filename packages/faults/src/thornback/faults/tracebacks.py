"""From the text of a traceback back to an exception as data: for people who have only a log. Pure.

What a text does not say is not known: attributes (but for `errno`), and the bases of classes other
than Python's and Ray's. Those are looked up in tables: a text never has anything imported.
"""

from __future__ import annotations

import re

import attrs

from thornback.faults.kinds import MESSAGE_CHARS, TRACEBACK_CHARS
from thornback.faults.on_ray import RAY_TASK_ERROR
from thornback.faults.python_bases import BUILTIN_MROS, PYTHON_BASES
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


@attrs.frozen(kw_only=True)
class _Raised(Value):
    name: str
    text: str


def record_of_text(text: str) -> ErrorRecord:
    """Return what was raised last in this text, with its causes; ValueError: nothing was.

    Args:
        text: what Python, or Ray, prints: with what comes before each line in a log, if it is the
            same for all. A last line (`ValueError: bad row`) is enough.
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
        links += _links(parts[at])
    if not links:
        raise ValueError(
            "there is no exception in this text: its last line should be like 'ValueError: bad row'"
        )
    head, *causes = links
    return head.__replace__(
        causes=tuple(causes[:MAX_CAUSES]), traceback=safe(text, TRACEBACK_CHARS)
    )


def mro_of(name: str) -> tuple[str, ...]:
    """Return the names along the MRO of a class: `Exception` is all that may be known of it."""
    module, _, short = name.rpartition(".")
    if module == "builtins" and short in BUILTIN_MROS:
        return BUILTIN_MROS[short]
    if module == "ray.exceptions" and short in RAY_BASES:
        bases = [f"ray.exceptions.{b}" if b in RAY_BASES else b for b in RAY_BASES[short]]
    elif name.startswith(f"{RAY_TASK_ERROR}("):
        bases = [RAY_TASK_ERROR]
    else:
        bases = list(PYTHON_BASES.get(name, ("Exception",)))
    above = [mro_of(base if "." in base else f"builtins.{base}") for base in bases]
    # Each class before its own bases, as on the MRO.
    names = [each for mro in above for each in mro]
    last = {each: at for at, each in enumerate(names)}
    return (name, *(each for at, each in enumerate(names) if last[each] == at))


def _links(part: str) -> list[ErrorRecord]:
    """Return the exception of one traceback, and what a `RayTaskError` in it carries."""
    boxes = [BOX.sub("", box) for box in MEMBER.split(BOX_END.sub("", part))]
    raised = _raised(boxes[0])
    if raised is None:
        return []
    head = _record(raised)
    members = []
    for box in boxes[1:]:
        last = CHAINED.split(box)[-1]
        leaf = _raised(last)
        if leaf is not None and leaf.name not in GROUPS:
            members.append(_record(leaf))
    head = head.__replace__(members=tuple(members[:MAX_MEMBERS]))
    inner = _carried(raised)
    return [head] if inner is None else [head, _record(inner)]


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


def _record(raised: _Raised) -> ErrorRecord:
    number = re.match(r"\[Errno (\d+)\]", raised.text)
    return ErrorRecord(
        type_names=mro_of(raised.name),
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
        if name in BUILTIN_MROS:
            name = f"builtins.{name}"
        elif text is not None and name[:1].isupper():
            name = f"__main__.{name}"
        else:
            return None
    return _Raised(name=name, text=text or "")


def _without_prefix(text: str) -> str:
    """Return the text without what a log has put before each of its lines."""
    for line in text.splitlines():
        prefix, found, _ = line.partition(HEADER)
        if found and prefix.strip() and "Exception Group" not in prefix:
            return "\n".join(each.removeprefix(prefix) for each in text.splitlines())
    return text
