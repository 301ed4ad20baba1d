"""What a rank function sees, and what becomes of its value."""

from __future__ import annotations

import enum
import importlib
import json
import os
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import attrs
import pytest

from thornback.executor.pickling import dumps
from thornback.executor.program import (
    MAX_CHECKPOINT_BYTES,
    BadResult,
    BadTarget,
    NotLoaded,
    RankContext,
    SentProgram,
    StageProgram,
    decode_checkpoint,
    encode_checkpoint,
)
from thornback.executor.results import MISSING, Results, packed
from thornback.pool import RankCall


def call(rank: int = 0, args: bytes | None = None, **more: Any) -> RankCall:
    return RankCall(
        rank=rank,
        attempt=1,
        epoch="000001.000000002",
        stage=0,
        slot=0,
        node="n",
        args=args,
        traceparent="",
        inputs=lambda key: packed({0: json.dumps(key), 1: "1"}, (range(3),), 4),
        **more,
    )


def test_a_rank_process_imports_no_driver() -> None:
    """And what is imported when it is asked for is there, or said not to be."""
    code = """
import sys, thornback.executor.program
print(*sorted(name for name in sys.modules if name.startswith(("thornback.executor", "fsspec"))))
import thornback.executor as executor
assert all(hasattr(executor, name) and name in dir(executor) for name in executor.__all__)
assert not hasattr(executor, "Exekutor")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [
        f"thornback.executor{module}"
        for module in ("", ".folders", ".paths", ".plainjson", ".program", ".results")
    ]


def program(fn: object, staging: str = "/none", **more: object) -> StageProgram:
    made = StageProgram(
        stage="s",
        world_size=3,
        fn=fn,  # type: ignore[arg-type]  # a test helper
        has_items=bool(more.get("has_items")),
        setup_fn=more.get("setup_fn"),  # type: ignore[arg-type]  # a test helper
        teardown_fn=more.get("teardown_fn"),  # type: ignore[arg-type]  # a test helper
        staging=staging,
        cwd="/home/me",
        protocols=more.get("protocols", ()),  # type: ignore[arg-type]  # a test helper
        parents={"before": "results:0"},
    )
    return made


def test_value_is_kept_as_json() -> None:
    assert program(lambda ctx: {"rank": ctx.rank}).run(call(2)).result == '{"rank": 2}'
    assert program(lambda ctx: None).run(call()).result is None


class HostileKey(str):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__
    __hash__ = str.__hash__


class HostileDict(dict[str, int]):
    def items(self) -> Any:
        raise RuntimeError("no items")


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class RaisesUnprintable(dict[str, int]):
    def items(self) -> Any:
        raise Unprintable


def nested(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = [value]
    return value


def circle() -> list[object]:
    value: list[object] = []
    value.append({"a": value})
    return value


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({1, 2}, "result: a set is not JSON"),
        (b"x", "result: a bytes is not JSON"),
        ([1, {"a": (2, object())}], r"result\[1\]\['a'\]\[1\]: a object is not JSON"),
        (
            {"a": [0, {1: "x", "1": "y"}]},
            r"result\['a'\]\[1\]: key 1 is int; JSON objects have text",
        ),
        (Counter({10: 1}), "result: key 10 is int; .* use str\\(key\\), or a list of pairs"),
        ({True: 1}, "result: key True is bool"),
        ({None: 1}, "result: key None is NoneType"),
        ({1.5: 1}, "result: key 1.5 is float"),
        ({(1, 2): 1}, r"result: key \(1, 2\) is tuple"),
        ({"a": MISSING}, r"result\['a'\]: MISSING stands for a rank without a result"),
        (nested(100_000), "nested too deeply"),
        (circle(), "contains itself"),
        (HostileDict(a=1), "no items"),
        (RaisesUnprintable(a=1), "result: Unprintable"),
        ({HostileKey("k"): {1}}, r"result\[a HostileKey\]: a set is not JSON"),
        ([10**5000], "result: Exceeds the limit"),
    ],
)
def test_encode_value_that_is_not_json_names_the_path(value: object, says: str) -> None:
    with pytest.raises(BadResult, match=says) as caught:
        program(lambda ctx: value).run(call())
    assert "Stage 's' rank 0: " in str(caught.value)
    assert "publish a file" in str(caught.value)


class Level(enum.IntEnum):
    LOW = 1


@pytest.mark.parametrize(
    ("value", "comes_back"),
    [
        ((1, (2,)), [1, [2]]),
        ({"a": Level.LOW}, {"a": 1}),
        (Counter("aab"), {"a": 2, "b": 1}),
        ({HostileKey("k"): 1}, {"k": 1}),
        (float("inf"), float("inf")),
        (Results(packed({0: "[1]"}, (range(2),), 2)), [[1], None]),
    ],
)
def test_encode_value_comes_back_as_plain_json(value: object, comes_back: object) -> None:
    text = program(lambda ctx: value).run(call()).result
    assert json.loads(text or "") == comes_back


def test_encode_large_value_is_refused_before_its_keys_are_looked_at() -> None:
    with pytest.raises(BadResult, match="at most 65536 are kept"):
        program(lambda ctx: {n: n for n in range(100_000)}).run(call())


def test_encode_checkpoint_with_numbers_as_keys_names_the_path() -> None:
    with pytest.raises(TypeError, match=r"value\['seen'\]: key 3 is int"):
        encode_checkpoint({"seen": {3: True}})


def test_value_that_is_too_large_says_what_to_do() -> None:
    with pytest.raises(BadResult, match="at most 65536 are kept"):
        program(lambda ctx: "x" * 70_000).run(call())


def test_item_and_shard() -> None:
    def fn(ctx: RankContext, item: str) -> list[object]:
        return [item, list(ctx.shard("abcdefg"))]

    made = program(fn, has_items=True)
    assert made.run(call(1, pickle.dumps("it"))).result == '["it", ["b", "e"]]'


def test_results_of_a_parent_and_of_a_stranger() -> None:
    def fn(ctx: RankContext) -> list[object]:
        found = ctx.results("before")
        assert found[3] is MISSING
        return [*found.values()][:3]

    assert program(fn).run(call()).result == '["results:0", 1, null]'
    with pytest.raises(KeyError, match="add after='other'"):
        program(lambda ctx: ctx.results("other")).run(call())


def test_setup_value_is_given_to_every_rank() -> None:
    made = program(lambda ctx: ctx.setup_value + ctx.rank, setup_fn=lambda ctx: 40)
    made.setup(call())
    assert made.run(call(2)).result == "42"


def test_a_rank_is_told_the_address_of_its_node() -> None:
    made = program(lambda ctx: [ctx.node, ctx.address])
    assert made.run(call(address="10.0.0.3")).result == '["n", "10.0.0.3"]'
    assert made.run(call()).result == '["n", ""]'


def test_publish_gives_a_staged_path_of_this_try_and_notes_the_pair(tmp_path: Path) -> None:
    def fn(ctx: RankContext) -> None:
        with ctx.publish("out/a.txt") as staged:
            Path(staged).write_text("x")
        with pytest.raises(OSError, match="full"), ctx.publish("out/b.txt"):
            raise OSError("disk is full")

    outputs = program(fn, str(tmp_path)).run(call(1)).outputs
    assert outputs == (
        (os.path.join(tmp_path, "s/000001.000000002/1/0.txt"), "/home/me/out/a.txt"),
    )
    assert Path(outputs[0][0]).read_text() == "x"


def test_publish_without_writing_is_the_rank_s_error(tmp_path: Path) -> None:
    def fn(ctx: RankContext) -> None:
        with ctx.publish("/out/a.txt"):
            pass

    with pytest.raises(FileNotFoundError, match="nothing was written to"):
        program(fn, str(tmp_path)).run(call())


def test_two_open_publish_blocks_with_one_name_have_a_file_each(tmp_path: Path) -> None:
    def fn(ctx: RankContext) -> None:
        with ctx.publish(f"{tmp_path}/good/a") as good, ctx.publish(f"{tmp_path}/bad/a") as bad:
            Path(good).write_text("good")
            Path(bad).write_text("bad")

    outputs = program(fn, str(tmp_path / "staging")).run(call()).outputs
    found = {Path(final).parent.name: Path(staged).read_text() for staged, final in outputs}
    assert found == {"good": "good", "bad": "bad"}


def test_a_final_name_that_cannot_be_is_the_rank_s_error(tmp_path: Path) -> None:
    def fn(ctx: RankContext) -> None:
        with ctx.publish(str(tmp_path)) as staged:
            Path(staged).write_text("x")

    with pytest.raises(IsADirectoryError, match="name a file"):
        program(fn, str(tmp_path / "staging")).run(call())


def test_publish_refuses_to_replace_a_special_file(tmp_path: Path) -> None:
    """A superuser could otherwise replace /dev/null for the whole machine."""
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    started = []

    def fn(ctx: RankContext) -> None:
        with ctx.publish(str(pipe if ctx.rank == 0 else link)) as staged:
            started.append(staged)

    for rank in (0, 1):
        with pytest.raises(BadTarget, match="not a regular file"):
            program(fn, str(tmp_path / "staging")).run(call(rank))
    assert started == []


def test_what_a_rank_does_to_its_results_does_not_reach_the_next() -> None:
    made = program(lambda ctx: ctx.results("before")[0].append("more") or ctx.results("before")[0])
    before = packed({0: "[1]"}, (range(1),), 1)
    calls = [attrs.evolve(call(rank), inputs=lambda key: before) for rank in range(3)]
    assert [made.run(each).result for each in calls] == ["[1]", "[1]", "[1]"]


def test_teardown_gets_what_setup_returned_once() -> None:
    seen: list[object] = []
    made = program(lambda ctx: None, setup_fn=lambda ctx: "model", teardown_fn=seen.append)
    made.teardown()
    assert seen == [], "a process that was never set up has nothing to tear down"
    made.setup(call())
    made.teardown()
    made.teardown()
    assert seen == ["model"]


def test_teardown_is_not_called_where_setup_failed() -> None:
    def broken(ctx: RankContext) -> None:
        raise RuntimeError("no model")

    seen: list[object] = []
    made = program(lambda ctx: None, setup_fn=broken, teardown_fn=seen.append)
    with pytest.raises(RuntimeError, match="no model"):
        made.setup(call())
    made.teardown()
    assert seen == []


@pytest.mark.parametrize(
    "value", [b"", b"j1", b"\x00\xff", "b", "", 1, None, {"at": [1, 2.5, None]}, "\u2028\ud800"]
)
def test_a_checkpoint_comes_back_as_it_was_given(value: object) -> None:
    saved: list[bytes] = []
    program(lambda ctx: ctx.checkpoint(value)).run(call(checkpoint=saved.append))
    got: list[object] = []
    program(lambda ctx: got.append(ctx.restored)).run(call(restored=saved[0]))
    assert got == [value]
    assert type(got[0]) is type(value)


def test_what_a_rank_does_to_what_was_restored_does_not_reach_its_next_look() -> None:
    def fn(ctx: RankContext) -> object:
        ctx.restored.append(2)
        return ctx.restored

    assert program(fn).run(call(restored=encode_checkpoint([1]))).result == "[1]"


def test_without_a_checkpoint_nothing_is_restored() -> None:
    assert decode_checkpoint(None) is None
    assert program(lambda ctx: [ctx.restored]).run(call()).result == "[null]"


def test_a_checkpoint_that_cannot_be_kept_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"ctx\.staging.* checkpoint its path"):
        encode_checkpoint(b"x" * MAX_CHECKPOINT_BYTES)
    assert len(encode_checkpoint(b"x" * (MAX_CHECKPOINT_BYTES - 1))) == MAX_CHECKPOINT_BYTES
    with pytest.raises(TypeError, match="value: a set is not JSON"):
        encode_checkpoint({1})


def test_progress_and_drain_pass_through() -> None:
    told: list[tuple[float, float | None]] = []

    def fn(ctx: RankContext) -> object:
        ctx.progress(1)
        ctx.progress(2, 4)
        return ctx.draining

    made = call(progress=lambda done, total: told.append((done, total)), draining=lambda: 7.5)
    assert program(fn).run(made).result == "7.5"
    assert told == [(1.0, None), (2.0, 4.0)]
    assert program(lambda ctx: ctx.draining).run(call()).result is None


class Gone:
    """Pickles as a name that is nowhere."""

    def __init__(self, module: str, name: str) -> None:
        self._where = module, name

    def __reduce__(self) -> tuple[object, ...]:
        return _find, self._where


def _find(module: str, name: str) -> object:
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize(
    ("module", "says"),
    [("no_such_module", "No module named 'no_such_module'"), ("json", "no attribute 'gone'")],
)
def test_setup_function_that_cannot_be_loaded_is_reported_as_that(module: str, says: str) -> None:
    sent = SentProgram(stage="s", data=pickle.dumps(Gone(module, "gone")))
    with pytest.raises(NotLoaded, match=f"stage 's': its function cannot be loaded .*{says}"):
        sent.setup(call())
    sent.teardown()


def test_setup_error_of_an_imported_module_is_raised_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that does not answer may answer later."""
    (tmp_path / "reads_a_disk.py").write_text("raise OSError('stale file handle')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(OSError, match="stale"):
        SentProgram(stage="s", data=pickle.dumps(Gone("reads_a_disk", "f"))).setup(call())


def test_run_item_that_cannot_be_loaded_is_reported_as_that() -> None:
    made = program(lambda ctx, item: item, has_items=True)
    with pytest.raises(NotLoaded, match="the item of rank 0 cannot be loaded"):
        made.run(call(args=pickle.dumps(Gone("no_such_module", "x"))))


def test_sent_program_does_what_the_program_does() -> None:
    data = dumps(program(lambda ctx: ctx.setup_value, setup_fn=lambda ctx: 3))
    sent = pickle.loads(pickle.dumps(SentProgram(stage="s", data=data)))
    sent.setup(call())
    assert sent.run(call()).result == "3"
    sent.teardown()
