"""Code that is sent by value shows its file and source lines where it is loaded."""

from __future__ import annotations

import linecache
import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from thornback.executor import pickling

SCRIPT = '''
import functools

def wrapped(function):
    @functools.wraps(function)
    def wrapper(*args):
        return function(*args)  # wrapper
    return wrapper

@wrapped
def decorated():
    return 1 / 0  # decorated

def nested():
    def inner():
        return {}["x"]  # nested
    return inner()

class Thing:
    def __call__(self):
        return self.missing  # method

def generator():
    def numbers():
        yield 1
        raise ValueError(
            "two"
        )  # generator
    return list(numbers())

lam = lambda: undefined  # lambda
page = """\f"""; after_form_feed = lambda: undefined  # form feed
'''
ENDS = ("decorated", "nested", "method", "lambda", "form feed")
LOAD = """
import pickle, sys, traceback
for function in pickle.load(sys.stdin.buffer):
    try:
        function()
    except Exception:
        traceback.print_exc(file=sys.stdout)
"""


@pytest.fixture
def script(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """The globals of a script whose file is gone when its functions are loaded."""
    path = tmp_path / "job.py"
    path.write_text(SCRIPT)
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(SCRIPT, str(path), "exec"), space)
    yield space
    linecache.cache.pop(str(path), None)


def test_dumps_functions_of_a_script_show_their_lines_elsewhere(
    script: dict[str, Any], tmp_path: Path
) -> None:
    names = ("decorated", "nested", "generator", "lam", "after_form_feed")
    blob = pickling.dumps([*(script[name] for name in names), script["Thing"]()])
    (tmp_path / "job.py").unlink()
    done = subprocess.run([sys.executable, "-c", LOAD], input=blob, capture_output=True)
    text = done.stdout.decode()
    assert (done.stderr, done.returncode) == (b"", 0)
    assert "<dynamic-code>" not in text
    assert f'File "{tmp_path}/job.py", line 12, in decorated\n' in text
    for end in ENDS:
        assert f"# {end}\n" in text
    assert "raise ValueError(\n" in text


def test_dumps_lines_travel_once_and_win_over_a_file_of_that_name(
    script: dict[str, Any], tmp_path: Path
) -> None:
    blob = pickling.dumps([script["nested"], script["nested"]])
    assert blob.count(b"# nested") == 1
    (tmp_path / "job.py").write_text("# another version\n" * 40)
    linecache.checkcache(str(tmp_path / "job.py"))
    with pytest.raises(KeyError) as caught:
        pickle.loads(blob)[0]()
    assert '        return {}["x"]  # nested' in linecache.getlines(f"{tmp_path}/job.py")[15]
    assert '{}["x"]  # nested' in "".join(traceback.format_exception(caught.value))


def test_dumps_a_notebook_cell_brings_the_lines_that_ipython_keeps() -> None:
    name, source = "<ipython-input-1-abc>", "def cell():\n    return 1 / 0  # in a cell\n"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source, name, "exec"), space)
    blob = pickling.dumps(space["cell"])
    del linecache.cache[name]
    cell = pickle.loads(blob)
    assert linecache.getline(name, 2) == "    return 1 / 0  # in a cell\n"
    assert cell.__code__.co_filename == name
    del linecache.cache[name]


@pytest.mark.parametrize("name", ["<string>", "<stdin>"])
def test_dumps_code_without_source_keeps_file_and_line(name: str) -> None:
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(compile("\n\ndef no_source():\n    return 1 / 0\n", name, "exec"), space)
    function: Callable[[], float] = pickle.loads(pickling.dumps(space["no_source"]))
    with pytest.raises(ZeroDivisionError) as caught:
        function()
    frame = traceback.extract_tb(caught.value.__traceback__)[-1]
    assert (frame.filename, frame.lineno, frame.name) == (name, 4, "no_source")
