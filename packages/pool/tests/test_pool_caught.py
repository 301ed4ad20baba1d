"""Exceptions as data."""

from __future__ import annotations

import email.utils
import errno
import json
import pickle
import subprocess
import sys
import time
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thornback.faults import Classifier
from thornback.pool import CaughtError
from thornback.pool.caught import (
    catch,
    from_plain,
    to_plain,
)


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        raise error from cause
    except BaseException as caught:  # noqa: BLE001  # all kinds are thrown here
        return caught


FRAME = f"test_pool_caught.py:{raised.__code__.co_firstlineno + 2} in raised"


def test_names_are_those_of_the_whole_mro() -> None:
    assert catch(raised(FileNotFoundError(errno.ENOENT, "no", "x"))) == CaughtError(
        type_names=(
            "builtins.FileNotFoundError",
            "builtins.OSError",
            "builtins.Exception",
            "builtins.BaseException",
        ),
        message="[Errno 2] no: 'x'",
        traceback=catch(raised(FileNotFoundError(errno.ENOENT, "no", "x"))).traceback,
        attributes={"errno": 2, "user_frame": FRAME},
    )


@pytest.mark.parametrize(
    ("error", "message", "code"),
    [
        (SystemExit(), "exited before returning", 0),
        (SystemExit(0), "exited before returning", 0),
        (SystemExit(3), "exited with code 3 before returning", 3),
        (SystemExit("why"), "why", 1),
    ],
)
def test_an_exit_has_its_code(error: SystemExit, message: str, code: int) -> None:
    caught = catch(error)
    assert (caught.message, caught.attributes["exit_code"]) == (message, code)


def test_causes_are_a_flat_chain_nearest_first() -> None:
    try:
        try:
            try:
                raise KeyError("deepest")
            except KeyError as error:
                raise ValueError("middle") from error
        except ValueError as error:
            raise RuntimeError("outer") from error
    except RuntimeError as error:
        caught = catch(error)
    assert [each.message for each in caught.causes] == ["middle", "'deepest'"]
    assert [each.causes for each in caught.causes] == [(), ()]
    assert "deepest" in caught.traceback


def test_bug_in_a_handler_of_user_code_has_no_cause() -> None:
    try:
        try:
            raise ConnectionResetError("gone")
        except ConnectionResetError:
            raise KeyError("a bug")  # noqa: B904  # the context is what is tested
    except KeyError as error:
        caught = catch(error)
    assert caught.causes == ()
    assert "ConnectionResetError: gone" in caught.traceback


def test_a_cycle_of_causes_ends() -> None:
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    assert [each.message for each in catch(one).causes] == ["two"]


def test_a_group_has_its_leaves_with_their_causes_and_a_cause_can_be_a_group() -> None:
    leaf = raised(OSError("leaf"), KeyError("root"))
    group = BaseExceptionGroup("outer", [ValueError("a"), BaseExceptionGroup("in", [leaf])])
    caught = catch(raised(RuntimeError("top"), group))
    (cause,) = caught.causes
    assert [each.message for each in cause.members] == ["a", "leaf"]
    assert [each.message for each in cause.members[1].causes] == ["'root'"]
    assert [each.message for each in catch(group).members] == ["a", "leaf"]


def test_everything_is_bounded() -> None:
    error: BaseException = ValueError("first")
    for _ in range(50):
        error = raised(ValueError("x" * 100_000), error)
    vars(error).update({f"a{i}": i for i in range(100)}, long="y" * 10_000)
    assert len(pickle.dumps(catch(error))) < 1 << 16
    many = [ValueError(str(number)) for number in range(99)]
    group: ExceptionGroup[Exception] = ExceptionGroup("many", many)
    for _ in range(500):
        group = ExceptionGroup("deep", [group])
    assert len(pickle.dumps(catch(group))) < 1 << 16


class Hostile(Exception):
    """Whatever is asked of it, it answers with another exception."""

    def __str__(self) -> str:
        raise SystemExit("no name")

    @property
    def errno(self) -> int:
        raise KeyboardInterrupt

    @property
    def response(self) -> object:
        raise RecursionError


def test_an_exception_that_defends_itself_is_caught_all_the_same() -> None:
    caught = catch(raised(Hostile()))
    assert caught.message == "<str() of this Hostile raised SystemExit>"
    assert list(caught.attributes) == ["user_frame"]


def test_only_plain_attributes_travel_and_no_secrets() -> None:
    error = ValueError("x")
    vars(error).update(
        preempted=True, ratio=0.5, url="u", api_key="k", auth_token="t", password="p", _own=1
    )
    vars(error).update(items=[1], many=1 << 80)
    assert catch(error).attributes == {"preempted": True, "ratio": 0.5, "url": "u"}


class Requests:
    status_code = 429
    headers = {"Retry-After": "7", "Date": "?"}  # noqa: RUF012  # as simple as can be


@pytest.mark.parametrize(
    ("response", "attributes"),
    [
        (Requests(), {"status_code": 429, "retry_after": "7"}),
        (
            {
                "Error": {"Code": "SlowDown"},
                "ResponseMetadata": {
                    "HTTPStatusCode": 503,
                    "HTTPHeaders": {"retry-after": "3"},
                },
            },
            {"status_code": 503, "error_code": "SlowDown", "retry_after": "3"},
        ),
        (object(), {}),
        (None, {}),
    ],
)
def test_a_failed_request_tells_its_status(response: object, attributes: object) -> None:
    error = ValueError("x")
    vars(error)["response"] = response
    caught = catch(error).attributes
    assert ("observed_at" in caught) is ("retry_after" in caught)
    assert {name: value for name, value in caught.items() if name != "observed_at"} == attributes


def test_retry_after_date_is_waited_for_without_a_date_of_the_server() -> None:
    error = ValueError("x")
    response = Requests()
    response.headers = {"Retry-After": email.utils.formatdate(time.time() + 60, usegmt=True)}
    vars(error)["response"] = response
    fault = Classifier().classify(catch(error), {"origin": "rank"})
    after = fault.facts["retry_after_s"]
    assert isinstance(after, float)
    assert 50 < after <= 60


def test_own_frames_can_be_left_out() -> None:
    error = raised(ValueError("x"))
    assert "def raised" not in catch(error).traceback
    assert traceback.format_exception(error)[1].strip() in catch(error).traceback
    assert "in raised" not in catch(error, skip_frames=1).traceback
    assert catch(error, skip_frames=99).traceback == "ValueError: x\n"


plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
errors = st.recursive(
    st.builds(
        CaughtError,
        type_names=st.lists(st.text()).map(tuple),
        message=st.text(),
        traceback=st.text(),
        attributes=st.dictionaries(st.text(), plain, max_size=3),
    ),
    lambda inner: st.builds(
        CaughtError,
        type_names=st.just(("x",)),
        message=st.just(""),
        causes=st.lists(inner, max_size=2).map(tuple),
        members=st.lists(inner, max_size=2).map(tuple),
    ),
    max_leaves=5,
)


@given(errors)
def test_data_survives_json(error: CaughtError) -> None:
    assert from_plain(json.loads(json.dumps(to_plain(error)))) == error


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        {},
        [],
        [["x"], "m", "t", {}, []],
        [["x"], "m", "t", {}, [], [], []],
        [[1], "m", "t", {}, [], []],
        [["x"], 1, "t", {}, [], []],
        [["x"], "m", "t", {"a": []}, [], []],
        [["x"], "m", "t", {}, [1], []],
    ],
)
def test_what_is_not_an_error_is_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match="not an error as data"):
        from_plain(wrong)


def test_failure_for_lack_of_files_is_caught_in_full() -> None:
    """In a process that cannot open another file, nothing may be imported or read."""
    program = """
import resource
from thornback.pool.caught import catch, to_plain

def work():
    open("/dev/null")

resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
try:
    work()
except OSError as error:
    caught = catch(error, skip_frames=1)
print(caught.attributes, caught.type_names[0])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    expected = "{'errno': 24, 'user_frame': '<string>:6 in work'} builtins.OSError\n"
    assert (done.stdout, done.stderr) == (expected, "")


def test_catch_skipping_frames_leaves_out_frames_of_ours_at_the_top() -> None:
    """The reader looks for their own code; an error that is all ours keeps its last frame."""
    space = {"__name__": "thornback.executor.program"}
    exec(compile("def call(fn):\n    return fn()\n", "/ours/program.py", "exec"), space)
    exec(compile("def own():\n    raise ValueError(1)\n", "/ours/own.py", "exec"), space)

    def user() -> None:
        raise KeyError("user")

    for fn, shown, hidden in [(user, "in user", "program.py"), (space["own"], "own.py", "program")]:
        try:
            space["call"](fn)  # type: ignore[operator]  # made by exec
        except (KeyError, ValueError) as error:
            text = catch(error, skip_frames=1).traceback
        assert shown in text
        assert hidden not in text
