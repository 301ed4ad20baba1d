"""Prints an exception as Python would, whatever it is. Pure.

What is ordinary is printed by `traceback` itself. What has odd attributes or classes, or is large,
is printed here: its frames, and one line for each exception of the chain.
"""

from __future__ import annotations

from abc import ABCMeta
from collections import deque
from types import TracebackType

from thornback.faults import untrusted
from thornback.faults.kinds import MESSAGE_CHARS, TRACEBACK_CHARS
from thornback.faults.text import clip, safe
from thornback.faults.untrusted import attempt, text

MAX_FRAMES = 50
MAX_LINKS = 8
MAX_TYPES = 40
MAX_NOTES = 10
MAX_MEMBERS = 5
MAX_PRINTED = 16
"""Exceptions of a chain with its groups that are printed as Python does."""
NAME_CHARS = 300
NOTE_CHARS = 1_000
TEXT_CHARS = 64_000
"""Of a message or of all notes, that Python may print."""
OF_PYTHON = frozenset(
    (
        *("__cause__", "__class__", "__context__", "__getattr__", "__getattribute__", "__notes__"),
        *("__suppress_context__", "__traceback__", "exceptions"),
    )
)
"""An exception whose class defines one of these itself is printed here."""
HEADER = "Traceback (most recent call last):"
BECAUSE = "\nThe above exception was the direct cause of the following exception:\n\n"
WHILE = "\nDuring handling of the above exception, another exception occurred:\n\n"


def type_names(error: object) -> tuple[str, ...]:
    """Return `module.qualname` along the MRO, without `object`."""
    mro = untrusted.mro(type(error))
    names = (untrusted.class_name(cls) for cls in mro[:MAX_TYPES] if cls is not object)
    return tuple(clip(name, NAME_CHARS) for name in names)


def message_of(error: BaseException) -> str:
    """Return what `str(error)` says, or that it says nothing."""
    said, raised = untrusted.str_of(error)
    if said is None:
        said = f"<str() of this {_short_name(error)} raised {raised}>"
    return safe(said, MESSAGE_CHARS)


def traceback_of(error: BaseException) -> str:
    """Return the text that Python would print; of what is odd or large, the essence of it."""
    printed = attempt(None, _as_python, error) if attempt(False, _is_ordinary, error) else None
    if printed is None:
        printed = attempt(f"{_short_name(error)}\n", _in_short, error)
    return safe(printed, TRACEBACK_CHARS)


def _is_ordinary(error: BaseException) -> bool:
    todo, seen = [error], 0
    while todo:
        one = todo.pop()
        seen += 1
        if seen > MAX_PRINTED or not _is_plain(one):
            return False
        below = (untrusted.cause(one), untrusted.context(one))
        todo += [*untrusted.members(one), *(each for each in below if each is not None)]
    return True


def _is_plain(error: BaseException) -> bool:
    if not type.__subclasscheck__(BaseException, type(error)):
        return False
    for cls in untrusted.mro(type(error)):
        if type(cls) is not type and type(cls) is not ABCMeta:
            return False
        is_ours = cls in (BaseException, BaseExceptionGroup, object)
        if not is_ours and not OF_PYTHON.isdisjoint(untrusted.namespace(cls)):
            return False
    notes = untrusted.instance_dict(error).get("__notes__", [])
    if type(notes) is not list or not all(type(note) is str for note in notes):
        return False
    said = text(str(error)) or ""
    return max(len(said), len(notes) + sum(map(len, notes))) <= TEXT_CHARS


def _as_python(error: BaseException) -> str:
    # Not above: it brings `tokenize`, and is needed only when something failed. The import fails
    # where that is that no more files can be opened.
    import traceback

    return "".join(traceback.format_exception(error, limit=-MAX_FRAMES))


def _in_short(error: BaseException) -> str:
    parts: list[str] = []
    links: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and len(links) < MAX_LINKS and not any(link is one for one in links):
        links.append(link)
        parts.append(_one(link))
        cause = untrusted.cause(link)
        link = cause or untrusted.context(link)
        if link is not None:
            parts.append(WHILE if cause is None else BECAUSE)
    if parts[-1] in (WHILE, BECAUSE):  # cut there
        del parts[-1]
    return "".join(reversed(parts))


def _one(error: BaseException) -> str:
    """Return frames, name and message, notes, and the first exceptions of a group."""
    trace = untrusted.traceback(error)
    lines = ["" if trace is None else f"{HEADER}\n{_frames(trace)}"]
    module, _, name = type_names(error)[0].rpartition(".")
    shown = name if module in ("builtins", "__main__") else f"{module}.{name}"
    lines.append(f"{shown}: {message_of(error)}\n")
    notes = untrusted.instance_dict(error).get("__notes__")
    if type(notes) is list:
        lines += [f"{safe(text(note) or '?', NOTE_CHARS)}\n" for note in notes[:MAX_NOTES]]
    members = untrusted.members(error)
    for member in members[:MAX_MEMBERS]:
        said = message_of(member).partition("\n")[0]
        lines.append(f"  | {_short_name(member)}: {said[:NOTE_CHARS]}\n")
    if len(members) > MAX_MEMBERS:
        lines.append(f"  | and {len(members) - MAX_MEMBERS} more\n")
    return "".join(lines)


def _frames(trace: TracebackType) -> str:
    """Return the innermost frames; without lines of code where those cannot be had."""
    kept: deque[TracebackType] = deque(maxlen=MAX_FRAMES)
    link: TracebackType | None = trace
    while link is not None:
        kept.append(link)
        link = link.tb_next

    def with_code() -> str:
        import traceback

        return "".join(traceback.format_tb(kept[0]))

    bare = [
        f'  File "{text(each.tb_frame.f_code.co_filename)}", line {each.tb_lineno}, '
        f"in {text(each.tb_frame.f_code.co_name)}\n"
        for each in kept
    ]
    return attempt("".join(bare), with_code)


def _short_name(error: BaseException) -> str:
    return type_names(error)[0].rpartition(".")[2]
