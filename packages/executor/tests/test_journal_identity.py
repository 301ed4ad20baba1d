"""Whether a state is that of a job, and what is said when it is not."""

from __future__ import annotations

import json
import pickle

import attrs
import pytest

from thornback.executor.journal.filejournal import (
    HeldByAnother,
    IdentityMismatch,
    JournalError,
    Superseded,
)
from thornback.executor.journal.identity import differences, reconcile, unseen
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
            ("Stage 'c': its items changed since the recorded run",),
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


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ({"partial.t": "1"}, {"partial.t": "1"}, ()),
        (
            {"partial.t": "1"},
            {"partial.t": "2"},
            ("parameter 't' (bound by functools.partial) changed since the recorded run",),
        ),
        (
            {"partial[0]": "1"},
            {"partial[0]": "2", "partial[1]": "2"},
            (
                "argument 0 (bound by functools.partial) changed since the recorded run",
                "argument 1 (bound by functools.partial) was not there in the recorded run",
            ),
        ),
        (
            {"self.n": "1"},
            {},
            ("parameter 'n' (an attribute of the callable object) was there in the recorded run",),
        ),
        ({"closure.x": "1"}, {"default.y": "2"}, ()),
        ({"self.n": ""}, {"self.n": "1"}, ()),
        ({"self.n": "1"}, {"self.n": ""}, ()),
        ({}, {"self.n": ""}, ()),
        (
            {"setup.closure.path": "1"},
            {"setup.closure.path": "2"},
            (
                "parameter 'path' (a variable of the enclosing function, of setup=) changed since "
                "the recorded run",
            ),
        ),
        (
            {"no such [": "1"},
            {"no such [": "2"},
            ("parameter 'no such [' changed since the recorded run",),
        ),
        ({"self.n": "1:__main__"}, {"self.n": "1:ab"}, ()),
        (
            {"self.n": "1:ba"},
            {"self.n": "1:ab"},
            ("parameter 'n' (an attribute of the callable object) changed since the recorded run",),
        ),
    ],
)
def test_differences_of_parameters_are_named(
    old: dict[str, str], new: dict[str, str], said: tuple[str, ...]
) -> None:
    before, after = (attrs.evolve(A, code="py:1", params=params) for params in (old, new))
    text = (f"Stage 'a': {'; '.join(said)}",) if said else ()
    assert differences(job(before), job(after)) == text


def test_differences_script_by_another_name_is_the_same_function() -> None:
    script = attrs.evolve(A, function="__main__.a")
    assert differences(job(A), job(script)) == differences(job(script), job(A)) == ()
    other = attrs.evolve(A, function="__main__.b")
    assert differences(job(script), job(other)) == (
        "Stage 'a': function was '__main__.a', is '__main__.b'",
    )


def test_reconcile_changed_code_is_adopted_with_a_warning() -> None:
    old, new = (job(attrs.evolve(A, code=code), B) for code in ("py:1", "py:2"))
    kept = reconcile("u", old, {"a": DONE}, new, "refuse")
    assert kept.records == {"a": DONE}
    assert kept.identity.stages[0].code == "py:2", "it is warned of once"
    assert kept.warnings == (
        "the code of stage 'a' changed since its results were recorded; set version= to "
        "invalidate them",
    )
    assert reconcile("u", old, {}, new, "refuse").warnings == (), "there is nothing to reuse"
    other_python = job(attrs.evolve(A, code="py2:2"), B)
    assert reconcile("u", old, {"a": DONE}, other_python, "refuse").warnings == ()


def test_reconcile_state_without_parameters_matches_with_one_warning() -> None:
    new = job(
        attrs.evolve(A, code="py:1", params={"self.n": "1"}),
        attrs.evolve(B, code="py:1", params={"partial[0]": "1"}),
    )
    kept = reconcile("u", OLD, {"a": DONE, "b": DONE}, new, "refuse")
    assert kept.records == {"a": DONE, "b": DONE}
    (warning,) = kept.warnings
    assert "the parameters of stages 'a', 'b' could not be compared" in warning
    assert reconcile("u", kept.identity, kept.records, new, "refuse").warnings == ()


def test_reconcile_items_of_an_earlier_version_are_compared_if_they_are_plain() -> None:
    old = job(attrs.evolve(A, items_digest="1"))
    for digest, differ in (("1", False), ("2", True), ("2:x", False)):
        new = job(attrs.evolve(A, items_digest=digest, code="py:1"))
        assert bool(differences(old, new)) is differ, digest


def test_unseen_names_parameters_that_cannot_be_compared() -> None:
    params = {"closure.model": "", "self.n": "1", "items": ""}
    assert unseen(job(attrs.evolve(A, params=params), B)) == (
        "stage 'a': parameter 'model' (a variable of the enclosing function), parameter 'items' "
        "cannot be compared with those of another run, so that a change is not noticed: set "
        "version= to invalidate the results",
    )


def test_stage_identity_ignores_parameters_that_are_no_texts() -> None:
    bad: dict[str, str] = json.loads('{"self.n": 1, "self.m": "2", "self.k": null}')
    assert attrs.evolve(A, params=bad).params == {"self.m": "2"}
