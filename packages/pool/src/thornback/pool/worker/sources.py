"""A program given as source text: for tests of workers, which then need no importable module."""

from __future__ import annotations

import json
import pickle
import textwrap

import attrs

from thornback.pool.ports import ProgramResult, RankCall


@attrs.define(slots=True, eq=False)
class SourceProgram:
    """Runs the body of a function of `call` (a `RankCall`) and `state` (a dict kept between ranks).

    What the body returns is the result, as JSON.
    """

    body: str
    setup_body: str
    state: dict[str, object] = attrs.field(factory=dict)

    def setup(self, context: RankCall, /) -> None:
        """Run the body of the set-up."""
        _call(self.setup_body, context, self.state)

    def run(self, context: RankCall, /) -> ProgramResult:
        """Run the body; a `ProgramResult`, or what it puts into `state["raw"]`, stays as it is."""
        value = _call(self.body, context, self.state)
        if "raw" in self.state:
            return self.state.pop("raw")  # type: ignore[return-value]  # on purpose: tests return nonsense
        if isinstance(value, ProgramResult):
            return value
        return ProgramResult(result=None if value is None else json.dumps(value))


def _call(body: str, call: RankCall | None, state: dict[str, object]) -> object:
    source = "def body(call, state):\n" + textwrap.indent(textwrap.dedent(body) or "pass", "    ")
    namespace: dict[str, object] = {}
    exec(source, namespace)
    function = namespace["body"]
    assert callable(function)
    value: object = function(call, state)
    return value


@attrs.define(slots=True, eq=False)
class TidySourceProgram(SourceProgram):
    """Has a teardown: the body of a function of `state` (and of `call`, which is None)."""

    teardown_body: str = "pass"

    def teardown(self) -> None:
        """Run the body of the teardown."""
        _call(self.teardown_body, None, self.state)


def source_program(body: str, setup: str = "pass", teardown: str | None = None) -> bytes:
    """Return the blob of a program, for `load`; without `teardown` it has no such method."""
    if teardown is None:
        return pickle.dumps(SourceProgram(body, setup))
    return pickle.dumps(TidySourceProgram(body, setup, teardown_body=teardown))
