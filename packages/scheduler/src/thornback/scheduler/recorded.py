"""A run of a scheduler as data: what a `Recorder` writes, and how it is read back.

A record is lines of JSON: a header with all that the scheduler was made of, then one line for each
event. A line holds the event and when it came, the answers that the retry policies and the
dependencies gave meanwhile, and the commands. With the answers in it, a record needs neither of
them to be understood or repeated; a fault is kept as its text and what its `as_json()` says.

A field at its default is left out. So whoever changes a default, or the meaning of a field, of
events, commands or answers must raise `VERSION`; a field that is added with a default need not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Generic, TypeAlias, TypeVar, get_args

import attrs

from thornback.faults import StopReason
from thornback.scheduler import commands, events
from thornback.scheduler.commands import Command, RecordState, RunState, ShapeKey
from thornback.scheduler.events import Event, Ranks
from thornback.scheduler.params import SchedulerParams
from thornback.scheduler.ports import Delta, Verdict
from thornback.scheduler.states import SchedulerError

VERSION = 2
FORMAT = "thornback.scheduler record"

F = TypeVar("F")
Json: TypeAlias = Any
"""What `json.dumps` takes."""


class RecordError(SchedulerError, ValueError):
    """This is no record of a scheduler, or one that this version cannot read; says which line."""


@attrs.frozen(slots=True)
class RecordedFault:
    """A fault as it stands in a record."""

    text: str
    """What `str(fault)` said."""
    data: Json = None
    """What `fault.as_json()` said; None: it has no such method."""

    def __str__(self) -> str:
        return self.text


@attrs.frozen(kw_only=True, slots=True)
class RecordedVerdict:
    """An answer of a retry policy (fulfils `Verdict`), and to which question."""

    stage: int
    draw: float
    """The jitter that it was given: it tells whom the question was about."""
    retry: bool
    delay_s: float = 0.0
    charged: bool = True
    machine_fault: bool = False
    blames_rank: bool = False
    blames_node: bool = False
    memory_bytes: int | None = None
    timeout_factor: float = 1.0
    reason: str = ""
    stop: StopReason | None = None
    signature: str = ""

    @classmethod
    def of(cls, verdict: Verdict, stage: int, draw: float) -> RecordedVerdict:
        """Return a verdict as it is recorded."""
        return cls(
            stage=stage,
            draw=draw,
            retry=verdict.retry,
            delay_s=verdict.delay_s,
            charged=verdict.charged,
            machine_fault=verdict.machine_fault,
            blames_rank=verdict.blames_rank,
            blames_node=verdict.blames_node,
            memory_bytes=verdict.memory_bytes,
            timeout_factor=verdict.timeout_factor,
            reason=verdict.reason,
            stop=verdict.stop,
            signature=verdict.signature,
        )


@attrs.frozen(kw_only=True, slots=True)
class RecordedDelta:
    """An answer of the dependencies (fulfils `Delta`), and to which question."""

    asked: tuple[int, Ranks, bool] | None = None
    """`finished(stage, ranks, ok)`; None: `start()`."""
    ready: tuple[tuple[int, range], ...] = ()
    skipped: tuple[tuple[int, range, tuple[int, int]], ...] = ()

    @classmethod
    def of(cls, delta: Delta, asked: tuple[int, Ranks, bool] | None) -> RecordedDelta:
        """Return a delta as it is recorded."""
        return cls(asked=asked, ready=tuple(delta.ready), skipped=tuple(delta.skipped))


@attrs.frozen(kw_only=True, slots=True)
class RecordedPlan:
    """A `StagePlan` without its policy, and what the stage is called."""

    name: str
    plan: Mapping[str, int | None]
    """The other fields, by name."""


@attrs.frozen(kw_only=True, slots=True)
class Header:
    """What a recorded scheduler was made of."""

    plans: tuple[RecordedPlan, ...]
    params: SchedulerParams
    seed: int


@attrs.frozen(kw_only=True, slots=True)
class Entry(Generic[F]):
    """One call of `Scheduler.handle`."""

    at: float
    """`now`."""
    event: Event[F]
    verdicts: tuple[RecordedVerdict, ...] = ()
    """In the order in which they were asked for."""
    deltas: tuple[RecordedDelta, ...] = ()
    """Likewise."""
    commands: tuple[Command, ...] = ()
    error: str = ""
    """Type and text of what `handle` raised; empty: it returned."""


@attrs.frozen(kw_only=True, slots=True)
class Record(Generic[F]):
    """A recorded run."""

    header: Header
    entries: Iterable[Entry[F]]
    """Oldest first. Those of a file can be gone through once."""
    dropped: int = 0
    """Entries before the first one that were not kept: then the run cannot be repeated."""


# -- values ----------------------------------------------------------------------------------------


def _pack_ranks(ranks: Iterable[range]) -> Json:
    return [_pack_range(piece) for piece in ranks]


def _pack_range(piece: range) -> Json:
    return [piece.start, piece.stop, *([piece.step] if piece.step != 1 else [])]


def _unpack_ranks(packed: Json) -> Ranks:
    return tuple(range(*piece) for piece in packed)


def _pack_fault(fault: object) -> Json:
    as_json = getattr(fault, "as_json", None)
    return [str(fault), as_json() if callable(as_json) else getattr(fault, "data", None)]


def _same(value: Json) -> Json:
    return value


Codec: TypeAlias = tuple[Callable[[Any], Json], Callable[[Json], Any]]
CODECS: Mapping[str, Codec] = {
    **dict.fromkeys(
        ("int", "float", "bool", "str", "int | None", "float | None", "str | None"), (_same, _same)
    ),
    "tuple[str, ...]": (list, tuple),
    "Ranks": (_pack_ranks, _unpack_ranks),
    "Mapping[int, Ranks]": (
        lambda by_stage: {str(stage): _pack_ranks(ranks) for stage, ranks in by_stage.items()},
        lambda packed: {int(stage): _unpack_ranks(ranks) for stage, ranks in packed.items()},
    ),
    "F": (_pack_fault, lambda packed: RecordedFault(*packed)),
    "ShapeKey": (
        lambda shape: [shape.base, shape.memory_bytes],
        lambda packed: ShapeKey(*packed),
    ),
    "RecordState": (lambda state: state.value, RecordState),
    "RunState": (lambda state: state.value, RunState),
    "StopReason | None": (
        lambda stop: stop and stop.value,
        lambda packed: packed and StopReason(packed),
    ),
    "tuple[int, Ranks, bool] | None": (
        lambda asked: asked and [asked[0], _pack_ranks(asked[1]), asked[2]],
        lambda packed: packed and (packed[0], _unpack_ranks(packed[1]), packed[2]),
    ),
    "tuple[tuple[int, range], ...]": (
        lambda ready: [[stage, _pack_range(piece)] for stage, piece in ready],
        lambda packed: tuple((stage, range(*piece)) for stage, piece in packed),
    ),
    "tuple[tuple[int, range, tuple[int, int]], ...]": (
        lambda skipped: [[stage, _pack_range(piece), *root] for stage, piece, root in skipped],
        lambda packed: tuple((at, range(*piece), (root, of)) for at, piece, root, of in packed),
    ),
}
"""How to write and read a field, by what it is annotated with."""


@cache
def _fields(made: type[attrs.AttrsInstance]) -> tuple[tuple[str, Codec, object], ...]:
    """Return (name, codec, default) of the fields of a class."""
    found = []
    for field in attrs.fields(made):
        default: object = field.default
        if isinstance(default, attrs.Factory):  # type: ignore[arg-type]  # a class, say its stubs not
            default = {}
        found.append((field.name, CODECS[str(field.type)], default))
    return tuple(found)


def pack(value: attrs.AttrsInstance) -> Json:
    """Return a value of attrs as JSON: the name of its class, and the fields that are not at their
    defaults."""
    packed: Json = {"is": type(value).__name__}
    for name, (write, _), default in _fields(type(value)):
        field = getattr(value, name)
        if field != default:
            packed[name] = write(field)
    return packed


def unpack(packed: Json, known: Mapping[str, type[attrs.AttrsInstance]]) -> Any:
    """Return the value again. Raises `RecordError` for a class or a field that is not known."""
    made = known.get(packed["is"])
    if made is None:
        raise RecordError(f"it has a {packed['is']!r}, which is not known here")
    codecs = {name: read for name, (_, read), _ in _fields(made)}
    given = {name: value for name, value in packed.items() if name != "is"}
    if unknown := [name for name in given if name not in codecs]:
        raise RecordError(f"its {packed['is']} has a {unknown[0]!r}, which is not known here")
    return made(**{name: codecs[name](value) for name, value in given.items()})


@cache
def _known() -> Mapping[str, type[attrs.AttrsInstance]]:
    named = [getattr(events, name) for name in events.__all__ if name not in ("Event", "Ranks")]
    made = [*named, *get_args(commands.Command), RecordedVerdict, RecordedDelta]
    return {each.__name__: each for each in made}


# -- lines -----------------------------------------------------------------------------------------


def _line(packed: Json) -> str:
    return json.dumps(packed, separators=(",", ":")) + "\n"


def header_line(header: Header) -> str:
    """Return the first line of a record."""
    return _line(
        {
            "format": FORMAT,
            "version": VERSION,
            "seed": header.seed,
            "plans": [{"name": each.name, **each.plan} for each in header.plans],
            "params": attrs.asdict(header.params),
        }
    )


def entry_line(entry: Entry[F]) -> str:
    """Return an entry as a line."""
    packed = {"at": entry.at, "event": pack(entry.event)}
    for name in ("verdicts", "deltas", "commands"):
        if values := getattr(entry, name):
            packed[name] = [pack(value) for value in values]
    if entry.error:
        packed["error"] = entry.error
    return _line(packed)


def read_record(lines: Iterable[str]) -> Record[RecordedFault]:
    """Return a record that a `Recorder` has written, line by line.

    The last line may have been cut in the middle (its writer died): it is left out then.

    Raises:
        RecordError: it is not one, or of a later version; from `entries`: a line makes no sense.
    """
    rest = iter(lines)
    try:
        first = json.loads(next(rest, ""))
        is_one = first["format"] == FORMAT
    except (ValueError, KeyError, TypeError):
        is_one = False
    if not is_one:
        raise RecordError("the first line is not that of a scheduler's record")
    if first["version"] != VERSION:
        raise RecordError(f"it is of version {first['version']!r}; this can read {VERSION}")
    try:
        plans = [RecordedPlan(name=each.pop("name"), plan=each) for each in first["plans"]]
        params = SchedulerParams(**first["params"])
        header = Header(plans=tuple(plans), params=params, seed=first["seed"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"line 1: {error}") from error
    return Record(header=header, entries=_entries(rest))


def _entries(lines: Iterator[str]) -> Iterator[Entry[RecordedFault]]:
    for number, line in enumerate(lines, start=2):
        try:
            packed = json.loads(line)
        except ValueError as error:
            if not line.endswith("\n"):
                return  # the last one, cut
            raise RecordError(f"line {number}: {error}") from error
        try:
            yield _entry(packed)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RecordError(f"line {number}: {error}") from error


def _entry(packed: Json) -> Entry[RecordedFault]:
    known = _known()

    def values(name: str) -> Sequence[Any]:
        return tuple(unpack(each, known) for each in packed.get(name, ()))

    return Entry(
        at=packed["at"],
        event=unpack(packed["event"], known),
        verdicts=tuple(values("verdicts")),
        deltas=tuple(values("deltas")),
        commands=tuple(values("commands")),
        error=packed.get("error", ""),
    )
