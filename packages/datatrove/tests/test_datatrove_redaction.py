"""What goes into executor.json: as datatrove writes it, but for secrets."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from datatrove.executor.ray import RayPipelineExecutor as StockRayPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.readers import JsonlReader

from thornback.datatrove import RayPipelineExecutor
from thornback.datatrove.redaction import REDACTED, plain


@dataclass
class Settings:
    depth: int
    inner: Any = None


class Step(PipelineStep):  # type: ignore[misc]  # datatrove has no types
    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        self.__dict__.update(attributes)

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Any:
        yield from data


def shorten(data: Any, rank: int, world_size: int) -> Any:
    return data


def steps() -> list[Any]:
    return [
        JsonlReader("memory://in", text_key="content", id_key="key"),
        shorten,
        ["a", {"b": (1, 2.5, None, True)}],
        Step(settings=Settings(1, Settings(2, [shorten])), name={1: "é", "eos_token": "</s>"}),
    ]


def test_a_long_description_is_cut_and_leaves_no_part_of_a_password() -> None:
    class Talks:
        def __init__(self, length: int) -> None:
            self.length = length

        def __str__(self) -> str:
            return "x" * self.length + "s3://me:secret@host" + "y" * 30_000

    assert plain(b"a" * 10**8) == f"b'{'a' * 9_998}..."
    assert plain(b"a" * 5_000) == str(b"a" * 5_000)
    found = str(plain(Talks(9_990)))
    assert len(found) == 10_003
    assert "s3://me:" in found
    assert "sec" not in found


def text_of(executor: Any) -> str:
    executor.save_executor_as_json()
    with executor.logging_dir.open("executor.json", "r") as file:
        return str(file.read())


def both(folder: Path, **arguments: Any) -> tuple[str, str]:
    made = []
    for cls in (StockRayPipelineExecutor, RayPipelineExecutor):
        pipeline = arguments.pop("pipeline", None) or steps()
        arguments["pipeline"] = pipeline
        made.append(text_of(cls(logging_dir=str(folder), **arguments)))
    return made[0], made[1]


def test_executor_json_is_byte_for_byte_that_of_datatrove(tmp_path: Path) -> None:
    theirs, ours = both(
        tmp_path,
        tasks=7,
        workers=2,
        time=30,
        mem_per_cpu_gb=1.5,
        ray_remote_kwargs={"resources": {"tape": 1}, "runtime_env": {"pip": ["numpy"]}},
    )
    assert ours == theirs


def test_executor_json_of_a_chain_is_byte_for_byte_that_of_datatrove(tmp_path: Path) -> None:
    parent = StockRayPipelineExecutor(steps(), tasks=3, logging_dir=str(tmp_path / "p"))
    theirs, ours = both(tmp_path, depends=parent)
    assert ours == theirs
    mine = RayPipelineExecutor(parent.pipeline, tasks=3, logging_dir=str(tmp_path / "p"))
    nested = json.loads(both(tmp_path, depends=mine)[1])
    assert nested["depends"] == json.loads(text_of(mine))


def test_several_dependencies_are_a_list_and_own_options_appear_when_they_are_others(
    tmp_path: Path,
) -> None:
    parents = [RayPipelineExecutor([], logging_dir=str(tmp_path / name)) for name in "ab"]
    child = RayPipelineExecutor([], logging_dir=str(tmp_path / "c"), depends=parents, retries=2)
    data = json.loads(text_of(child))
    assert [each["tasks"] for each in data["depends"]] == [1, 1]
    assert data["retries"] == 2
    drivers = {"classifier", "trace", "platform", "observers", "_launch"}
    assert not {"fresh", "on_failure", *drivers} & {*data}


def test_defect_25_secrets_stay_out_of_executor_json(tmp_path: Path) -> None:
    options: Any = {
        "runtime_env": {
            "env_vars": {"HF_TOKEN": "hidden-1", "PLAIN": "hidden-2"},
            "pip": ["git+https://hidden-3@host/x", "numpy"],
            "config": {"apiKey": "hidden-4", "eager_install": True},
        },
        "resources": {"tape": 1},
    }
    step = Step(
        paths_file=(
            "s3://bucket/list",
            {"key": "hidden-5", "client_kwargs": {"sas": "hidden-6"}},
        ),
        api_key="hidden-7",
        endpoint_url="http://me:hidden-8@host/v1",
        hf_token="hidden-9",
        token=None,
        text_key="content",
        eos_token="</s>",
        folder="abfs://container@account/x",
    )
    executor = RayPipelineExecutor(
        [step], logging_dir=str(tmp_path), ray_remote_kwargs=options, tasks=1
    )
    before = copy.deepcopy((options, step.__dict__))
    text = text_of(executor)
    assert "hidden" not in text
    data = json.loads(text)
    env = data["ray_remote_kwargs"]["runtime_env"]
    assert env["env_vars"] == {"HF_TOKEN": REDACTED, "PLAIN": REDACTED}
    assert env["pip"] == [f"git+https://{REDACTED}@host/x", "numpy"]
    assert env["config"] == {"apiKey": REDACTED, "eager_install": True}
    written = data["pipeline"][0]
    assert written["paths_file"][0] == "s3://bucket/list"
    assert (written["text_key"], written["eos_token"], written["token"]) == (
        "content",
        "</s>",
        None,
    )
    assert written["folder"] == "abfs://container@account/x"
    assert str(before[0]) == str(options)
    assert executor.ray_remote_kwargs is options
    assert executor.ray_remote_kwargs["runtime_env"]["env_vars"]["HF_TOKEN"] == "hidden-1"


def test_defect_26_to_json_changes_nothing_and_works_with_folders(tmp_path: Path) -> None:
    pipeline = steps()
    executor = RayPipelineExecutor(pipeline, logging_dir=str(tmp_path))
    data = json.loads(executor.to_json())
    assert executor.pipeline is pipeline
    assert [type(step) for step in pipeline] == [type(step) for step in steps()]
    assert data["pipeline"][0]["text_key"] == "content"
    assert data["world_size"] == 1


def test_what_datatrove_cannot_encode_is_named() -> None:
    ring: list[Any] = [1]
    ring.append(ring)
    value = {("a", 1): 2, "ring": ring, "class": Settings, "bytes": b"x"}
    assert json.loads(json.dumps(plain(value))) == {
        "('a', 1)": 2,
        "ring": [1, "[1, [...]]"],
        "class": str(Settings),
        "bytes": "b'x'",
    }


def test_half_an_executor_json_is_never_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = RayPipelineExecutor([], logging_dir=str(tmp_path))
    whole = text_of(executor)

    class Unprintable:
        def __str__(self) -> str:
            raise ValueError("no text")

    executor.pipeline = [Step(bad=Unprintable())]
    with pytest.raises(ValueError, match="no text"):
        executor.save_executor_as_json()
    with executor.logging_dir.open("executor.json", "r") as file:
        assert file.read() == whole


def test_what_only_the_driver_needs_does_not_travel(tmp_path: Path) -> None:
    import threading

    lock: Any = threading.Lock()
    executor = RayPipelineExecutor(
        steps(), logging_dir=str(tmp_path), observers=[lock], platform=lock, trace=lock, retries=3
    )
    executor.classifier = lock
    for again in (pickle.loads(pickle.dumps(executor)), copy.deepcopy(executor)):
        assert (again.observers, again.platform, again.trace) == ((), None, None)
        assert again.classifier is None
        assert (again.retries, again.tasks, len(again.pipeline)) == (3, 1, 4)
        assert not again._launch.active
    assert executor.platform is lock
