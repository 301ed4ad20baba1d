"""`python -m thornback.faults`: the audit, and failures from files of every form."""

from __future__ import annotations

import asyncio
import gzip
import importlib
import json
import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import pytest

from thornback.faults import ErrorRecord, FaultKind, Origin, explain
from thornback.faults.__main__ import main, ray_classes
from thornback.faults.python_bases import PYTHON_BASES
from thornback.faults.reading import read_failure
from thornback.faults.testing import (
    RAY_BASES,
    fault,
    lookalike,
    lookalike_class,
    lookalike_task_error,
)
from thornback.faults.tracebacks import mro_of, record_of_text


class TestAudit:
    def test_without_ray(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["audit"], modules=("no_such_ray.exceptions",)) == 2
        assert "pip install ray" in capsys.readouterr().err

    def test_every_class_with_its_rule(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        module = ModuleType("look.alikes")
        base = lookalike_class("RayError")
        new = type("NewError", (base,), {"__module__": "look.alikes"})
        other = type("OtherError", (Exception,), {"__module__": "look.alikes"})
        vars(module).update(RayError=base, New=new, Other=other, there=OSError, number=1)
        monkeypatch.setitem(sys.modules, "look.alikes", module)
        assert main(["audit"], modules=("look.alikes", "look.alikes.more")) == 1
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert lines[:3] == [
            ["look.alikes.NewError", "system", "only", "by", "ray.other"],
            ["look.alikes.OtherError", "unknown", "only", "by", "unknown"],
            ["ray.exceptions.RayError", "system", "ray.other"],
        ]
        assert lines[3] == ["not", "looked", "at,", "cannot", "be", "imported:", "look.alikes.more"]
        assert lines[4][2:] == ["3", "exception", "classes,", "2", "without", "a", "rule"]

    @pytest.mark.parametrize(
        ("version", "checked"), [("2.60.0", "it is one of those"), ("9.9.9", "it is none of those")]
    )
    def test_where_ray_and_its_libraries_keep_theirs(
        self,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        version: str,
        checked: str,
    ) -> None:
        ray = ModuleType("ray")
        vars(ray)["__version__"] = version
        monkeypatch.setitem(sys.modules, "ray", ray)
        base = lookalike_class("RayError")
        for name in ("ray.exceptions", "ray.data.exceptions", "ray.serve.exceptions"):
            module = ModuleType(name)
            vars(module)["New"] = type("New", (base,), {"__module__": name})
            monkeypatch.setitem(sys.modules, name, module)
        vars(sys.modules["ray.exceptions"])["RayError"] = base
        assert main(["audit"]) == 1
        *classes, counted, told = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in classes] == [
            "ray.data.exceptions.New",
            "ray.exceptions.New",
            "ray.exceptions.RayError",
            "ray.serve.exceptions.New",
        ]
        assert counted == f"ray {version}: 4 exception classes, 3 without a rule"
        assert told.startswith(checked)

    def test_all_well(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        module = ModuleType("look.alikes")
        vars(module)["RayError"] = lookalike_class("RayError")
        monkeypatch.setitem(sys.modules, "look.alikes", module)
        assert main(["audit"], modules=("look.alikes",)) == 0
        assert "1 exception classes, 0 without a rule" in capsys.readouterr().out

    def test_it_walks_all_loaded_classes_but_those_made_on_the_way(self) -> None:
        base = lookalike_class("RayError")
        child = type("Child", (base,), {"__module__": "ray.exceptions"})
        grandchild = type("Grandchild", (child, ValueError), {"__module__": "ray.other"})
        made = type(lookalike_task_error(ValueError("x")))
        both = type("RayTaskError(ValueError)", (child,), {"__module__": "ray.exceptions"})
        local = type("Local", (base,), {"__module__": "m", "__qualname__": "f.<locals>.Local"})
        assert list(ray_classes(base)) == [
            "ray.exceptions.RayError",
            "ray.exceptions.Child",
            "ray.other.Grandchild",
        ]
        del grandchild, made, both, local


PRINTED = """\
Traceback (most recent call last):
  File "a.py", line 1, in f
    send()
    ^^^^^^
ConnectionResetError: [Errno 104] Connection reset by peer

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "a.py", line 2, in g
    f()
my.pkg.Error: cannot send:
  part 7
"""
RAY = """\
2026-01-01 ERROR it failed
Traceback (most recent call last):
  File "a.py", line 1, in <module>
    ray.get(ref)
ray.exceptions.RayTaskError(ValueError): \x1b[36mray::f()\x1b[39m (pid=1, ip=10.0.0.1)
  File "b.py", line 3, in f
    raise ValueError("bad row")
ValueError: bad row
"""


class TestTracebacks:
    def test_the_last_one_with_its_causes(self) -> None:
        record = record_of_text(PRINTED)
        assert record.type_names[0] == "my.pkg.Error"
        assert record.message == "cannot send:\n  part 7"
        [cause] = record.causes
        assert cause.type_names == ErrorRecord.of(ConnectionResetError()).type_names
        assert cause.attributes == {"errno": 104}
        assert record.traceback == PRINTED

    def test_what_a_log_puts_before_each_line(self) -> None:
        logged = "".join(f"[rank3]: {line}" for line in PRINTED.splitlines(keepends=True))
        assert record_of_text(logged).message == "cannot send:\n  part 7"
        assert len(record_of_text(logged).causes) == 1

    def test_the_lines_of_another_system_end_otherwise(self) -> None:
        assert record_of_text(PRINTED.replace("\n", "\r\n")) == record_of_text(PRINTED)

    def test_what_ray_prints_is_unwrapped(self) -> None:
        found = explain(record_of_text(RAY)).fault
        assert (found.error_type, found.message) == ("builtins.ValueError", "bad row")
        assert (found.kind, found.origin) == (FaultKind.APPLICATION, Origin.RANK)

    def test_what_ray_prints_of_a_class_with_a_module(self) -> None:
        text = RAY.replace("ValueError", "Odd").replace("\nOdd: bad row", "\nmy.Odd: a\nMore: b")
        [inner] = record_of_text(text).causes
        assert (inner.type_names[0], inner.message) == ("my.Odd", "a\nMore: b")
        plain = RAY.replace("RayTaskError(ValueError)", "RayTaskError")
        assert record_of_text(plain).causes[0].message == "bad row"
        bare = "ray.exceptions.RayTaskError: ray::f()"
        assert record_of_text(bare).causes == ()

    @pytest.mark.parametrize(
        ("line", "name", "message"),
        [
            ("ValueError: bad row", "builtins.ValueError", "bad row"),
            ("KeyError", "builtins.KeyError", ""),
            ("Mine: x", "__main__.Mine", "x"),
            ("builtins.OSError: x", "builtins.OSError", "x"),
            ("a.b.<locals>.C: x: y", "a.b.<locals>.C", "x: y"),
        ],
    )
    def test_one_line_is_enough(self, line: str, name: str, message: str) -> None:
        record = record_of_text(f"{line}\n")
        assert (record.type_names[0], record.message) == (name, message)
        assert "builtins.BaseException" in record.type_names

    @pytest.mark.parametrize(
        "text",
        ["", "\n", "  Indented: x", "nothing", "no exception here", "error: x", "Error", "int: x"],
    )
    def test_no_exception_at_all(self, text: str) -> None:
        with pytest.raises(ValueError, match="there is no exception in this text"):
            record_of_text(text)

    def test_bases_of_ray_are_known(self) -> None:
        for name in RAY_BASES:
            real = ErrorRecord.of(lookalike_class(name)("x")).type_names
            assert set(mro_of(f"ray.exceptions.{name}")) == set(real)
        assert explain(record_of_text("ray.exceptions.ActorDiedError: x")).fault.rule == (
            "ray.actor_died"
        )

    def test_bases_of_python_are_those_of_the_real_classes(self) -> None:
        """Of the modules that are imported here anyway: a test may import what a name says."""
        for name in PYTHON_BASES:
            module, _, short = name.rpartition(".")
            cls = getattr(importlib.import_module(module), short)
            names = [f"{c.__module__}.{c.__qualname__}" for c in cls.__mro__ if c is not object]
            if name != "urllib.error.HTTPError":  # it is also a response
                assert list(mro_of(name)) == names


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:  # noqa: BLE001 - the test needs its traceback
        return caught


@pytest.mark.parametrize(
    "error",
    [
        ValueError("one"),
        ValueError("one\ntwo"),
        KeyError("x"),
        lookalike("ActorDiedError", "The actor died."),
        lookalike("my.module.Error", "text"),
        ExceptionGroup("g", [ValueError("1"), OSError("2"), KeyError("3")]),
        ExceptionGroup("g", [ExceptionGroup("h", [ValueError("1"), OSError("2")])]),
        asyncio.CancelledError(),
    ],
)
def test_what_python_prints_is_read(error: BaseException) -> None:
    printed = "".join(traceback.format_exception(raised(error)))
    read, real = record_of_text(printed), ErrorRecord.of(error)
    assert read.type_names[0] == real.type_names[0]
    assert [each.message for each in read.members] == [each.message for each in real.members]
    if not real.members:
        assert read.message == real.message


FAULT = fault(FaultKind.OOM, Origin.PROCESS, signal=9, oom_kill=True).__replace__(
    error_type="thornback.pool.RankProcessDied", phase="rank"
)
CERTIFICATE = {
    "stage": "clean",
    "rank": 3,
    "kind": "oom",
    "origin": "worker",
    "rule": "r",
    "error_type": "ray.exceptions.OutOfMemoryError",
    "message": "killed",
    "phase": "",
}


def as_json(value: object) -> bytes:
    return json.dumps(value).encode()


FORMS: list[tuple[bytes, str]] = [
    (PRINTED.encode(), "my.pkg.Error"),
    (b"\xff\nValueError: x", "builtins.ValueError"),
    (as_json(ErrorRecord.of(KeyError("x")).as_json()), "builtins.KeyError"),
    (as_json(FAULT.as_json()), "thornback.pool.RankProcessDied"),
    (as_json(explain(KeyError("x")).as_json()), "builtins.KeyError"),
    (as_json({"reason": "given up", "last": CERTIFICATE}), "ray.exceptions.OutOfMemoryError"),
]


@pytest.mark.parametrize(("data", "name"), FORMS)
def test_every_form_is_read(data: bytes, name: str) -> None:
    assert read_failure(data).error.type_names[0] == name


def test_a_fault_is_judged_again_with_what_was_known() -> None:
    read = read_failure(as_json(FAULT.as_json()))
    again = explain(read.error, read.facts).fault
    found = (again.kind, again.rule, again.origin)
    assert found == (FaultKind.OOM, "facts.kernel_oom", Origin.PROCESS)
    assert (again.facts, again.phase) == (FAULT.facts, "rank")
    assert read_failure(as_json(CERTIFICATE)).facts == {"origin": "worker"}


class Runs:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("echo it ran >&2",)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pickle.dumps(Runs()), r"it is a pickle, which could run any code.*Expected JSON"),
        (pickle.dumps(FAULT), r"it is a pickle"),
        (gzip.compress(b"ValueError: x"), "it is compressed by gzip: unpack it first"),
        (b"PK\x03\x04aaaa", "it is a zip archive"),
        (b"\x7fELF\0\0", "it is binary"),
        (b"a" * (64 * 1024**2 + 1), "it is longer than 64 MiB: give the part"),
        (b'{"fault": ' * 100_000, "its JSON is nested too deeply"),
        (b'{"last": ' * 500 + b"{}" + b"}" * 500, "has 'type_names'"),
        (
            b'{"type_names": [], "causes": [' * 400 + b"]}" * 400,
            "its JSON is nested too deeply|ErrorRecord.causes cannot be",
        ),
        (b"{", "it begins like JSON, but is none"),
        (b'{"a": 1}', "has 'type_names'"),
        (b'{"type_names": 1}', "ErrorRecord.type_names cannot be 1"),
        (b'{"fault": {"error_type": 1}}', "has 'type_names'"),
        (b"", "there is no exception in this text"),
    ],
)
def test_what_is_no_failure_or_would_run_code_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_failure(data)


@pytest.mark.parametrize("protocol", [0, 1])
def test_old_pickles_are_no_failures_either(protocol: int) -> None:
    with pytest.raises(ValueError, match=r"there is no exception in this text|it is binary"):
        read_failure(pickle.dumps(Runs(), protocol))


class TestExplain:
    def run(
        self, capsys: pytest.CaptureFixture[str], path: Path, *options: str
    ) -> tuple[int, str, str]:
        code = main(["explain", str(path), *options])
        out, err = capsys.readouterr()
        return code, out, err

    def test_text_for_people(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "log"
        path.write_text(PRINTED)
        code, out, err = self.run(capsys, path, "--rules", "throttled", "network")
        assert (code, err) == (0, "")
        assert "=> network, by rule 'network.names': the connection failed" in out
        assert out.splitlines()[-1] == "verdict: network: retry 1 of 10, after a pause"
        code, out, _ = self.run(capsys, path)
        assert out.splitlines()[-1] == (
            "verdict: application: given up: no retries for this: Error: cannot send:"
        )

    def test_json_for_programs(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "log"
        path.write_text("thornback.pool.RankProcessDied: it died")
        facts = ("--fact", "signal=9", "--fact", "oom_kill=true", "--fact", "node=a")
        code, out, _ = self.run(capsys, path, "--origin", "process", "--json", *facts)
        told: Mapping[str, Mapping[str, object]] = json.loads(out)
        assert code == 0
        assert told["fault"]["rule"] == "facts.kernel_oom"
        assert told["fault"]["facts"] == {"signal": 9, "oom_kill": True, "node": "a"}
        assert told["verdict"]["retry"] is True

    def test_an_origin_on_the_line_goes_before_that_of_the_file(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "fault"
        path.write_bytes(as_json(FAULT.as_json()))
        assert "=> oom, by rule 'facts.kernel_oom'" in self.run(capsys, path)[1]
        assert "=> application, by rule" in self.run(capsys, path, "--origin", "rank")[1]

    def test_the_bases_of_pythons_own_classes_are_looked_up(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "log"
        path.write_text("asyncio.exceptions.IncompleteReadError: x")
        _, out, _ = self.run(capsys, path, "--origin", "worker")
        assert "by rule 'python.pipe_closed'" in out
        path.write_text("http.client.no_such: x")
        assert self.run(capsys, path)[0] == 0

    @pytest.mark.parametrize("name", ["a_foreign_module.Odd", "this.Boom", "venv.__main__.Boom"])
    def test_nothing_is_imported_because_a_text_names_it(
        self,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        name: str,
    ) -> None:
        (tmp_path / "a_foreign_module.py").write_text("class Odd(TimeoutError): pass\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        path = tmp_path / "log"
        written = {"error_type": name, "message": ""}, {"type_names": [name]}
        for data in (f"{name}: x".encode(), *map(as_json, written)):
            path.write_bytes(data)
            code, out, _ = self.run(capsys, path, "--origin", "worker")
            assert code == 0
            assert "by rule 'unknown'" in out
        assert name.rpartition(".")[0] not in sys.modules

    def test_a_pickle_is_refused_and_not_run(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "fault.pkl"
        path.write_bytes(pickle.dumps(Runs()))
        assert main(["explain", str(path)]) == 2
        err = capfd.readouterr().err
        assert err.startswith(f"{path}: it is a pickle, which could run any code when it is read.")
        assert "it ran" not in err

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ((), "there is no exception in this text"),
            (("--fact", "x"), "a fact is given as name=value, not as 'x'"),
        ],
    )
    def test_what_cannot_be_read(
        self,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        options: tuple[str, ...],
        message: str,
    ) -> None:
        path = tmp_path / "log"
        path.write_text("ValueError: x" if options else "nothing")
        code, out, err = self.run(capsys, path, *options)
        assert (code, out) == (2, "")
        assert err.startswith(f"{path}: {message}")
        assert self.run(capsys, tmp_path / "none")[0] == 2

    def test_from_standard_input(self) -> None:
        run = subprocess.run(
            [sys.executable, "-m", "thornback.faults", "explain"],
            input="ray.exceptions.NodeDiedError: gone",
            capture_output=True,
            text=True,
            check=True,
        )
        assert run.stdout.splitlines()[1] == "=> node_lost, by rule 'ray.node_died': the node died"
        assert run.stderr == ""
