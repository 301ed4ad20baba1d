"""What makes two pipelines the same, and what a directory says of the one it holds."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from functools import partial
from typing import Any

import pytest
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter

from thornback.datatrove.identity import (
    as_text,
    changed_params,
    differences,
    pipeline_differences,
    signature,
    stage_identity,
    step_name,
)


def shorten(data: Any, rank: int, world_size: int) -> Any:
    return data


def reader(**options: Any) -> Any:
    return JsonlReader("memory://identity", **options)


def test_parameters_and_lines_do_not_count_but_types_and_their_order_do() -> None:
    steps = [reader(limit=3), shorten, JsonlWriter("memory://a")]
    again = [reader(limit=9), shorten, JsonlWriter("memory://b")]
    assert signature(steps) == signature(again)
    assert signature(steps) != signature(steps[::-1])
    assert signature(steps) != signature(steps[:2])


def test_functions_are_known_by_name_and_lambdas_by_where_they_stand() -> None:
    assert step_name(shorten) == f"{__name__}.shorten"
    assert step_name(partial(shorten, rank=1)) == f"{__name__}.shorten"
    inner = step_name(lambda data, rank, world_size: data)
    assert inner.endswith("by_where_they_stand.<locals>.<lambda>")
    assert step_name(reader()) == "datatrove.pipeline.readers.jsonl.JsonlReader"
    assert step_name([1, 2]) == step_name((1, 2, 3)) == "Iterable"


def test_a_signature_is_the_same_in_every_process() -> None:
    code = (
        "from thornback.datatrove.identity import signature\n"
        "from datatrove.pipeline.readers import JsonlReader\n"
        "print(signature([JsonlReader('memory://x'), lambda d, r, w: d, len, [1]]))"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
        ).stdout
        for seed in ("1", "2")
    }
    assert seen == {
        "datatrove.pipeline.readers.jsonl.JsonlReader > __main__.<lambda> > builtins.len > "
        "Iterable\n"
    }


def identity(steps: list[Any], tasks: int = 4) -> Any:
    return stage_identity(name="s", pipeline=steps, world_size=tasks)


def test_defect_18_a_directory_of_another_pipeline_is_told_by_what_differs() -> None:
    wanted = identity([reader(), shorten])
    own = as_text(identity([reader(), len, shorten], tasks=10))
    found = differences(wanted, own=own, executor_json=None)
    assert found == (
        "world size (tasks) was 10, is 4",
        f"step 1 was builtins.len, is {__name__}.shorten",
        "number of steps was 3, is 2",
    )
    assert differences(wanted, own=as_text(wanted), executor_json=None) == ()


def test_defect_18_a_directory_of_another_executor_tells_its_world_size_only() -> None:
    wanted = identity([reader()])
    stock = json.dumps({"world_size": 10, "pipeline": [{}]})
    assert differences(wanted, own=None, executor_json=stock) == (
        "world size (tasks) was 10, is 4",
    )


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"world_size": "many"}'])
def test_a_directory_that_says_nothing_differs_in_nothing(text: str | None) -> None:
    wanted = identity([reader()])
    assert differences(wanted, own=text, executor_json=text) == ()


def test_only_the_first_steps_that_differ_are_told() -> None:
    wanted = identity([len] * 9)
    found = differences(wanted, own=as_text(identity([max] * 9)), executor_json=None)
    assert found[-1] == "6 more steps differ"
    assert len(found) == 4


def scale(data: Any, rank: int, world_size: int, factor: object) -> Any:
    yield from data


def test_changed_params_names_steps_and_parameters_and_no_value() -> None:
    secret = "hunter2"
    before = [JsonlReader("memory://x", limit=3), partial(scale, factor=secret), [1, 2]]
    after = [JsonlReader("memory://x", limit=4), partial(scale, factor=secret + "!"), [1, 3]]
    own = as_text(identity(before))
    assert changed_params(identity(before), own) == ()
    assert changed_params(identity(after), own) == (
        "step 0 (datatrove.pipeline.readers.jsonl.JsonlReader): limit",
        f"step 1 ({__name__}.scale): factor",
        "step 2 (Iterable): the documents",
    )
    assert differences(identity(after), own=own, executor_json=None) == ()
    assert pipeline_differences(identity(before), identity(after)) == ()
    assert secret not in own


@pytest.mark.parametrize("own", [None, "", "[]", '{"params": 1, "steps": 2}', '{"steps": []}'])
def test_changed_params_of_a_directory_that_says_nothing_are_none(own: str | None) -> None:
    assert changed_params(identity([JsonlReader("memory://x")]), own) == ()


def test_changed_params_of_another_step_are_not_told() -> None:
    own = as_text(identity([partial(scale, factor=1)]))
    other: Any = shorten
    assert changed_params(identity([partial(other, factor=2)]), own) == ()


def test_differences_steps_of_a_script_are_compared_by_qualified_name() -> None:
    def moved(step: Any, module: str) -> Any:
        copied = types.FunctionType(step.__code__, {}, step.__name__)
        copied.__module__ = module
        return copied

    names = ("__main__", "job", "__mp_main__")
    ways = [identity([moved(shorten, name)]) for name in names]
    for one in ways:
        for other in ways:
            assert differences(one, own=as_text(other), executor_json=None) == ()
            assert pipeline_differences(one, other) == ()
    renamed = identity([moved(scale, "job")])
    assert pipeline_differences(ways[0], renamed) == ("step 0 was __main__.shorten, is job.scale",)
