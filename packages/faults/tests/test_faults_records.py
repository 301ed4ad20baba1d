"""Exceptions as data, and text that is safe to keep."""

from __future__ import annotations

import enum
import json
import pickle
import urllib.request

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thornback.faults import ErrorRecord, Fault, FaultKind, Origin, StopReason
from thornback.faults.kinds import plain_facts
from thornback.faults.records import public_name
from thornback.faults.testing import Hostile, lookalike, lookalike_task_error
from thornback.faults.text import MARK_CHARS, clip, safe
from thornback.faults.tracebacks import record_of_text


class Level(enum.IntEnum):
    HIGH = 3


class Blank:
    """Raises whatever it is asked for."""

    def __getattr__(self, name: str) -> object:
        raise RuntimeError(name)


def test_what_is_taken() -> None:
    error = lookalike("my.pkg.Error", "text", exit_code=3, level=Level.HIGH, obj=object(), ok=True)
    error.__dict__ |= {"_private": 1, "api_key": "x", "big": 1 << 99, "nan": float("nan")}
    record = ErrorRecord.of(error)
    assert record.type_names == ("my.pkg.Error", "builtins.Exception", "builtins.BaseException")
    assert record.message == "text"
    assert record.attributes == {"exit_code": 3, "level": 3, "ok": True, "nan": "nan"}
    assert type(record.attributes["level"]) is int
    assert ErrorRecord.of(record) is record


def test_names_that_are_none_are_left_out() -> None:
    error = ValueError("x")
    error.__dict__ |= {"fine": 1, "n" * 64: 2, "n" * 65: 3}
    error.__dict__ |= {7: 2}  # type: ignore[dict-item]  # the test
    assert ErrorRecord.of(error).attributes == {"fine": 1, "n" * 64: 2}


def test_no_more_facts_than_can_be_read() -> None:
    facts = plain_facts({f"x{n}": n for n in range(100)})
    assert list(facts) == [f"x{n}" for n in range(48)]
    assert plain_facts({"n" * 65: 1}) == {"n" * 64: 1}


def test_a_whole_number_that_no_other_program_could_read_is_left_out() -> None:
    facts = plain_facts({"most": 2**63 - 1, "least": 1 - 2**63, "more": 2**63, "less": -(2**63)})
    assert facts == {"most": 2**63 - 1, "least": 1 - 2**63}


def test_attributes_that_are_not_in_the_instance() -> None:
    class Preempted(Exception):
        @property
        def preempted(self) -> bool:
            return True

    assert ErrorRecord.of(Preempted()).attributes == {"preempted": True}
    assert ErrorRecord.of(OSError(28, "full")).attributes == {"errno": 28}
    assert ErrorRecord.of(SystemExit(3)).attributes == {"code": 3}


KNOWN = (
    *("actor_init_failed", "code", "errno", "exit_code", "non_retryable", "phase", "preempted"),
    *("retry_after", "retry_after_s", "returncode", "signal", "status", "status_code"),
)


@pytest.mark.parametrize("name", KNOWN)
def test_what_rules_ask_for_may_be_a_property(name: str) -> None:
    cls = type("Mine", (Exception,), {name: property(lambda self: 7)})
    assert ErrorRecord.of(cls("x")).attributes == {name: 7}


@pytest.mark.parametrize(("causes", "told"), [(7, 7), (15, 15), (16, 7), (5000, 7)])
def test_traceback_of_a_long_chain_shows_the_last_links(causes: int, told: int) -> None:
    top = link = ValueError("0")
    for number in range(causes):
        link.__cause__ = link = ValueError(str(number))
    text = ErrorRecord.of(top).traceback
    assert text.count("was the direct cause of") == told
    assert text.endswith("ValueError: 0\n")


def test_an_exception_that_cannot_be_looked_into() -> None:
    record = ErrorRecord.of(Hostile("x"))
    assert record.message == "<str() of this Hostile raised RuntimeError>"
    assert record.attributes == {}
    assert record.type_names[0].endswith(".Hostile")


def test_the_chain_is_flat_nearest_first() -> None:
    try:
        try:
            try:
                raise KeyError("first")
            except KeyError:
                raise ValueError("second")  # noqa: B904 - the context is what is tested
        except ValueError as error:
            raise RuntimeError("third") from error
    except RuntimeError as error:
        record = ErrorRecord.of(error)
    assert [cause.message for cause in record.causes] == ["second"], "a bug in a handler of ours"
    assert all(cause.causes == () for cause in record.causes)
    assert record.traceback.index("first") < record.traceback.index("RuntimeError: third")
    assert "direct cause" in record.traceback


@pytest.mark.parametrize(
    ("file", "counts"),
    [
        ("/venv/lib/python3.11/site-packages/requests/adapters.py", True),
        ("/usr/lib/python3/dist-packages/urllib3/pool.py", True),
        (urllib.request.__file__, True),
        ("<frozen importlib._bootstrap>", True),
        ("pyarrow/error.pxi", True),
        ("C:\\venv\\Lib\\site-packages\\requests\\adapters.py", True),
        ("/home/me/job.py", False),
        ("<stdin>", False),
        ("/home/me/site-packages.py", False),
    ],
)
def test_context_counts_if_library_code_handled_it(file: str, counts: bool) -> None:
    code = (
        "try:\n    fail(ConnectionResetError('gone'))\nexcept ConnectionError:\n    fail(other)\n"
    )

    def fail(error: Exception) -> None:
        raise error

    own = lookalike("requests.exceptions.ConnectionError", "x")
    for other, translates in ((own, True), (OSError("x"), True), (KeyError("x"), False)):
        with pytest.raises(type(other)) as caught:
            exec(compile(code, file, "exec"), {"fail": fail, "other": other})
        record = ErrorRecord.of(caught.value)
        found = [cause.type_names[0] for cause in record.causes]
        assert found == (["builtins.ConnectionResetError"] if counts and translates else [])
        assert "ConnectionResetError: gone" in record.traceback
        # A text says the same, but for what it does not tell: the bases of a class.
        assert [cause.type_names[0] for cause in record_of_text(record.traceback).causes] == found


def test_context_without_a_traceback_is_left_out() -> None:
    error = KeyError("x")
    error.__context__ = ConnectionResetError("gone")
    assert ErrorRecord.of(error).causes == ()


def test_a_suppressed_context_is_left_out() -> None:
    def fail() -> None:
        try:
            raise KeyError("first")
        except KeyError:
            raise ValueError("second") from None

    with pytest.raises(ValueError, match="second") as caught:
        fail()
    assert ErrorRecord.of(caught.value).causes == ()


def test_cycles_and_endless_chains_are_cut() -> None:
    first, second = ValueError("1"), ValueError("2")
    first.__cause__, second.__cause__ = second, first
    assert [cause.message for cause in ErrorRecord.of(first).causes] == ["2"]
    top = ValueError("0")
    link: BaseException = top
    for number in range(1, 5000):
        link.__cause__ = ValueError(str(number))
        link = link.__cause__
    record = ErrorRecord.of(top)
    assert [cause.message for cause in record.causes] == [str(n) for n in range(1, 9)]
    assert record.traceback.endswith(
        "ValueError: 1\n\nThe above exception was the direct cause of"
        " the following exception:\n\nValueError: 0\n"
    )


def test_what_a_task_error_wraps_is_its_first_cause() -> None:
    cause = KeyError("k")
    cause.__cause__ = OSError(5, "io")
    record = ErrorRecord.of(lookalike_task_error(cause))
    assert record.type_names[:2] == (
        "ray.exceptions.RayTaskError(KeyError)",
        "ray.exceptions.RayTaskError",
    )
    assert [each.type_names[0] for each in record.causes] == [
        "builtins.KeyError",
        "builtins.OSError",
    ]


@pytest.mark.parametrize("odd", [None, "KeyError: 'k'", 7, Blank()], ids=repr)
def test_what_a_task_error_carries_may_be_anything(odd: object) -> None:
    error = lookalike_task_error(KeyError("k"))
    error.cause = odd  # type: ignore[attr-defined]  # as ray does
    error.__cause__ = OSError(5, "io")
    assert [each.type_names[0] for each in ErrorRecord.of(error).causes] == ["builtins.OSError"]


def test_the_leaves_of_a_group() -> None:
    leaf = ValueError("2")
    leaf.__cause__ = OSError(5, "io")
    deep: Exception = ExceptionGroup("in", [leaf, KeyError("3")])
    for _ in range(500):
        deep = ExceptionGroup("g", [deep])
    record = ErrorRecord.of(ExceptionGroup("out", [ValueError("1"), deep]))
    assert [member.message for member in record.members] == ["1", "2", "'3'"]
    assert record.members[1].causes[0].attributes["errno"] == 5
    leaf.__cause__.__cause__ = top = ValueError("3")
    for number in range(9):
        top.__cause__ = top = ValueError(str(number))
    assert len(ErrorRecord.of(ExceptionGroup("g", [leaf])).members[0].causes) == 4
    many = ErrorRecord.of(ExceptionGroup("many", [ValueError(str(n)) for n in range(1000)]))
    assert len(many.members) == 16


def test_sizes_are_bounded() -> None:
    error = lookalike("a.B", "m" * 10**6, **{f"x{n}": "v" * 10**5 for n in range(1000)})
    record = ErrorRecord.of(error)
    assert len(pickle.dumps(record)) < 60_000
    assert len(record.attributes) == 32

    def deep(n: int) -> None:
        deep(n + 1)

    with pytest.raises(RecursionError) as caught:
        deep(0)
    assert len(ErrorRecord.of(caught.value).traceback) < 20_000

    def tick(n: int) -> None:
        if n == 0:
            raise ValueError("the end")
        tock(n - 1)

    def tock(n: int) -> None:
        tick(n)

    with pytest.raises(ValueError, match="the end") as ended:
        tick(60)
    text = ErrorRecord.of(ended.value).traceback
    assert text.count(", in t") == 50
    assert text.endswith("ValueError: the end\n")


def test_lone_surrogates_become_encodable() -> None:
    record = ErrorRecord.of(ValueError("a\ud800b"))
    assert record.message == "a\\ud800b"
    json.dumps(record.traceback, ensure_ascii=False).encode()


def test_public_names() -> None:
    assert public_name("thornback.pool.a.b.WorkerDied") == "thornback.pool.WorkerDied"
    assert public_name("thornback.pool.WorkerDied") == "thornback.pool.WorkerDied"
    assert public_name("my.thornback.pool.a.B") == "my.thornback.pool.a.B"


SECRETS = [
    "password=hunter2x",
    "db_password: hunter2x",
    "https://user:hunter2x@host/path",
    '{"access_token": "hunter2x"}',
    "Authorization: Bearer hunter2x",
    "X-Amz-Signature=hunter2x&b=1",
    "aws_secret_access_key = 'hunter2x'",
    "--api-key=hunter2x",
    "curl -H 'authorization: Basic hunter2x'",
]


@pytest.mark.parametrize("text", SECRETS)
def test_secrets_are_hidden(text: str) -> None:
    shown = safe(f"before {text} after", 1000)
    assert "hunter2x" not in shown
    assert "***" in shown
    assert shown.startswith("before")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("password=hunter2x", "password=***"),
        ("credential=hunter2x; next", "credential=***; next"),
        ("private-key='hunter2x', b", "private-key='***', b"),
        ("f(token=hunter2x)", "f(token=***)"),
        ("signature=hunter2x&b=1", "signature=***&b=1"),
        ("passphrase: hunter2x", "passphrase: ***"),
        ('{"password": "hunter2x", "b": 1}', '{"password": "***", "b": 1}'),
        ("{'token': 'hunter2x'}", "{'token': '***'}"),
        ("Authorization: Bearer hunter2x", "Authorization: Bearer ***"),
        ("sent bearer hunter2x/y", "sent bearer ***"),
        ("ftp://me:hunter2x@host/a", "ftp://me:***@host/a"),
        ("https://0123456789abcdef@host/simple", "https://***@host/simple"),
        ("ssh://git@host/a", "ssh://git@host/a"),
        (f"by hf_{'a' * 20}.", "by ***."),
        (f"by AKIA{'A' * 16}.", "by ***."),
        (f"by ghp_{'a' * 20}.", "by ***."),
        (f"by sk-{'a' * 20}.", "by ***."),
        (f"by hf_{'a' * 19}.", f"by hf_{'a' * 19}."),
    ],
)
def test_only_the_secret_is_hidden(text: str, shown: str) -> None:
    assert safe(text, 1000) == shown


@given(st.text("ab \n\ud800", max_size=900), st.integers(1, 700))
def test_clip_keeps_both_ends(text: str, limit: int) -> None:
    kept = clip(text, limit)
    assert len(kept) <= limit
    assert clip(kept, limit) == kept
    encoded = text.encode("utf-8", "backslashreplace").decode()
    assert kept == encoded or len(encoded) > limit
    if len(encoded) > limit >= 4 * MARK_CHARS:
        head, _, tail = kept.partition("  [... ")
        left_out, _, tail = tail.partition(" characters left out ...] ")
        assert encoded.startswith(head)
        assert encoded.endswith(tail)
        if text.isascii():  # what cannot be encoded counts once, and takes six characters
            assert len(head) + int(left_out) + len(tail) == len(encoded)


def test_clip_keeps_as_much_of_the_end_as_there_is_room_for() -> None:
    kept = clip("begin " + "a b " * 1000 + "the end", 1000)
    assert kept.startswith("begin a b ")
    assert kept.endswith("a b the end")
    assert 980 <= len(kept) <= 1000


def test_clip_cuts_no_word() -> None:
    text = "begin " + "password=hunter2x " * 100 + "end"
    for limit in range(4 * MARK_CHARS, 500):
        assert "hunter2x" not in safe(text, limit)
        words = clip(text, limit).replace("[", " ").split()
        left = {word for word in words if not word.isdigit()}
        assert left <= {
            "begin",
            "password=hunter2x",
            "end",
            *["...", "characters", "left", "out", "...]"],
        }


plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30)


@given(st.dictionaries(st.text(max_size=10), plain, max_size=60), st.text(max_size=50))
def test_a_fault_is_json_and_pickles(facts: dict[str, object], message: str) -> None:
    kept = plain_facts(facts)
    fault = Fault(
        kind=FaultKind.OOM,
        origin=Origin.PROCESS,
        rule="r",
        error_type="a.B",
        message=message,
        facts=kept,
    )
    assert json.loads(json.dumps(fault.as_json(), allow_nan=False)) == fault.as_json()
    assert pickle.loads(pickle.dumps(fault)) == fault
    assert plain_facts(kept) == kept


def test_a_fault_shows_no_secret_and_is_bounded() -> None:
    fault = Fault(
        kind=FaultKind.OOM,
        origin=Origin.PROCESS,
        rule="r",
        error_type="a.B",
        message="password=s3cr3t " * 1000,
        facts={"hf_token": "s3cr3t", "exit_code": 9, "note": "token=s3cr3t"},
        traceback="t" * 10**6,
    )
    text = json.dumps(fault.as_json())
    assert "s3cr3t" not in text
    assert len(text) < 30_000
    assert '"exit_code": 9' in text


@pytest.mark.parametrize(("name", "limit"), [("message", 4_000), ("traceback", 16_000)])
def test_a_text_up_to_its_limit_is_kept_whole(name: str, limit: int) -> None:
    kept = {}
    for length in (limit, limit + 1):
        fields = {"rule": "r", "error_type": "a.B", "message": "", name: "x" * length}
        fault = Fault.from_json({"kind": "oom", "origin": "rank", **fields})
        kept[length] = fault.as_json()[name]
    assert kept[limit] == "x" * limit
    assert len(kept[limit + 1]) < limit
    assert "characters left out" in kept[limit + 1]


def test_kinds_and_origins_are_written_as_they_are_called() -> None:
    """They stand in journals and JSON: one that is written otherwise is not found there again."""
    for enumeration in (FaultKind, Origin, StopReason):
        assert [each.value for each in enumeration] == [each.name.lower() for each in enumeration]
