"""Digests of numpy's arrays and scalars, where it is installed."""

from __future__ import annotations

from typing import Any

import pytest

from thornback.executor.fingerprint import digest

np: Any = pytest.importorskip("numpy")


def test_digest_different_arrays_have_different_digests() -> None:
    values = [
        *(1.0, 1, np.float64(1), np.float32(1), np.int64(1), np.arange(6), np.arange(6.0)),
        *(np.arange(6).reshape(2, 3), np.arange(6).reshape(3, 2), np.arange(6).reshape(2, 3).T),
        *(np.array([1, "a"], object), np.array([1, "b"], object), np.dtype("f4"), np.add),
        *(np.array(["2020-01-01"], "M8[D]"), np.array(["2020-01-02"], "M8[D]"), np.zeros(0)),
        *(
            np.zeros(2, [("a", "i4")]),
            np.zeros(2, [("b", "i4")]),
            np.array(["a"]),
            np.array([b"a"]),
        ),
    ]
    digests = [digest(value) for value in values]
    assert all(digests)
    assert len({*digests}) == len(values)


def test_digest_layout_in_memory_does_not_count() -> None:
    base = np.arange(12).reshape(3, 4)
    assert digest(base.T) == digest(np.ascontiguousarray(base.T))
    assert digest(base[::2]) == digest(base[::2].copy())


def test_digest_masked_array_has_none() -> None:
    assert digest(np.ma.masked_array([1], [True])) == ""


def test_digest_beyond_the_bound_is_not_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thornback.executor.fingerprint.MAX_BYTES", 1 << 20)
    assert digest(np.zeros(1 << 20)) == ""
