"""The sets that a user may ask for; and that every rule of every set decides something."""

from __future__ import annotations

import errno
from email.message import Message
from ssl import SSLEOFError, SSLZeroReturnError

import pytest

from thornback.faults import (
    CUDA_RULES,
    DEFAULT_RULES,
    NETWORK_RULES,
    THROTTLED_RULES,
    Classifier,
    ErrorRecord,
    FaultKind,
    Origin,
    RetryPolicy,
    Rule,
    Standing,
    StopReason,
)
from thornback.faults.kinds import Attribute
from thornback.faults.testing import lookalike

RANK: dict[str, Attribute] = {"origin": "rank", "phase": "rank"}
K = FaultKind
ALL = (*THROTTLED_RULES, *NETWORK_RULES, *CUDA_RULES)

strict = Classifier()
lenient = Classifier(user_rules=ALL)


def an_example(rule: Rule, type_name: str) -> tuple[ErrorRecord, dict[str, Attribute]]:
    """Return a failure for which all conditions of a rule hold, but for its predicate."""
    of_setup = "No matching distribution found for x" if rule.final and rule.when else ""
    facts: dict[str, Attribute] = {
        name: value[0] if isinstance(value, tuple) else value for name, value in rule.facts.items()
    }
    record = ErrorRecord(
        type_names=(type_name, "builtins.Exception", "builtins.BaseException"),
        message=" ".join((*rule.texts, of_setup)),
        attributes={"retry_after": 3.0} if rule.when and "when" in rule.name else {},
    )
    if rule.nested:
        record = ErrorRecord(type_names=("ray.exceptions.RayTaskError",), causes=(record,))
    origin = rule.origins[0] if rule.origins else Origin.DRIVER
    return record, {"origin": origin.value, **facts}


EXAMPLES = [
    (rule, str(name))
    for rule in (*ALL, *DEFAULT_RULES)
    for name in rule.types or ("builtins.Exception",)
]


@pytest.mark.parametrize(
    ("rule", "name"), EXAMPLES, ids=[f"{rule.name}-{name}" for rule, name in EXAMPLES]
)
def test_every_class_that_a_rule_names_is_decided_by_it(rule: Rule, name: str) -> None:
    """A rule that an earlier one hides is dead: it would mislead whoever reads the table."""
    record, facts = an_example(rule, name)
    fault = lenient.classify(record, facts)
    assert (fault.rule, fault.kind) == (rule.name, rule.kind)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (lookalike("my.HttpError", status_code=429), K.THROTTLED),
        (lookalike("my.HttpError", status_code=529), K.THROTTLED),
        (lookalike("my.HttpError", status_code=502), K.NETWORK),
        (lookalike("my.HttpError", status_code=522), K.NETWORK),
        (lookalike("my.HttpError", status_code=404), K.APPLICATION),
        (lookalike("aiohttp.client_exceptions.ClientResponseError", status=503), K.THROTTLED),
        (lookalike("aiohttp.client_exceptions.ClientResponseError", status=500), K.NETWORK),
        (lookalike("my.Error", status=503, code=503), K.APPLICATION),
        (lookalike("urllib.error.HTTPError", code=429), K.THROTTLED),
        (lookalike("urllib.error.HTTPError", code=504), K.NETWORK),
        (lookalike("gcsfs.retry.HttpError", code="503"), K.THROTTLED),
        (lookalike("gcsfs.retry.HttpError", code="500"), K.NETWORK),
        (SystemExit(429), K.APPLICATION),
        (
            lookalike("botocore.exceptions.ClientError", "An error occurred (SlowDown) when"),
            K.THROTTLED,
        ),
        (OSError(16, "Please reduce your request rate."), K.THROTTLED),
        (OSError("AWS Error SLOW_DOWN during PutObject operation"), K.THROTTLED),
        (OSError("AWS Error NETWORK_CONNECTION during HeadObject operation"), K.NETWORK),
        (ValueError("AWS Error NETWORK_CONNECTION"), K.APPLICATION),
        (lookalike("requests.exceptions.Timeout"), K.NETWORK),
        (lookalike("httpx2.TransportError"), K.NETWORK),
        (lookalike("httpx.UnsupportedProtocol"), K.APPLICATION),
        (lookalike("httpx.TransportError", "[SSL: CERTIFICATE_VERIFY_FAILED]"), K.APPLICATION),
        (lookalike("ssl.SSLCertVerificationError"), K.APPLICATION),
        (TimeoutError("The read operation timed out"), K.NETWORK),
        (OSError(110, "timed out"), K.NETWORK),
        (OSError(2, "no such file"), K.APPLICATION),
        (ConnectionResetError(), K.NETWORK),
        (lookalike("my.Busy", retry_after=3), K.THROTTLED),
        (lookalike("my.Busy", retry_after=0), K.APPLICATION),
        (lookalike("my.Busy", retry_after="soon"), K.APPLICATION),
        (lookalike("torch.OutOfMemoryError", "CUDA out of memory. Tried"), K.RESOURCE),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), K.RESOURCE),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), K.RESOURCE),
        (RuntimeError("CUDA error: device-side assert triggered"), K.APPLICATION),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), K.APPLICATION),
        (lookalike("torch.distributed.DistNetworkError", "recv failed"), K.NETWORK),
        (lookalike("torch.distributed.DistBackendError", "ncclRemoteError: A call"), K.NETWORK),
        (lookalike("torch.distributed.DistBackendError", "ncclInvalidUsage"), K.APPLICATION),
        (RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer"), K.NETWORK),
    ],
)
def test_errors_that_may_go_away(error: BaseException, kind: FaultKind) -> None:
    assert lenient.classify(error, RANK).kind is kind
    assert strict.classify(error, RANK).kind is K.APPLICATION


def named(module: str, *classes: str) -> list[BaseException]:
    return [lookalike(f"{module}.{name}", "x") for name in classes]


def answered(name: str, attribute: str, *values: Attribute) -> list[BaseException]:
    return [lookalike(name, "x", **{attribute: value}) for value in values]


def said(name: str, text: str) -> list[BaseException]:
    return [lookalike(name, text)]


AIOHTTP = "aiohttp.client_exceptions.ClientResponseError"
BACKEND = "torch.distributed.DistBackendError"

DECIDED: dict[str, tuple[FaultKind, list[BaseException]]] = {
    "throttled.status": (K.THROTTLED, answered("my.E", "status_code", 423, 425, 429, 503, 529)),
    "throttled.aiohttp_status": (K.THROTTLED, answered(AIOHTTP, "status", 429, 503, 529)),
    "throttled.code": (
        K.THROTTLED,
        [
            *answered("urllib.error.HTTPError", "code", 429, 503, 529),
            *answered("google.api_core.exceptions.GoogleAPICallError", "code", 429, 503),
            *answered("gcsfs.retry.HttpError", "code", 429, "429", "503"),
        ],
    ),
    "throttled.aws_code": (
        K.THROTTLED,
        answered(
            "botocore.exceptions.ClientError",
            "error_code",
            "BandwidthLimitExceeded",
            "EC2ThrottledException",
            "LimitExceededException",
            "OperationAborted",
            "ConditionalRequestConflict",
            "PriorRequestNotComplete",
            "ProvisionedThroughputExceededException",
            "RequestLimitExceeded",
            "RequestThrottled",
            "RequestThrottledException",
            "ServiceUnavailable",
            "SlowDown",
            "ThrottledException",
            "Throttling",
            "ThrottlingException",
            "TooManyRequestsException",
            "TransactionInProgressException",
        ),
    ),
    "throttled.no_quota": (
        K.APPLICATION,
        [
            lookalike("openai.RateLimitError", "x", code="insufficient_quota", status_code=429),
            lookalike("my.E", "x", code="billing_hard_limit_reached"),
        ],
    ),
    "throttled.grpc_too_large": (
        K.APPLICATION,
        [
            lookalike("grpc.RpcError", text, grpc_status="RESOURCE_EXHAUSTED")
            for text in (
                "Received message larger than max (8 vs. 4)",
                "CLIENT: Sent message larger than max (8 vs. 4)",
            )
        ],
    ),
    "throttled.grpc": (K.THROTTLED, answered("grpc.RpcError", "grpc_status", "RESOURCE_EXHAUSTED")),
    "throttled.locked": (
        K.THROTTLED,
        [
            *said("sqlite3.OperationalError", "database is locked"),
            *said("sqlite3.OperationalError", "database table is locked: t"),
        ],
    ),
    "throttled.text_boto": (
        K.THROTTLED,
        [Exception("An error occurred (SlowDown) when calling the PutObject operation")],
    ),
    "throttled.text_s3fs": (K.THROTTLED, [OSError(16, "Please reduce your request rate.")]),
    "throttled.text_arrow": (K.THROTTLED, [OSError("AWS Error SLOW_DOWN during PutObject")]),
    "throttled.text_arrow_busy": (
        K.THROTTLED,
        [OSError("AWS Error SERVICE_UNAVAILABLE during HeadObject operation")],
    ),
    "throttled.text_arrow_throttling": (
        K.THROTTLED,
        [OSError("AWS Error THROTTLING during ListObjectsV2 operation: no")],
    ),
    "throttled.text_arrow_aborted": (
        K.THROTTLED,
        [OSError("AWS Error UNKNOWN (HTTP status 409): ExceptionName: OperationAborted")],
    ),
    "throttled.names": (
        K.THROTTLED,
        [*named("openai", "RateLimitError"), *named("anthropic", "RateLimitError")],
    ),
    "throttled.says_when": (
        K.THROTTLED,
        [*answered("my.E", "retry_after", 1, 0.5), *answered("my.E", "retry_after_s", 1, 2.5)],
    ),
    "network.certificate": (
        K.APPLICATION,
        named("ssl", "SSLCertVerificationError"),
    ),
    "network.certificate_text": (
        K.APPLICATION,
        [OSError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed")],
    ),
    "network.certificate_required": (
        K.APPLICATION,
        [OSError(1, "[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] tlsv13 alert")],
    ),
    "network.certificate_bad": (
        K.APPLICATION,
        [OSError(1, "[SSL: SSLV3_ALERT_BAD_CERTIFICATE] sslv3 alert bad certificate")],
    ),
    "network.certificate_unknown": (
        K.APPLICATION,
        [OSError(1, "[SSL: TLSV1_ALERT_UNKNOWN_CA] tlsv1 alert unknown ca")],
    ),
    "network.useless": (
        K.APPLICATION,
        [
            *named("huggingface_hub.errors", "OfflineModeIsEnabled"),
            *named("httpx", "LocalProtocolError", "UnsupportedProtocol"),
            *named("httpx2", "LocalProtocolError", "UnsupportedProtocol"),
        ],
    ),
    "network.status": (
        K.NETWORK,
        answered("my.E", "status_code", 408, 500, 502, 504, 520, 521, 522, 523, 524),
    ),
    "network.aiohttp_status": (K.NETWORK, answered(AIOHTTP, "status", 408, 500, 502, 504, 522)),
    "network.code": (
        K.NETWORK,
        [
            *answered("urllib.error.HTTPError", "code", 500, 502),
            *answered("google.api_core.exceptions.GoogleAPICallError", "code", 500, 504),
            *answered("gcsfs.retry.HttpError", "code", "500", 502),
        ],
    ),
    "network.aws_code": (
        K.NETWORK,
        answered(
            "botocore.exceptions.ClientError",
            "error_code",
            "InternalError",
            "InternalFailure",
            "RequestTimeout",
            "RequestTimeoutException",
        ),
    ),
    "network.grpc": (
        K.NETWORK,
        answered(
            "grpc.RpcError",
            "grpc_status",
            *("UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "INTERNAL"),
        ),
    ),
    "network.retries": (
        K.NETWORK,
        said("urllib3.exceptions.MaxRetryError", "ResponseError('too many 502 error responses')"),
    ),
    "network.aws_credentials": (
        K.NETWORK,
        named(
            "botocore.exceptions",
            "CredentialRetrievalError",
            "MetadataRetrievalError",
            "NoCredentialsError",
        ),
    ),
    "network.text_arrow_failed": (
        K.NETWORK,
        [OSError("AWS Error INTERNAL_FAILURE during ListObjectsV2 operation: no")],
    ),
    "network.names": (
        K.NETWORK,
        [
            TimeoutError("x"),
            ConnectionError("x"),
            BrokenPipeError("x"),
            ConnectionResetError("x"),
            *named("socket", "gaierror"),
            *named("ssl", "SSLError"),
            SSLEOFError(8, "unexpected EOF"),
            SSLZeroReturnError(6, "closed"),
            *named("urllib3.exceptions", "SSLError"),
            *named("google.api_core.exceptions", "Aborted"),
            *named("http.client", "IncompleteRead"),
            *named(
                "requests.exceptions",
                "ConnectionError",
                "Timeout",
                "ChunkedEncodingError",
                "RetryError",
            ),
            *named("urllib3.exceptions", "ProtocolError", "ProxyError", "TimeoutError"),
            *named("httpx", "TransportError"),
            *named("httpx2", "TransportError"),
            *named("httpcore", "NetworkError", "RemoteProtocolError", "TimeoutException"),
            *named("httpcore2", "NetworkError", "RemoteProtocolError", "TimeoutException"),
            *named("aiohttp.client_exceptions", "ClientConnectionError", "ClientPayloadError"),
            *named(
                "botocore.exceptions",
                "ConnectionError",
                "HTTPClientError",
                "IncompleteReadError",
            ),
            *named("boto3.exceptions", "RetriesExceededError"),
            *named("s3transfer.exceptions", "RetriesExceededError"),
            *named("fsspec.exceptions", "FSTimeoutError"),
            *named("gcsfs.retry", "ChecksumError"),
            *named("google.auth.exceptions", "TransportError"),
            *named("google.api_core.exceptions", "RetryError"),
            *named(
                "azure.core.exceptions",
                "ServiceRequestError",
                "ServiceResponseError",
                "IncompleteReadError",
            ),
            *named("huggingface_hub.errors", "InferenceTimeoutError", "XetDownloadError"),
            *named("openai", "APIConnectionError"),
            *named("anthropic", "APIConnectionError"),
        ],
    ),
    "network.errno": (
        K.NETWORK,
        [
            # From a library that makes its own class: Python's would be a ConnectionError.
            *answered("OSError", "errno", errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE),
            *answered("OSError", "errno", errno.ECONNREFUSED, errno.ETIMEDOUT),
            *answered("OSError", "errno", errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN),
        ],
    ),
    "network.text_arrow": (
        K.NETWORK,
        [OSError("AWS Error NETWORK_CONNECTION during HeadObject")],
    ),
    "network.text_arrow_slow": (
        K.NETWORK,
        [OSError("AWS Error REQUEST_TIMEOUT during PutObject")],
    ),
    "cuda.out_of_memory": (
        K.RESOURCE,
        [
            *named("torch", "OutOfMemoryError"),
            *named("torch.cuda", "OutOfMemoryError"),
            *named("cupy.cuda.memory", "OutOfMemoryError"),
            *named("tensorflow.python.framework.errors_impl", "ResourceExhaustedError"),
        ],
    ),
    "cuda.out_of_memory_text": (K.RESOURCE, [RuntimeError("CUDA out of memory. Tried to")]),
    "cuda.out_of_memory_error": (K.RESOURCE, [RuntimeError("CUDA error: out of memory")]),
    **{
        f"cuda.out_of_memory_{name}": (K.RESOURCE, [RuntimeError(f"CUDA error: {text} when")])
        for name, text in (
            ("cublas", "CUBLAS_STATUS_ALLOC_FAILED"),
            ("cublas_start", "CUBLAS_STATUS_NOT_INITIALIZED"),
            ("cudnn", "CUDNN_STATUS_ALLOC_FAILED"),
            ("cudnn_start", "CUDNN_STATUS_NOT_INITIALIZED"),
        )
    },
    "nccl.plain_watchdog": (
        K.NETWORK,
        [RuntimeError("[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(Seq)")],
    ),
    "nccl.plain_watchdog_ended": (
        K.NETWORK,
        [RuntimeError("[PG 0 Rank 1] Process group watchdog thread terminated with exception: x")],
    ),
    "cuda.out_of_memory_jax": (
        K.RESOURCE,
        [RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8 bytes.")],
    ),
    "nccl.names": (
        K.NETWORK,
        named("torch.distributed", "DistNetworkError", "DistStoreError"),
    ),
    "nccl.plain_remote": (
        K.NETWORK,
        [RuntimeError("NCCL error in: x.cpp:1, remote process exited or there was a network")],
    ),
    "nccl.plain_aborted": (
        K.NETWORK,
        [RuntimeError("NCCL communicator was aborted on rank 3.")],
    ),
    "nccl.plain_gloo": (
        K.NETWORK,
        [RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.1]")],
    ),
}
"""Written down a second time, with texts as the libraries print them: by what they raise, failures
are found worth another try, and a name that is lost from a table is one that is not any more."""
DECIDED |= {
    rule: (K.RESOURCE, said("RuntimeError", f"CUDA error: {text} (x)"))
    for rule, text in (
        ("cuda.busy", "CUDA-capable device(s) is/are busy or unavailable"),
        ("cuda.all_busy", "all CUDA-capable devices are busy or unavailable"),
        ("cuda.none", "no CUDA-capable device is detected"),
        ("cuda.driver", "CUDA driver initialization failed, you might not have a CUDA gpu."),
        ("cuda.unknown", "CUDA unknown error - this may be due to an incorrectly set up"),
        ("cuda.fabric", "system not yet initialized"),
    )
}
DECIDED |= {
    f"throttled.retries_{n}": (
        K.THROTTLED,
        [
            lookalike(name, f"(Caused by ResponseError('too many {n} error responses'))")
            for name in ("urllib3.exceptions.MaxRetryError", "requests.exceptions.RetryError")
        ],
    )
    for n in (423, 425, 429, 503, 529)
}
DECIDED |= {
    f"throttled.text_arrow_{n}": (K.THROTTLED, [OSError(f"AWS Error UNKNOWN (HTTP status {n})")])
    for n in (423, 425, 429, 503, 529)
}
DECIDED |= {
    f"network.text_arrow_{n}": (K.NETWORK, [OSError(f"AWS Error UNKNOWN (HTTP status {n})")])
    for n in (408, 500, 502, 504, 520, 521, 522, 523, 524)
}
DECIDED |= {
    rule: (K.NETWORK, said(BACKEND, f"NCCL error in: x.cpp:1, {text}"))
    for rule, text in (
        ("nccl.remote", "ncclRemoteError: A call failed possibly due to a network error"),
        ("nccl.remote_text", "remote process exited or there was a network error"),
        ("nccl.system", "ncclSystemError: System call (e.g. socket, malloc) failed"),
        ("nccl.closed", "socketProgress: Connection closed by remote peer"),
        ("nccl.reset", "Connection reset by peer"),
        ("nccl.timed_out", "Connect to 10.0.0.1 failed : Connection timed out"),
        ("nccl.timeout", "Watchdog caught collective operation timeout: WorkNCCL(SeqNum=1)"),
        ("nccl.aborted", "NCCL communicator was aborted on rank 3."),
    )
}


@pytest.mark.parametrize("rule", DECIDED)
def test_what_the_libraries_raise(rule: str) -> None:
    kind, errors = DECIDED[rule]
    for error in errors:
        fault = lenient.classify(error, RANK)
        assert (fault.rule, fault.kind) == (rule, kind), f"{type(error)}: {error}"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("remote process exited, says a program of mine"),
        RuntimeError("NCCL error: unhandled cuda error"),
        RuntimeError("gloo/transport/tcp/pair.cc:1 unexpected size"),
        RuntimeError("the connection of two tables"),
        ValueError("CUDA out of memory"),
        ValueError("uncorrectable ECC error"),
        lookalike("sqlite3.OperationalError", "no such table: locked"),
        lookalike("my.E", "too many 503 error responses"),
        lookalike("urllib3.exceptions.MaxRetryError", "too many redirects"),
        lookalike("grpc.RpcError", "x", grpc_status="INVALID_ARGUMENT"),
        ValueError("(HTTP status 503)"),
        ValueError("NCCL communicator was aborted"),
        ValueError("please reduce your request rate"),
        ValueError("AWS Error SLOW_DOWN"),
        ValueError("AWS Error REQUEST_TIMEOUT"),
        RuntimeError("ncclRemoteError"),
        lookalike("my.E", "x", status=429),
        lookalike("my.E", "x", code=503, errno=errno.ECONNRESET),
    ],
)
def test_what_only_sounds_like_it(error: BaseException) -> None:
    assert lenient.classify(error, RANK).rule == "rank.raised"


def test_every_rule_has_examples() -> None:
    assert set(DECIDED) == {rule.name for rule in ALL}


def test_they_are_about_user_code_only() -> None:
    assert {rule.origins for rule in ALL} == {(Origin.RANK,)}
    assert lenient.classify(ConnectionResetError(), {"origin": "worker"}).kind is K.WORKER_CRASH


class Response:
    """As `requests` has it: anything with a status and headers."""

    def __init__(self, **headers: str) -> None:
        self.status_code = 429
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


@pytest.mark.parametrize(
    ("headers", "after"),
    [
        ({"Retry_After": "17"}, 17.0),
        ({"retry_after": "17"}, 17.0),
        ({"retry_after_ms": "1500", "Retry_After": "17"}, 1.5),
        (
            {
                "Retry_After": "Wed, 21 Oct 2026 07:28:30 GMT",
                "Date": "Wed, 21 Oct 2026 07:28:00 GMT",
            },
            30.0,
        ),
        (
            {
                "Retry_After": "Wed, 21 Oct 2026 07:27:00 GMT",
                "Date": "Wed, 21 Oct 2026 07:28:00 GMT",
            },
            0.0,
        ),
        ({"Retry_After": "Wed, 21 Oct 2026 07:28:30 GMT"}, None),
        ({"Retry_After": "tomorrow", "Date": "today"}, None),
        ({"retry_after_ms": "many"}, None),
        ({}, None),
    ],
)
def test_how_long_a_server_asks_to_wait(headers: dict[str, str], after: float | None) -> None:
    fault = lenient.classify(lookalike("my.HttpError", response=Response(**headers)), RANK)
    assert fault.kind is K.THROTTLED
    assert fault.facts.get("retry_after_s") == after


def test_retry_after_date_counts_from_when_it_was_observed() -> None:
    """For a server that does not tell its own time."""
    error = lookalike("my.E", response=Response(Retry_After="Wed, 21 Oct 2026 07:28:30 GMT"))
    at = 1_792_567_680.0  # 07:28:00 of that day
    fault = lenient.classify(error, {**RANK, "observed_at": at})
    assert fault.facts["retry_after_s"] == 30.0
    assert "observed_at" not in fault.facts
    assert lenient.classify(error, {**RANK, "observed_at": at + 99}).facts["retry_after_s"] == 0.0
    dated = lookalike("my.E", response=Response(Retry_After="17"))
    assert lenient.classify(dated, {**RANK, "observed_at": at}).facts["retry_after_s"] == 17.0
    odd = lookalike("my.E", status_code=429, retry_after="sometime GMT")
    assert "retry_after_s" not in lenient.classify(odd, {**RANK, "observed_at": at}).facts


@pytest.mark.parametrize(
    "error",
    [
        lookalike("ssl.SSLCertVerificationError"),
        lookalike("httpx.UnsupportedProtocol"),
        lookalike("openai.RateLimitError", "x", code="insufficient_quota", status_code=429),
    ],
)
def test_final_errors_are_not_retried_even_with_retries(error: BaseException) -> None:
    fault = lenient.classify(error, RANK)
    assert fault.kind is K.APPLICATION
    verdict = RetryPolicy(retries=5, max_retries="unbounded").decide(
        fault, (), Standing.UNDECIDED, 0.5
    )
    assert verdict.stop is StopReason.FINAL


def test_the_answer_may_be_the_error_itself() -> None:
    headers = Message()
    headers["Retry-After"] = "5"
    error = lookalike("urllib.error.HTTPError", code=429, headers=headers)
    assert lenient.classify(error, RANK).facts["retry_after_s"] == 5.0


def test_what_botocore_has() -> None:
    answer = {
        "Error": {"Code": "SlowDown"},
        "ResponseMetadata": {"HTTPStatusCode": 503, "HTTPHeaders": {"retry-after": "2"}},
    }
    fault = lenient.classify(lookalike("botocore.ClientError", response=answer), RANK)
    assert (fault.kind, fault.facts["error_code"]) == (K.THROTTLED, "SlowDown")
    assert (fault.facts["status_code"], fault.facts["retry_after_s"]) == (503, 2.0)
    slow = {"Error": {"Code": "RequestTimeout"}}
    assert lenient.classify(lookalike("b.ClientError", response=slow), RANK).kind is K.NETWORK
    for odd in ({}, {"Error": None}, {"ResponseMetadata": {"HTTPHeaders": 7}}):
        error = lookalike("b.ClientError", response=odd)
        assert lenient.classify(error, RANK).kind is K.APPLICATION


@pytest.mark.parametrize("said", ["Wed, 21 Oct 2026 07:28:00 GMT", "-1", "nan", "inf", ""])
def test_a_retry_after_that_is_no_number_of_seconds(said: str) -> None:
    fault = lenient.classify(lookalike("my.E", status_code=429, retry_after=said), RANK)
    assert fault.kind is K.THROTTLED
    assert "retry_after_s" not in fault.facts


def test_a_connection_reset_is_the_users_own_without_an_origin() -> None:
    assert strict.classify(ConnectionResetError()).kind is K.APPLICATION
