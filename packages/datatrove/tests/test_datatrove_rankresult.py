"""The text of a rank's stats survives as the result of the rank, byte for byte."""

from __future__ import annotations

import io
import json
import random

import pytest
from datatrove.utils.stats import PipelineStats, Stats
from hypothesis import given
from hypothesis import strategies as st

from thornback.datatrove.rankresult import KEPT_BYTES, READABLE_BYTES, decode, encode, in_file


def saved(*stats: Stats) -> str:
    file = io.StringIO()
    PipelineStats(list(stats)).save_to_disk(file)
    return file.getvalue()


def step(name: str, **values: float) -> Stats:
    made = Stats(name)
    for label, value in values.items():
        made[label].update(value)
    return made


def kept(text: str) -> str:
    """Return what the journal has of it."""
    result = json.dumps(encode(text))
    assert len(result) < 64 * 1024
    return result


def test_short_stats_stay_readable_in_the_journal() -> None:
    text = saved(step("📖 - READER", documents=3, longest=4.5))
    assert "\\ud83d" in text
    result = kept(text)
    assert (
        json.loads(result)["stats"][0]["stats"]["documents"]
        == json.loads(text)[0]["stats"]["documents"]
    )
    assert decode(result) == text


def test_stats_of_no_step_are_a_text_as_well() -> None:
    assert decode(kept(saved())) == "[]"


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_json_survive_and_stay_out_of_the_journal(odd: float) -> None:
    text = saved(step("a", odd=odd, plain=2))
    result = kept(text)
    assert "NaN" in text or "Infinity" in text
    assert decode(result) == text
    json.loads(result, parse_constant=lambda name: pytest.fail(f"{name} in the journal"))


def test_text_that_parsing_would_change_survives() -> None:
    text = '[{"name": "a", "stats": {"5": 1, "5": 2}}]'  # the labels 5 and "5" of one step
    assert decode(kept(text)) == text


def test_long_stats_are_compressed() -> None:
    text = saved(*(step(f"step {n}", documents=n + 1) for n in range(200)))
    assert len(text) > READABLE_BYTES * 10
    assert len(kept(text)) < len(text) / 10
    assert decode(kept(text)) == text


def test_stats_that_do_not_fit_go_to_a_file_that_the_result_names() -> None:
    noise = random.Random(1)
    text = saved(step("a", **{f"m{noise.getrandbits(99)}": noise.random() for _ in range(3000)}))
    assert len(text) > KEPT_BYTES
    assert encode(text) is None
    result = json.dumps(in_file("thornback/stats/000001.000000002-00003.json"))
    assert decode(result, {"thornback/stats/000001.000000002-00003.json": text}.__getitem__) == text
    with pytest.raises(ValueError, match="say how to read it"):
        decode(result)


@pytest.mark.parametrize("result", ["null", "[]", '{"other": 1}', '{"zlib": 3}'])
def test_a_result_of_something_else_is_refused(result: str) -> None:
    with pytest.raises(ValueError, match="no result of a pipeline's rank"):
        decode(result)


def test_a_result_that_does_not_unpack_is_refused() -> None:
    with pytest.raises(ValueError, match="no zlib"):
        decode('{"zlib": "abcd"}')


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(st.lists(JSON))
def test_any_stats_survive(value: list[object]) -> None:
    text = json.dumps(value, indent=4)
    assert decode(kept(text)) == text
