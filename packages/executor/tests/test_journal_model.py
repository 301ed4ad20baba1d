"""Every interleaving of an old holder and two claimants, each of which may stop anywhere, over an
abstract store.

What is interleaved are the generators that are shipped (`terms.py`), one store operation at a time;
a bulk delete is taken apart. A state is the content of the store and what each driver has been told
so far: that decides what it does next.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal

import attrs
import pytest

from thornback.executor.journal.errors import JournalError
from thornback.executor.journal.holder import Heartbeat, Holder
from thornback.executor.journal.segments import Header, decode, digest, encode, encode_record
from thornback.executor.journal.steps import (
    Delete,
    Get,
    List,
    Op,
    Pause,
    Put,
    Reply,
    Steps,
    listing,
)
from thornback.executor.journal.terms import (
    Stored,
    base_name,
    beat_name,
    begin,
    claim_name,
    clear,
    compact,
    elect,
    flush,
    load,
    parse,
)
from thornback.executor.ports import Completion, Identity, StageIdentity

URL = "model"
UNMARKED = "counted, but not promoted"
IDENTITY = Identity(
    job="j", stages=(StageIdentity(name="s", world_size=9, function="f", parents=()),)
)
Store = frozenset[tuple[str, bytes]]


@attrs.frozen
class Memo:
    """What a driver takes from one phase into the next."""

    name: str
    term: int = 0
    log: tuple[tuple[str, int], ...] = ()
    """("announced", rank) and ("won", term): what it holds to be true."""
    stored: Stored | None = None

    def saying(self, what: str, number: int) -> Memo:
        return attrs.evolve(self, log=(*self.log, (what, number)))


Phase = Callable[[Memo], Steps[Memo]]


@attrs.frozen
class Driver:
    """A program of phases. What was told in a phase that has ended matters only by the memo."""

    memo: Memo
    phases: tuple[Phase, ...]


def line(rank: int) -> bytes:
    return encode_record(Completion(stage="s", ranks=(range(rank, rank + 1),), state="done"))


def flushes(n: int, promoted: int, rank: int) -> Phase:
    def phase(memo: Memo) -> Steps[Memo]:
        yield from flush(URL, memo.term, n, promoted, [line(rank)])
        return memo.saying("announced", rank)

    return phase


def compacts(n: int) -> Phase:
    def phase(memo: Memo) -> Steps[Memo]:
        yield from compact(URL, memo.term, n)
        return memo

    return phase


def looks(memo: Memo) -> Steps[Memo]:
    """Look for the highest term. The watch has passed: the model knows no clock."""
    names = parse((yield from listing()))
    return attrs.evolve(memo, term=1 + max(n.term for n in names))


def claims(memo: Memo) -> Steps[Memo]:
    yield from elect(URL, Holder(id=memo.name), memo.term)
    return memo.saying("won", memo.term)


def loads(memo: Memo) -> Steps[Memo]:
    return attrs.evolve(memo, stored=(yield from load(URL)))


def begins(memo: Memo) -> Steps[Memo]:
    assert memo.stored is not None
    yield from begin(memo.term, IDENTITY, memo.stored.records, memo.stored)
    yield from clear(memo.term, memo.stored)
    return attrs.evolve(memo, stored=None)


def holder() -> Driver:
    """Hold term 1 already, as `FileJournal` does between `open` and `close`."""
    phases = (flushes(1, 0, 0), compacts(2), flushes(3, 2, 1))
    return Driver(Memo(name="a", term=1), phases)


def claimant(name: str, rank: int) -> Driver:
    """Open the state, and record one rank."""
    return Driver(Memo(name=name), (looks, claims, loads, begins, flushes(1, 0, rank)))


@attrs.frozen
class Node:
    """A driver in a phase, after it was told some replies in it."""

    driver: int
    phase: int
    memo: Memo
    replies: tuple[Reply, ...]
    op: Op | None
    """What it does next; None: it has ended."""


@attrs.define
class Exploration:
    states: int = 0
    broken: str = ""
    """The first violation found."""
    logs: set[tuple[tuple[str, int], ...]] = attrs.field(factory=set)


class Model:
    """Explores all schedules, breadth first, each state once."""

    def __init__(self, drivers: Sequence[Driver]) -> None:
        self._drivers = drivers
        self._nodes: list[Node] = []
        self._known: dict[tuple[object, ...], int] = {}
        self._successors: dict[tuple[int, Reply], int] = {}
        self._stores: dict[Store, int] = {}
        self._readable: list[frozenset[int]] = []
        self._moves: dict[tuple[int, int, int], tuple[int, int, int] | None] = {}
        self._contents: list[Store] = []

    def explore(self) -> Exploration:
        found = Exploration()
        start = frozenset(
            {
                (claim_name(1, "a"), Holder(id="a").encode()),
                (base_name(1, 0), encode(Header(kind="base", term=1, n=0, identity=IDENTITY), [])),
            }
        )
        nodes = [self._node(i, 0, driver.memo, ()) for i, driver in enumerate(self._drivers)]
        first = (self._intern(start), tuple((node, 0) for node in nodes))
        seen = {first}
        queue = deque([first])
        while queue and not found.broken:
            store, drivers = queue.popleft()
            found.states += 1
            found.broken = self._violation(store, [self._nodes[node] for node, _ in drivers])
            for index, (node, deleted) in enumerate(drivers):
                key = (store, node, deleted)
                if key not in self._moves:
                    self._moves[key] = self._step(*key)
                moved = self._moves[key]
                if moved is None:
                    found.logs.add(self._nodes[node].memo.log)
                    continue
                after = (moved[0], (*drivers[:index], moved[1:], *drivers[index + 1 :]))
                if after not in seen:
                    seen.add(after)
                    queue.append(after)
        return found

    def _intern(self, store: Store) -> int:
        """Number a store, and note what a reader finds in it while nobody moves."""
        if store not in self._stores:
            self._stores[store] = len(self._contents)
            self._contents.append(store)
            records = _at_once(load(URL), dict(store)).records.values()
            self._readable.append(frozenset(r for s in records for piece in s.done for r in piece))
        return self._stores[store]

    def _step(self, store: int, node: int, deleted: int) -> tuple[int, int, int] | None:
        """Let one driver do one operation; None: it has ended. Returns store, node, deleted."""
        op = self._nodes[node].op
        objects = dict(self._contents[store])
        reply: Reply = None
        match op:
            case None:
                return None
            case Put(name, data):
                objects[name] = data
            case Get(name):
                reply = objects.get(name)
            case List():
                reply = tuple(sorted(objects))
            case Delete(names) if deleted < len(names):
                objects.pop(names[deleted], None)
                return self._intern(frozenset(objects.items())), node, deleted + 1
            case _:
                pass
        if (node, reply) not in self._successors:
            at = self._nodes[node]
            after = self._node(at.driver, at.phase, at.memo, (*at.replies, reply))
            self._successors[node, reply] = after
        return self._intern(frozenset(objects.items())), self._successors[node, reply], 0

    def _node(self, driver: int, phase: int, memo: Memo, replies: tuple[Reply, ...]) -> int:
        """Run a phase again from its start, with the replies that were given."""
        phases = self._drivers[driver].phases
        op: Op | None = None
        try:
            while phase < len(phases):
                steps = phases[phase](memo)
                try:
                    op = next(steps)
                    for reply in replies:
                        op = steps.send(reply)
                    break
                except StopIteration as stop:
                    phase, memo, replies, op = phase + 1, stop.value, (), None
        except JournalError:  # refused, superseded, or its own term is damaged
            phase, replies, op = len(phases), (), None
        key = (driver, phase, repr(memo), replies)
        if key not in self._known:
            self._known[key] = len(self._nodes)
            self._nodes.append(Node(driver, phase, memo, replies, op))
        return self._known[key]

    def _violation(self, store: int, nodes: list[Node]) -> str:
        said = [entry for node in nodes for entry in node.memo.log]
        won = [term for what, term in said if what == "won"]
        if len(won) != len(set(won)):
            return f"two winners of one term: {won}"
        lost = {rank for what, rank in said if what == "announced"} - self._readable[store]
        return f"announced, but a reader does not see it: {sorted(lost)}" if lost else ""


def _at_once(steps: Steps[Stored], objects: dict[str, bytes]) -> Stored:
    """Run steps that only read, while nobody else moves."""
    reply: Reply = None
    while True:
        try:
            op = steps.send(reply)
        except StopIteration as stop:
            stored: Stored = stop.value
            return stored
        assert isinstance(op, Get | List | Pause)
        reply = objects.get(op.name) if isinstance(op, Get) else tuple(sorted(objects))


def planted(driver: Driver, bug: Callable[[Op, Op, Reply], Reply]) -> Driver:
    """Return the driver with every reply put through `bug` (previous operation, this one, its
    reply).
    """

    def wrap(phase: Phase) -> Phase:
        def bugged(memo: Memo) -> Steps[Memo]:
            return (yield from _through(phase(memo), bug))

        return bugged

    return attrs.evolve(driver, phases=tuple(wrap(phase) for phase in driver.phases))


def _through(steps: Steps[Memo], bug: Callable[[Op, Op, Reply], Reply]) -> Steps[Memo]:
    previous: Op = Pause(0)
    op = next(steps)
    while True:
        reply = bug(previous, op, (yield op))
        try:
            previous, op = op, steps.send(reply)
        except StopIteration as stop:
            memo: Memo = stop.value
            return memo


def promotes(rank: int) -> Steps[None]:
    """Put the marker of a rank: what a promoter does."""
    yield Put(f"marker {rank}", b"")


def flushes_and_promotes(n: int, promoted: int, rank: int) -> Phase:
    def phase(memo: Memo) -> Steps[Memo]:
        yield from flush(URL, memo.term, n, promoted, [line(rank)])
        yield from promotes(rank)
        return memo.saying("announced", rank)

    return phase


def loads_what_is_owed(memo: Memo) -> Steps[Memo]:
    stored = yield from load(URL, owing=lambda record: True)
    return attrs.evolve(memo, stored=stored)


def repromotes(memo: Memo) -> Steps[Memo]:
    assert memo.stored is not None
    for record in memo.stored.unpromoted:
        for rank in (rank for piece in record.ranks for rank in piece):
            yield from promotes(rank)
    return memo


def promoting_holder() -> Driver:
    first, second = flushes_and_promotes(1, 0, 0), flushes_and_promotes(3, 2, 1)
    return Driver(Memo(name="a", term=1), (first, compacts(2), second))


def promoting_claimant(name: str, rank: int) -> Driver:
    last = flushes_and_promotes(1, 0, rank)
    phases = (looks, claims, loads_what_is_owed, repromotes, begins, last)
    return Driver(Memo(name=name), phases)


class PromotingModel(Model):
    """Also wants a marker of whatever is announced, or in the base of a term after the first."""

    def _violation(self, store: int, nodes: list[Node]) -> str:
        objects = dict(self._contents[store])
        marked = {int(name.split()[1]) for name in objects if name.startswith("marker ")}
        counted = {rank for node in nodes for what, rank in node.memo.log if what == "announced"}
        for name in parse(objects):
            if name.kind == "base" and name.term > 1:
                _, records = decode(
                    objects[name.text], Header(kind="base", term=name.term, n=name.n)
                )
                counted |= {rank for record in records for piece in record.ranks for rank in piece}
        unmarked = sorted(counted - marked)
        said = f"{UNMARKED}: {unmarked}" if unmarked else ""
        return said or super()._violation(store, nodes)


def no_list_after(prefix: str) -> Callable[[Op, Op, Reply], Reply]:
    """Make the list after a put blind."""

    def bug(previous: Op, op: Op, reply: Reply) -> Reply:
        follows = isinstance(previous, Put) and previous.name.startswith(prefix)
        return () if follows and isinstance(op, List) else reply

    return bug


def gone_is_empty(previous: Op, op: Op, reply: Reply) -> Reply:
    """Take an object that is gone for one without records, instead of listing again."""
    if not isinstance(op, Get) or reply is not None:
        return reply
    [gone] = parse([op.name])
    kind: Literal["base", "seg"] = "base" if gone.kind == "base" else "seg"
    identity = IDENTITY if kind == "base" else None
    return encode(Header(kind=kind, term=gone.term, n=gone.n, identity=identity), [])


def reads_first(driver: Driver) -> Driver:
    """Read before the claim, instead of after it."""
    look, claim, load_, *rest = driver.phases
    return attrs.evolve(driver, phases=(look, load_, claim, *rest))


def test_no_announced_record_is_lost_and_no_term_has_two_winners() -> None:
    found = Model([holder(), claimant("b", 5), claimant("c", 6)]).explore()
    assert found.broken == ""
    assert found.states > 10_000
    # It is not hollow: everybody gets through in some schedule, and is refused in another.
    whole = (("announced", 0), ("announced", 1))
    assert whole in found.logs
    assert whole[:1] in found.logs
    for rank in (5, 6):
        assert {(("won", term), ("announced", rank)) for term in (2, 3)} <= found.logs
        assert (("won", 2),) in found.logs
    assert () in found.logs


def test_whatever_a_driver_counts_is_promoted_whoever_dies_when() -> None:
    found = PromotingModel([promoting_holder(), promoting_claimant("b", 5)]).explore()
    assert found.broken == ""
    assert (("announced", 0), ("announced", 1)) in found.logs
    assert (("won", 2), ("announced", 5)) in found.logs


def test_the_model_finds_that_nothing_is_promoted_at_open() -> None:
    hasty = promoting_claimant("b", 5)
    hasty = attrs.evolve(hasty, phases=tuple(p for p in hasty.phases if p is not repromotes))
    broken = PromotingModel([promoting_holder(), hasty]).explore().broken
    assert broken.startswith(UNMARKED)


def test_the_model_finds_that_only_records_with_outputs_are_promoted_at_open() -> None:
    hasty = promoting_claimant("b", 5)
    phases = tuple(loads if p is loads_what_is_owed else p for p in hasty.phases)
    hasty = attrs.evolve(hasty, phases=phases)
    broken = PromotingModel([promoting_holder(), hasty]).explore().broken
    assert broken.startswith(UNMARKED)


# -- objects vanish --------------------------------------------------------------------------------


SHA256 = digest(IDENTITY)
SILENT = "lost, and nobody is told"


def beats(n: int) -> Phase:
    """Tell of flush `n`, and of what was announced by then: unless another driver has claimed the
    state, which may have read it before.
    """

    def phase(memo: Memo) -> Steps[Memo]:
        beat = Heartbeat(id=memo.name, count=n, flushed=n)
        yield Put(beat_name(memo.term), beat.encode())
        superseded = any(name.term > memo.term for name in parse((yield from listing())))
        return memo if superseded else memo.saying("told of", n)

    return phase


def flushes_as_of_a_job(n: int, promoted: int, rank: int, after: str) -> Phase:
    """Flush as `Tenure` does: the segment says what it follows, and of which job it is."""

    def phase(memo: Memo) -> Steps[Memo]:
        yield from flush(
            *(URL, memo.term, n, promoted, [line(rank)]), after=after, identity_sha256=SHA256
        )
        return memo.saying("announced", rank)

    return phase


def loads_of_a_job(memo: Memo) -> Steps[Memo]:
    stored = yield from load(URL, trusted=frozenset({SHA256, ""}))
    for text in stored.damaged:
        memo = memo.saying(f"named {text}", 0)
    return attrs.evolve(memo, stored=stored)


def begins_and_tells(memo: Memo) -> Steps[Memo]:
    assert memo.stored is not None
    yield from begin(memo.term, IDENTITY, memo.stored.records, memo.stored, SHA256)
    stored, memo = memo.stored, (yield from beats(0)(memo))
    yield from clear(memo.term, stored)
    return attrs.evolve(memo, stored=None)


def begins_and_clears(memo: Memo) -> Steps[Memo]:
    """Remove what the base covers before a beat tells of the base."""
    memo = yield from begins(memo)
    return (yield from beats(0)(memo))


def telling_holder() -> Driver:
    phases = (
        flushes_as_of_a_job(1, 0, 0, base_name(1, 0)),
        beats(1),
        compacts(2),
        flushes_as_of_a_job(3, 2, 1, base_name(1, 2)),
    )
    return Driver(Memo(name="a", term=1), phases)


def telling_claimant(begin_phase: Phase = begins_and_tells) -> Driver:
    phases = (looks, claims, loads_of_a_job, begin_phase)
    return Driver(Memo(name="b"), phases)


def vandal(position: int) -> Driver:
    """Remove the base or segment of this position in the list, whenever that may be, and wherever
    the drivers are then.
    """

    def removes(memo: Memo) -> Steps[Memo]:
        names = [n for n in parse((yield from listing())) if n.kind in ("base", "seg")]
        if position < len(names):
            yield Delete((names[position].text,))
            memo = memo.saying(f"removed {names[position].text}", 0)
        return memo

    return Driver(Memo(name="vandal"), (removes,))


class VandalisedModel(Model):
    """Records may be lost, but not silently: whoever has read the state, or reads it now, has named
    damage. What was flushed after the last beat may be.
    """

    def _intern(self, store: Store) -> int:
        if store not in self._stores:
            self._stores[store] = len(self._contents)
            self._contents.append(store)
            stored = _at_once(load(URL, trusted=frozenset({SHA256, ""})), dict(store))
            seen = {r for s in stored.records.values() for piece in s.done for r in piece}
            self._readable.append(frozenset({*seen, *([-1] if stored.damaged else [])}))
        return self._stores[store]

    def _violation(self, store: int, nodes: list[Node]) -> str:
        said = [entry for node in nodes for entry in node.memo.log]
        if -1 in self._readable[store] or any(what.startswith("named") for what, _ in said):
            return ""
        told_of: set[int] = set()
        for node in nodes:
            so_far: set[int] = set()
            for what, number in node.memo.log:
                if what == "announced":
                    so_far.add(number)
                elif what == "told of":
                    told_of |= so_far
        lost = told_of - self._readable[store]
        return f"{SILENT}: {sorted(lost)}" if lost else ""


@pytest.mark.parametrize("position", range(3))
def test_what_vanishes_is_named_or_came_after_the_last_beat(position: int) -> None:
    drivers = [telling_holder(), telling_claimant(), vandal(position)]
    found = VandalisedModel(drivers).explore()
    assert found.broken == ""
    said = {what for log in found.logs for what, _ in log}
    assert any(what.startswith("removed") for what in said)
    assert any(what.startswith("named") for what in said)


@pytest.mark.parametrize(
    "drivers",
    [
        pytest.param(
            [telling_holder(), telling_claimant(begins_and_clears), vandal(0)],
            id="clear-before-beat",
        ),
        pytest.param(
            [
                attrs.evolve(telling_holder(), phases=telling_holder().phases[:2]),
                planted(telling_claimant(), lambda before, op, reply: blind_to_beats(op, reply)),
                vandal(1),
            ],
            id="no-beat-read",
        ),
    ],
)
def test_the_model_finds_a_loss_that_nobody_is_told_of(drivers: list[Driver]) -> None:
    assert VandalisedModel(drivers).explore().broken.startswith(SILENT)


def blind_to_beats(op: Op, reply: Reply) -> Reply:
    return None if isinstance(op, Get) and op.name.startswith("beat-") else reply


LOST = "announced, but a reader does not see it"


@pytest.mark.parametrize(
    ("drivers", "said"),
    [
        pytest.param(
            [planted(holder(), no_list_after("seg-")), claimant("b", 5)], LOST, id="flush-no-list"
        ),
        pytest.param(
            [planted(claimant(name, 5), no_list_after("claim-")) for name in "bc"],
            "two winners of one term",
            id="election-no-list",
        ),
        pytest.param([holder(), reads_first(claimant("b", 5))], LOST, id="read-before-claim"),
        pytest.param(
            [holder(), planted(claimant("b", 5), gone_is_empty)], LOST, id="no-second-list"
        ),
    ],
)
def test_the_model_finds_a_planted_bug(drivers: list[Driver], said: str) -> None:
    assert Model(drivers).explore().broken.startswith(said)
