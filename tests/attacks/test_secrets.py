"""Secrets that a run is given, or meets, appear in nothing that the run says of itself."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from thornback.executor import (
    AttemptReport,
    Executor,
    IdentityMismatch,
    Job,
    JournalError,
    RankContext,
    RunFailed,
    RunInfo,
    RunReport,
    Stage,
    StageProgress,
    UsageError,
)
from thornback.executor.journal.errors import HeldByAnother, Superseded

URL_PASSWORD = "ur1pa55@word/x"
ENV_VALUE = "plainwordwithoutshape"
OPTION = "0ption5ecret"
SHAPED = "hf_" + "q" * 34
STATE = f"memory://me:{URL_PASSWORD}@host/state"
SECRETS = (URL_PASSWORD, "ur1pa55", ENV_VALUE, OPTION, SHAPED)


def fails() -> Callable[[RankContext], None]:
    def fail(ctx: RankContext) -> None:
        from opentelemetry import trace

        secret = os.environ["DB_PASSWORD"]
        print(f"connecting with {secret} and {os.environ['MY_HF']}")
        with trace.get_tracer("mine").start_as_current_span("query") as span:
            span.set_attribute("url.full", f"https://me:{secret}@db/x?token={secret}99")
            raise RuntimeError(f"no access with {secret} and ur1pa55@word/x or 0ption5ecret")

    return fail


class Everything:
    """Keeps what a run tells."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def started(self, info: RunInfo, /) -> None:
        self.heard.append(repr(info))

    def progressed(self, stages: tuple[StageProgress, ...], /) -> None:
        self.heard.append(repr(stages))

    def failed(self, attempt: AttemptReport, /) -> None:
        self.heard += [repr(attempt), str(attempt.as_json())]

    def finished(self, report: RunReport, /) -> None:
        self.heard.append(repr(report))


def spans_of(exporter: InMemorySpanExporter) -> list[str]:
    return [span.to_json() for span in exporter.get_finished_spans()]


def test_run_with_secrets_shows_them_nowhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    exporter, told = InMemorySpanExporter(), Everything()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    options: dict[str, Any] = {
        "env": {"DB_PASSWORD": ENV_VALUE, "MY_HF": SHAPED},
        "storage_options": {"secret": OPTION, "skip_instance_cache": True},
        "tracer_provider": provider,
        "observers": [told],
        "record": str(tmp_path / "record.jsonl"),
    }
    executor = Executor.on_local(state=STATE, cpus=1, **options)
    job = Job("j", [Stage("a", fails(), ranks=1)])
    with caplog.at_level(logging.DEBUG), pytest.raises(RunFailed) as failed:
        executor.run(job)
    report = failed.value.report
    (attempt,) = report.attempts
    files = fsspec.filesystem("memory")
    journal = [files.cat_file(p) for p in files.find("/") if "/control/" in p]
    spans = spans_of(exporter)
    shown = {
        "executor": repr(executor),
        "report": repr(report) + "".join(map(str, failed.value.exceptions)) + str(failed.value),
        "certificate": str(attempt.as_json()),
        "observers": "".join(told.heard),
        "spans": "".join(spans),
        "logging": "".join(r.getMessage() for r in caplog.records if "thornback" in r.name),
        "record": (tmp_path / "record.jsonl").read_text(),
        "journal": b"".join(journal).decode(),
    }
    # Each of these is about the failure, and says so with the secret hidden.
    assert "connecting with *** and ***" in attempt.log_tail
    assert "no access with *** and *** or ***" in attempt.fault.message
    assert any('"query"' in span and "no access with ***" in span for span in spans)
    assert "no access with ***" in shown["journal"]
    assert report.state_url == "memory://me:***@host/state"
    assert attempt.log_url.startswith("memory://me:***@host/state/logs/")
    found = [(name, secret) for name, text in shown.items() for secret in SECRETS if secret in text]
    assert found == []


def test_errors_about_a_state_do_not_show_its_password() -> None:
    options: dict[str, Any] = {"storage_options": {"skip_instance_cache": True}}
    other = STATE.replace("/state", "/other")
    Executor.on_local(state=other, **options).run(Job("j", [Stage("a", lambda ctx: 1, ranks=1)]))
    with pytest.raises(IdentityMismatch) as mismatch:
        Executor.on_local(state=other, **options).run(Job("j", [Stage("a", len, ranks=2)]))
    with pytest.raises(UsageError) as unknown:
        Executor.on_local(state=f"nosuch://me:{URL_PASSWORD}@host/x").run(
            Job("j", [Stage("a", len, items=["x"])])
        )
    held = HeldByAnother(other, "h", 1, "", "")
    for error in (mismatch.value, unknown.value, held, Superseded(other, 1, 2)):
        text = f"{error} {error!r} {error.__cause__}"
        assert "me:***@" in text
        assert "ur1pa55" not in text


def test_error_of_a_store_is_cut_off_where_its_text_holds_a_secret(tmp_path: Path) -> None:
    class Store:
        async def __aenter__(self) -> Store:
            try:
                raise OSError(f"403 for {OPTION}")
            except OSError as error:
                raise JournalError(f"cannot write: {error}") from error

        async def __aexit__(self, *exc_info: object) -> None:
            raise AssertionError("was not entered")

    journal: Any = Store  # only its start
    secret = {"secret": OPTION}
    executor = Executor.on_local(state=str(tmp_path), journal=journal, storage_options=secret)
    with pytest.raises(JournalError, match=r"cannot write: 403 for \*\*\*") as raised:
        executor.run(Job("j", [Stage("a", len, items=["x"])]))
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__
    assert raised.value.__notes__ == ["(raised from a OSError whose text holds a secret)"]
