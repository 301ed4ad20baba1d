"""Fixtures that tests of this package share; a module may have others of these names."""

from __future__ import annotations

import uuid

import pytest


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Run each asynchronous test on both loops."""
    return str(request.param)


@pytest.fixture
def memory() -> str:
    """Return the URL of a state in memory that nobody else has."""
    return f"memory://{uuid.uuid4().hex}"
