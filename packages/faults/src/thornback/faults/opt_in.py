"""Rule sets that a user may ask for: errors of user code that come from outside, and may go away.

They are opt-in because only the user knows that trying again is harmless:
`Classifier(user_rules=(*THROTTLED_RULES, *NETWORK_RULES, *CUDA_RULES))`, in this order.

Sources, read for the names: requests 2.34, urllib3 2.8, httpx 0.28 and httpx2 2.16, aiohttp 3.14,
botocore 1.43 (its `retries/standard.py` for the codes), s3fs and gcsfs 2026, google-api-core 2.44,
azure-core 1.41, huggingface_hub 2.4, fsspec 2026.9. PyTorch: `torch/csrc/Exceptions.cpp`.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping

from thornback.faults.kinds import Attribute, ErrorData, FaultKind, Origin
from thornback.faults.rules import Rule

PATIENCE = (429, 503, 529)
"""Statuses that ask for patience; 529: overloaded (Anthropic, and some gateways)."""
SERVER_FAILED = (408, 500, 502, 504, 520, 521, 522, 523, 524)
"""Statuses of a server, or of a gateway before it, that failed; 520 to 524: Cloudflare."""
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
    **facts: tuple[Attribute, ...],
) -> Rule:
    return Rule(
        name=name,
        kind=kind,
        origins=(Origin.RANK,),
        types=types,
        facts=facts,
        texts=texts,
        why=why,
    )


def _strings(numbers: tuple[int, ...]) -> tuple[Attribute, ...]:
    return (*numbers, *map(str, numbers))


def _names_a_time(error: ErrorData, known: Mapping[str, Attribute]) -> bool:
    """Return whether the exception itself says when to come back."""
    after = known.get("retry_after_s", known.get("retry_after"))
    return isinstance(after, int | float) and after > 0


T, N, R = FaultKind.THROTTLED, FaultKind.NETWORK, FaultKind.RESOURCE
BUSY = "the server asks for patience"
FAILED = "the server, or a gateway before it, failed"
LOST = "the connection failed"
REFUSED = "a certificate that is refused once is refused again"

THROTTLED_RULES = (
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
    # Texts, for where the answer is not to be had: what botocore, s3fs and Arrow make of it.
    *(
        _rule(f"throttled.text_{name}", T, "the store asks for patience", text, types=types)
        for name, text, types in (
            ("boto", "an error occurred (SlowDown)", ()),
            ("s3fs", "reduce your request rate", ("builtins.OSError",)),
            ("arrow", "AWS Error SLOW_DOWN", ("builtins.OSError",)),
            ("arrow_busy", "AWS Error SERVICE_UNAVAILABLE", ("builtins.OSError",)),
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
Azure), by code (botocore), by text, or by a `retry_after` on the exception."""

NETWORK_RULES = (
    _rule(
        "network.certificate",
        FaultKind.APPLICATION,
        REFUSED,
        types=("ssl.SSLCertVerificationError", "requests.exceptions.SSLError"),
    ),
    _rule("network.certificate_text", FaultKind.APPLICATION, REFUSED, "CERTIFICATE_VERIFY_FAILED"),
    _rule(
        "network.useless",
        FaultKind.APPLICATION,
        "no connection was tried: it is the request that is wrong",
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
        error_code=("InternalError", "RequestTimeout", "RequestTimeoutException"),
    ),
    _rule(
        "network.names",
        N,
        LOST,
        types=(
            "builtins.ConnectionError",
            "builtins.TimeoutError",  # what `socket.timeout` is
            "socket.gaierror",
            "ssl.SSLEOFError",
            "ssl.SSLZeroReturnError",
            "http.client.IncompleteRead",
            "requests.exceptions.ConnectionError",
            "requests.exceptions.Timeout",
            "requests.exceptions.ChunkedEncodingError",
            "requests.exceptions.RetryError",
            "urllib3.exceptions.ProtocolError",
            "urllib3.exceptions.ProxyError",
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
        _rule(f"network.text_{name}", N, LOST, text, types=("builtins.OSError",))
        for name, text in (
            ("arrow", "AWS Error NETWORK_CONNECTION"),
            ("arrow_slow", "AWS Error REQUEST_TIMEOUT"),
        )
    ),
)
"""A connection failed, or a server did. Certificates, and requests that cannot be sent, are told
apart first. `TimeoutError` is among them: sockets raise it."""

DIST = "torch.distributed.DistBackendError"
RUNTIME = "builtins.RuntimeError"
PEER = "another process of the collective is gone, or cannot be reached"
GPU = "the GPU, or its driver, is out of order: another machine may do"
FULL = "the memory of the GPU is full"

CUDA_RULES = (
    _rule(
        "cuda.out_of_memory",
        R,
        FULL,
        types=(
            "torch.OutOfMemoryError",
            "torch.cuda.OutOfMemoryError",  # until torch 2.4
            "cupy.cuda.memory.OutOfMemoryError",
            "tensorflow.python.framework.errors_impl.ResourceExhaustedError",
        ),
    ),
    *(
        _rule(f"cuda.out_of_memory_{name}", R, FULL, *texts, types=(RUNTIME,))
        for name, texts in (
            ("text", ("CUDA out of memory",)),
            ("error", ("CUDA error: out of memory",)),
            ("jax", ("RESOURCE_EXHAUSTED: Out of memory",)),
        )
    ),
    *(
        _rule(f"cuda.{name}", R, GPU, text, types=(RUNTIME,))
        for name, text in (
            ("ecc", "uncorrectable ECC error"),
            ("nvlink", "uncorrectable NVLink error"),
            ("off_the_bus", "fallen off the bus"),
            ("lost", "GPU is lost"),
            ("busy", "CUDA-capable device(s) is/are busy or unavailable"),
            ("all_busy", "CUDA-capable devices are busy or unavailable"),
            ("none", "no CUDA-capable device is detected"),
            ("driver", "CUDA driver initialization failed"),
            ("unknown", "CUDA unknown error"),
            ("hardware", "hardware stack error"),
            ("fabric", "CUDA error: system not yet initialized"),
        )
    ),
    _rule(
        "nccl.names",
        N,
        PEER,
        types=("torch.distributed.DistNetworkError", "torch.distributed.DistStoreError"),
    ),
    *(
        _rule(f"nccl.{name}", N, PEER, text, types=(DIST,))
        for name, text in (
            ("remote", "ncclRemoteError"),
            ("remote_text", "remote process exited"),
            ("system", "ncclSystemError"),
            ("closed", "Connection closed by"),
            ("reset", "Connection reset by"),
            ("timed_out", "timed out"),
            ("timeout", "timeout"),
            ("aborted", "communicator was aborted"),
        )
    ),
    *(
        _rule(f"nccl.plain_{name}", N, PEER, *texts, types=(RUNTIME,))
        for name, texts in (
            ("remote", ("NCCL error", "remote process exited")),
            ("aborted", ("NCCL communicator was aborted",)),
            ("gloo", ("gloo/transport/", "connection")),
        )
    ),
)
"""A GPU is full or broken (RESOURCE: another machine), or a peer of a collective is gone (NETWORK):
by the names and texts of PyTorch, CuPy, JAX and TensorFlow. Asserts and illegal accesses on the
device, and wrong usage of NCCL, stay what they are: bugs."""
