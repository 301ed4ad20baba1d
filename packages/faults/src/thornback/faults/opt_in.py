"""Rule sets that a user may ask for: errors of user code that come from outside, and may go away.

They are opt-in because only the user knows that trying again is harmless:
`Classifier(user_rules=(*THROTTLED_RULES, *NETWORK_RULES, *CUDA_RULES))`, in this order.

Sources, read for the names: requests 2.34, urllib3 2.8, httpx 0.28 and httpx2 2.16, aiohttp 3.14,
botocore 1.43 (its `retries/standard.py` for the codes), s3fs and gcsfs 2026, google-api-core 2.44,
azure-core 1.41, huggingface_hub 2.4, fsspec 2026.9, grpcio 1.85, openai 3.57, pyarrow 26.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping

from thornback.faults.kinds import Attribute, ErrorData, FaultKind, Origin
from thornback.faults.rules import Rule

PATIENCE = (423, 425, 429, 503, 529)
"""Statuses that ask for patience; 423: locked; 425: too early; 529: overloaded (Anthropic, and some
gateways)."""
SERVER_FAILED = (408, 500, 502, 503, 504, 520, 521, 522, 523, 524)
"""Statuses of a server, or of a gateway before it, that failed; 520 to 524: Cloudflare. 503 is in
both lists, so that `NETWORK_RULES` alone retry it."""
CODE_IS_STATUS = (
    "urllib.error.HTTPError",
    "google.api_core.exceptions.GoogleAPICallError",
    "gcsfs.retry.HttpError",
)
"""Classes whose `code` is the status of HTTP: elsewhere it may be anything."""
AIOHTTP = ("aiohttp.client_exceptions.ClientResponseError",)


def _rule(
    name: str,
    kind: FaultKind,
    why: str,
    *texts: str,
    types: tuple[str, ...] = (),
    final: bool = False,
    **facts: tuple[Attribute, ...],
) -> Rule:
    return Rule(
        name=name,
        kind=kind,
        origins=(Origin.RANK,),
        types=types,
        facts=facts,
        texts=texts,
        final=final,
        why=why,
    )


def _strings(numbers: tuple[int, ...]) -> tuple[Attribute, ...]:
    return (*numbers, *map(str, numbers))


def _names_a_time(error: ErrorData, known: Mapping[str, Attribute]) -> bool:
    """Return whether the exception itself says when to come back."""
    after = known.get("retry_after_s", known.get("retry_after"))
    return isinstance(after, int | float) and after > 0


T, N, BUG = FaultKind.THROTTLED, FaultKind.NETWORK, FaultKind.APPLICATION
BUSY = "the server asks for patience"
FAILED = "the server, or a gateway before it, failed"
LOST = "the connection failed"
REFUSED = "a certificate that is refused once is refused again"
RETRIES = ("urllib3.exceptions.MaxRetryError", "requests.exceptions.RetryError")
ARROW = ("builtins.OSError",)

THROTTLED_RULES = (
    # It has the status 429 as well.
    _rule(
        "throttled.no_quota",
        BUG,
        "the quota of the account is used up: waiting does not help",
        final=True,
        code=("insufficient_quota", "billing_hard_limit_reached"),
    ),
    _rule(
        "throttled.grpc_too_large",
        BUG,
        "the message exceeds the size limit of gRPC",
        "message larger than max",
        final=True,
        grpc_status=("RESOURCE_EXHAUSTED",),
    ),
    _rule("throttled.grpc", T, BUSY, grpc_status=("RESOURCE_EXHAUSTED",)),
    _rule("throttled.status", T, BUSY, status_code=PATIENCE),
    _rule("throttled.aiohttp_status", T, BUSY, types=AIOHTTP, status=PATIENCE),
    _rule("throttled.code", T, BUSY, types=CODE_IS_STATUS, code=_strings(PATIENCE)),
    _rule(
        "throttled.aws_code",
        T,
        "the store asks for patience",
        error_code=(
            "BandwidthLimitExceeded",
            "EC2ThrottledException",
            "LimitExceededException",
            "OperationAborted",  # S3: another operation on the same object is under way
            "ConditionalRequestConflict",
            "PriorRequestNotComplete",
            "ProvisionedThroughputExceededException",
            "RequestLimitExceeded",
            "RequestThrottled",
            "RequestThrottledException",
            "ServiceUnavailable",
            "SlowDown",
            "Throttling",
            "ThrottledException",
            "ThrottlingException",
            "TooManyRequestsException",
            "TransactionInProgressException",
        ),
    ),
    # By number: which status it was, only the text tells.
    *(
        _rule(f"throttled.retries_{n}", T, BUSY, f"too many {n} error responses", types=RETRIES)
        for n in PATIENCE
    ),
    _rule(
        "throttled.locked",
        T,
        "another connection is writing to the database",
        "is locked",
        types=("sqlite3.OperationalError",),
    ),
    # Texts, for where the answer is not to be had: what botocore, s3fs and Arrow make of it.
    *(
        _rule(f"throttled.text_{name}", T, "the store asks for patience", text, types=types)
        for name, text, types in (
            ("boto", "an error occurred (SlowDown)", ()),
            ("s3fs", "reduce your request rate", ARROW),
            ("arrow", "AWS Error SLOW_DOWN", ARROW),
            ("arrow_busy", "AWS Error SERVICE_UNAVAILABLE", ARROW),
            ("arrow_throttling", "AWS Error THROTTLING", ARROW),
            ("arrow_aborted", "ExceptionName: OperationAborted", ARROW),
            *((f"arrow_{n}", f"(HTTP status {n})", ARROW) for n in PATIENCE),
        )
    ),
    _rule("throttled.names", T, BUSY, types=("openai.RateLimitError", "anthropic.RateLimitError")),
    Rule(
        name="throttled.says_when",
        kind=T,
        origins=(Origin.RANK,),
        when=_names_a_time,
        why="the exception itself says when to come back (retry_after)",
    ),
)
"""A server asks for patience: by status (requests, httpx, aiohttp, urllib, huggingface_hub, Google,
Azure, gRPC), by code (botocore), by text, or by a `retry_after` on the exception."""

NETWORK_RULES = (
    _rule(
        "network.certificate",
        BUG,
        REFUSED,
        final=True,
        types=("ssl.SSLCertVerificationError",),
    ),
    *(
        _rule(f"network.certificate_{name}", BUG, REFUSED, text, final=True)
        for name, text in (
            ("text", "CERTIFICATE_VERIFY_FAILED"),
            # What a server says of ours.
            ("required", "ALERT_CERTIFICATE_REQUIRED"),
            ("bad", "ALERT_BAD_CERTIFICATE"),
            ("unknown", "ALERT_UNKNOWN_CA"),
        )
    ),
    _rule(
        "network.useless",
        BUG,
        "no connection was tried: it is the request that is wrong",
        final=True,
        types=(
            "huggingface_hub.errors.OfflineModeIsEnabled",
            "httpx.LocalProtocolError",
            "httpx.UnsupportedProtocol",
            "httpx2.LocalProtocolError",
            "httpx2.UnsupportedProtocol",
        ),
    ),
    _rule("network.status", N, FAILED, status_code=SERVER_FAILED),
    _rule("network.aiohttp_status", N, FAILED, types=AIOHTTP, status=SERVER_FAILED),
    _rule("network.code", N, FAILED, types=CODE_IS_STATUS, code=_strings(SERVER_FAILED)),
    _rule(
        "network.aws_code",
        N,
        FAILED,
        error_code=(
            "InternalError",
            "InternalFailure",
            "RequestTimeout",
            "RequestTimeoutException",
        ),
    ),
    _rule(
        "network.grpc",
        N,
        "the server of a call over gRPC failed, or cannot be reached",
        grpc_status=("UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "INTERNAL"),
    ),
    _rule("network.retries", N, FAILED, "too many 5", "error responses", types=RETRIES),
    _rule(
        "network.aws_credentials",
        N,
        "the credentials of an AWS instance or container could not be fetched",
        types=(
            "botocore.exceptions.CredentialRetrievalError",
            "botocore.exceptions.MetadataRetrievalError",
            "botocore.exceptions.NoCredentialsError",
        ),
    ),
    _rule(
        "network.names",
        N,
        LOST,
        types=(
            "builtins.ConnectionError",
            "builtins.TimeoutError",  # what `socket.timeout` is
            "socket.gaierror",
            "ssl.SSLError",
            "http.client.IncompleteRead",
            "requests.exceptions.ConnectionError",
            "requests.exceptions.Timeout",
            "requests.exceptions.ChunkedEncodingError",
            "requests.exceptions.RetryError",
            "urllib3.exceptions.ProtocolError",
            "urllib3.exceptions.ProxyError",
            "urllib3.exceptions.SSLError",
            "urllib3.exceptions.TimeoutError",
            "httpx.TransportError",
            "httpx2.TransportError",
            "httpcore.NetworkError",
            "httpcore.RemoteProtocolError",
            "httpcore.TimeoutException",
            "httpcore2.NetworkError",
            "httpcore2.RemoteProtocolError",
            "httpcore2.TimeoutException",
            "aiohttp.client_exceptions.ClientConnectionError",
            "aiohttp.client_exceptions.ClientPayloadError",
            "botocore.exceptions.ConnectionError",
            "botocore.exceptions.HTTPClientError",
            "botocore.exceptions.IncompleteReadError",
            "boto3.exceptions.RetriesExceededError",
            "s3transfer.exceptions.RetriesExceededError",
            "fsspec.exceptions.FSTimeoutError",
            "gcsfs.retry.ChecksumError",
            "google.auth.exceptions.TransportError",
            "google.api_core.exceptions.Aborted",
            "google.api_core.exceptions.RetryError",
            "azure.core.exceptions.ServiceRequestError",
            "azure.core.exceptions.ServiceResponseError",
            "azure.core.exceptions.IncompleteReadError",
            "huggingface_hub.errors.InferenceTimeoutError",
            "huggingface_hub.errors.XetDownloadError",
            "openai.APIConnectionError",
            "anthropic.APIConnectionError",
        ),
    ),
    _rule(
        "network.errno",
        N,
        LOST,
        types=("builtins.OSError",),
        errno=(
            errno.ECONNRESET,
            errno.ECONNABORTED,
            errno.ECONNREFUSED,
            errno.EPIPE,
            errno.ETIMEDOUT,
            errno.EHOSTUNREACH,
            errno.ENETUNREACH,
            errno.ENETDOWN,
        ),
    ),
    *(
        _rule(f"network.text_{name}", N, why, text, types=ARROW)
        for name, why, text in (
            ("arrow", LOST, "AWS Error NETWORK_CONNECTION"),
            ("arrow_slow", LOST, "AWS Error REQUEST_TIMEOUT"),
            ("arrow_failed", FAILED, "AWS Error INTERNAL_FAILURE"),
            *((f"arrow_{n}", FAILED, f"(HTTP status {n})") for n in SERVER_FAILED if n != 503),
        )
    ),
)
"""A connection failed, or a server did. Certificates, and requests that cannot be sent, are told
apart first: they are not tried again even with `retries`. `TimeoutError` is among them: sockets
raise it."""
