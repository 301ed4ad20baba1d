"""Rule sets that a user may ask for: errors of user code that come from outside, and may go away.

They are opt-in because only the user knows that trying again is harmless:
`Classifier(user_rules=(*THROTTLED_RULES, *NETWORK_RULES))`.
"""

from __future__ import annotations

import errno

from thornback.faults.kinds import FaultKind, Origin
from thornback.faults.rules import Rule

RANK = (Origin.RANK,)

THROTTLED_RULES = (
    Rule(
        name="throttled.status",
        kind=FaultKind.THROTTLED,
        origins=RANK,
        facts={"status_code": (429, 503)},
        why="the server asks for patience",
    ),
    Rule(
        name="throttled.aiohttp_status",
        kind=FaultKind.THROTTLED,
        origins=RANK,
        types=("aiohttp.client_exceptions.ClientResponseError",),
        facts={"status": (429, 503)},
        why="the server asks for patience",
    ),
    Rule(
        name="throttled.urllib_status",
        kind=FaultKind.THROTTLED,
        origins=RANK,
        types=("urllib.error.HTTPError", "google.api_core.exceptions.GoogleAPICallError"),
        facts={"code": (429, 503)},
        why="the server asks for patience",
    ),
    Rule(
        name="throttled.aws_code",
        kind=FaultKind.THROTTLED,
        origins=RANK,
        facts={
            "error_code": (
                "SlowDown",
                "Throttling",
                "ThrottlingException",
                "ThrottledException",
                "RequestLimitExceeded",
                "TooManyRequestsException",
                "ProvisionedThroughputExceededException",
                "ServiceUnavailable",
            )
        },
        why="the store asks for patience",
    ),
    # botocore's text, for records made where `response` was not looked at.
    Rule(
        name="throttled.slow_down",
        kind=FaultKind.THROTTLED,
        origins=RANK,
        texts=("an error occurred (SlowDown)",),
        why="the store asks for patience",
    ),
    Rule(
        name="throttled.names",
        kind=FaultKind.THROTTLED,
        origins=RANK,
        types=("openai.RateLimitError", "anthropic.RateLimitError"),
        why="the server asks for patience",
    ),
)

NETWORK_RULES = (
    Rule(
        name="network.certificate",
        kind=FaultKind.APPLICATION,
        origins=RANK,
        types=("ssl.SSLCertVerificationError", "requests.exceptions.SSLError"),
        why="a certificate that is refused once is refused again",
    ),
    Rule(
        name="network.status",
        kind=FaultKind.NETWORK,
        origins=RANK,
        facts={"status_code": (500, 502, 504)},
        why="the server, or a gateway before it, failed",
    ),
    Rule(
        name="network.names",
        kind=FaultKind.NETWORK,
        origins=RANK,
        types=(
            "builtins.ConnectionError",
            "socket.gaierror",
            "http.client.IncompleteRead",
            "requests.exceptions.ConnectionError",
            "requests.exceptions.Timeout",
            "requests.exceptions.ChunkedEncodingError",
            "urllib3.exceptions.ProtocolError",
            "urllib3.exceptions.TimeoutError",
            "httpx.TransportError",
            "httpcore.NetworkError",
            "httpcore.TimeoutException",
            "aiohttp.client_exceptions.ClientConnectionError",
            "aiohttp.client_exceptions.ClientPayloadError",
            "botocore.exceptions.EndpointConnectionError",
            "botocore.exceptions.ConnectionClosedError",
            "botocore.exceptions.HTTPClientError",
        ),
        why="the connection failed",
    ),
    Rule(
        name="network.errno",
        kind=FaultKind.NETWORK,
        origins=RANK,
        types=("builtins.OSError",),
        facts={
            "errno": (
                errno.ECONNRESET,
                errno.ECONNABORTED,
                errno.ECONNREFUSED,
                errno.ETIMEDOUT,
                errno.EHOSTUNREACH,
                errno.ENETUNREACH,
                errno.ENETDOWN,
            )
        },
        why="the connection failed",
    ),
)
