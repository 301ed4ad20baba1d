"""Whether a state is that of a job, and what is said when it is not."""

from __future__ import annotations

import pickle

import attrs
import pytest

from thornback.executor.journal.filejournal import (
    HeldByAnother,
    IdentityMismatch,
    JournalError,
    Superseded,
)
from thornback.executor.journal.identity import differences, reconcile
from thornback.executor.journal.ledger import StageRecords
from thornback.executor.ports import Identity, StageIdentity

A = StageIdentity(name="a", world_size=32, function="m.a")
B = StageIdentity(name="b", world_size=32, function="m.b", parents=("a",))
C = StageIdentity(name="c", world_size=32, function="m.c", parents=("b",))
OLD = Identity(job="j", stages=(A, B, C))
DONE = StageRecords(done=(range(0, 20),), results={19: "1"})


def job(*stages: StageIdentity) -> Identity:
    return Identity(job="j", stages=stages)


@pytest.mark.parametrize(
    ("new", "said"),
    [
        (OLD, ()),
        (job(A, B, C, attrs.evolve(C, name="d")), ()),
        (job(A, B), ()),
        (job(C, B, A), ()),
        (Identity(job="k", stages=OLD.stages), ("Job: was 'j', is 'k'",)),
        (
            job(attrs.evolve(A, world_size=16), B, C),
            (
                "Stage 'a': world size was 32, is 16",
                "Stage 'b': comes after 'a', which has changed",
                "Stage 'c': comes after 'b', which has changed",
            ),
        ),
        (
            job(C, attrs.evolve(B, version="2", function="m.b2")),  # whatever the order
            (
                "Stage 'c': comes after 'b', which has changed",
                "Stage 'b': function was 'm.b', is 'm.b2'; version was none, is '2'",
            ),
        ),
        (
            job(A, B, attrs.evolve(C, parents=("a", "b"))),
            ("Stage 'c': parents was 'b', is 'a', 'b'",),
        ),
        (
            job(A, B, attrs.evolve(C, items_digest="f" * 64)),
            ("Stage 'c': digest of the items was none, is 'ffffffffffff...'",),
        ),
    ],
)
def test_differences(new: Identity, said: tuple[str, ...]) -> None:
    assert differences(OLD, new) == said


def test_a_stage_that_is_gone_comes_back() -> None:
    records = {"a": DONE, "c": DONE}
    kept = reconcile("u", OLD, records, job(A), "refuse")
    assert kept.identity == job(A, C)  # b has no records: there is nothing to remember
    assert kept.records == records
    assert reconcile("u", kept.identity, kept.records, OLD, "refuse").records == records


def test_refuse_says_the_difference_and_the_mend() -> None:
    with pytest.raises(IdentityMismatch) as caught:
        reconcile("s3://b/x", OLD, {}, job(attrs.evolve(A, world_size=16)), "refuse")
    assert caught.value.differences == ("Stage 'a': world size was 32, is 16",)
    for word in ("s3://b/x", "world size was 32, is 16", "another state=", "on_mismatch='fresh'"):
        assert word in str(caught.value)


def test_adopt_keeps_what_fits() -> None:
    new = job(attrs.evolve(A, world_size=16), B)
    kept = reconcile("u", OLD, {"a": DONE, "c": DONE}, new, "adopt")
    assert kept.identity == new
    assert kept.records == {"a": StageRecords(done=(range(0, 16),))}


def test_fresh_forgets_only_on_a_mismatch() -> None:
    assert reconcile("u", OLD, {"a": DONE}, OLD, "fresh").records == {"a": DONE}
    assert reconcile("u", OLD, {"a": DONE}, Identity(job="k", stages=(A,)), "fresh").records == {}


@pytest.mark.parametrize(
    "error",
    [
        JournalError("what"),
        HeldByAnother("u", "host", 1, "2026-01-01T00:00:00+00:00", "seen"),
        Superseded("u", 1, 2),
        IdentityMismatch("u", ["a", "b"]),
    ],
)
def test_errors_pickle_under_their_public_name(error: JournalError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (again.args, str(again), vars(again)) == (error.args, str(error), vars(error))
    assert type(error).__module__ == "thornback.executor"
    assert isinstance(error, JournalError)


def test_held_by_another_says_who_and_what_to_do() -> None:
    text = str(HeldByAnother("/state", "node7", 4711, "2026-01-01T00:00:00+00:00", "it beats"))
    for word in ("/state", "node7", "4711", "2026-01-01", "it beats", "another state="):
        assert word in text
