"""Raises the errors that people meet, with the real libraries, most of them against local servers.

    .venv/bin/python -m tests.integration.real_errors --write

writes them down as data, with the verdict that is expected of the classifier, as the table
`packages/faults/tests/real_errors.json`. Its tests, and the table in the README of faults
(`tools/real_errors.py --write`), come from there. A library that is not installed here keeps the
record that it has: install it in another environment to make a new one, and run there

    PYTHONPATH=.:packages/faults/src python -m tests.integration.real_errors --write

Long, since it is one table.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import functools
import importlib
import json
import mmap
import os
import re
import socket
import sqlite3
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from thornback.faults import (
    CUDA_RULES,
    NETWORK_RULES,
    THROTTLED_RULES,
    Classifier,
    ErrorRecord,
    Fault,
    FaultKind,
)

TABLE = Path(__file__).resolve().parents[2] / "packages" / "faults" / "tests" / "real_errors.json"
TIMEOUT_S = 20.0
K = FaultKind


class NotHere(Exception):
    """This error cannot be raised on this machine: a library or a permission is missing."""


class Case(NamedTuple):
    """One error, and what is expected of the classifier."""

    name: str
    error: str
    """What happens: for people."""
    library: str
    """The distribution that raises it; "python" for Python, "-" where only its texts are known."""
    sets: tuple[str, ...]
    """The opt-in rules it needs: "throttled", "network", "cuda"."""
    kind: FaultKind
    final: bool
    facts: dict[str, object]
    """Facts of the fault that others rely on."""
    run: Callable[[], object]
    """Raises the error, or returns it or its record."""


CASES: dict[str, Case] = {}


def case(
    library: str,
    error: str,
    kind: FaultKind,
    *sets: str,
    final: bool = False,
    **facts: object,
) -> Callable[[Callable[[], object]], Callable[[], object]]:
    """Add the function to the table."""

    def add(run: Callable[[], object]) -> Callable[[], object]:
        name = run.__name__
        assert name not in CASES, f"two cases are called {name}"
        CASES[name] = Case(name, error, library, sets, kind, final, facts, run)
        return run

    return add


def need(name: str) -> Any:
    """Return a module. NotHere: it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise NotHere(str(error)) from error


def version(library: str) -> str:
    """Return the name of a library with its version."""
    if library == "python":
        return f"Python {sys.version_info[0]}.{sys.version_info[1]}"
    if library == "-":
        return "text of its source"
    return f"{library} {metadata.version(library)}"


def judged(one: Case, record: ErrorRecord) -> Fault:
    """Return what the classifier makes of it, with the opt-in rules that the case names."""
    sets = {"throttled": THROTTLED_RULES, "network": NETWORK_RULES, "cuda": CUDA_RULES}
    return Classifier(user_rules=[rule for name in one.sets for rule in sets[name]]).classify(
        record
    )


def record_of(one: Case) -> ErrorRecord:
    """Raise the error and return its record. NotHere: it cannot be raised here."""
    try:
        found = one.run()
    except NotHere:
        raise
    except BaseException as error:  # noqa: BLE001 - raising anything is what a case is for
        found = error
    assert isinstance(found, BaseException | ErrorRecord), f"{one.name} has raised nothing"
    return ErrorRecord.of(found)


# --- servers -----------------------------------------------------------------------------------


@contextmanager
def answering(
    status: int, body: bytes = b"", *, dated: bool = True, **headers: str
) -> Iterator[str]:
    """Serve HTTP: one answer to everything. Yields the URL."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if dated:
                self.send_response(status)
            else:
                self.send_response_only(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_POST = do_PUT = do_HEAD = answer

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

        def date_time_string(self, timestamp: float | None = None) -> str:
            """Return a moment that stays the same, so that records do."""
            return "Wed, 21 Oct 2026 07:28:00 GMT"

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=functools.partial(server.serve_forever, 0.01))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join(TIMEOUT_S)
        server.server_close()


@contextmanager
def accepting(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """Serve TCP: do this with each connection. Yields the port."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.05)
    ended = threading.Event()

    def loop() -> None:
        while not ended.is_set():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            with connection:
                connection.settimeout(TIMEOUT_S)
                serve(connection)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        ended.set()
        thread.join(TIMEOUT_S)
        listener.close()


def hang_up(connection: socket.socket) -> None:
    """Read once, and close in good order."""
    connection.recv(65536)


def reset(connection: socket.socket) -> None:
    """Read once, and reset the connection."""
    connection.recv(65536)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@contextmanager
def self_signed() -> Iterator[str]:
    """Serve HTTPS with a certificate that nobody knows. Yields the URL."""
    with tempfile.TemporaryDirectory() as folder:
        key, certificate = f"{folder}/key.pem", f"{folder}/certificate.pem"
        command = ["openssl", "req", "-x509", "-nodes", "-newkey", "ec", "-days", "2"]
        command += ["-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", "/CN=localhost"]
        try:
            subprocess.run(
                [*command, "-keyout", key, "-out", certificate],
                check=True,
                capture_output=True,
                timeout=TIMEOUT_S,
            )
        except FileNotFoundError as error:
            raise NotHere("there is no openssl") from error
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)

        def serve(connection: socket.socket) -> None:
            try:
                context.wrap_socket(connection, server_side=True).close()
            except OSError:
                """That the client refuses is what this is for."""

        with accepting(serve) as port:
            yield f"https://127.0.0.1:{port}"


@functools.cache
def free_port() -> int:
    """Return a port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def in_child(code: str) -> ErrorRecord:
    """Run this in a process of its own, and return the record of what it raises."""
    program = "import json, sys\nfrom thornback.faults import ErrorRecord\ntry:\n"
    program += "".join(f"    {line}\n" for line in code.strip().splitlines())
    program += "except BaseException as error:\n"
    program += "    print(json.dumps(ErrorRecord.of(error).as_json()))\n"
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    if not done.stdout:
        raise NotHere(f"the child raised nothing: {done.stderr[-300:]}")
    return ErrorRecord.from_json(json.loads(done.stdout))


# --- HTTP --------------------------------------------------------------------------------------


def get(status: int, body: bytes = b"", *, dated: bool = True, **headers: str) -> object:
    requests = need("requests")
    with answering(status, body, dated=dated, **headers) as url:
        return requests.get(url, timeout=TIMEOUT_S).raise_for_status()


@case(
    "requests", "status 429, `Retry-After` in seconds", K.THROTTLED, "throttled", retry_after_s=17.0
)
def requests_429() -> object:
    return get(429, Retry_After="17")


@case(
    "requests",
    "status 503, `Retry-After` as a date, with a `Date`",
    K.THROTTLED,
    "throttled",
    retry_after_s=30.0,
)
def requests_503_date() -> object:
    return get(503, Retry_After="Wed, 21 Oct 2026 07:28:30 GMT")


@case("requests", "status 423 (locked)", K.THROTTLED, "throttled")
def requests_423() -> object:
    return get(423)


@case("requests", "status 425 (too early)", K.THROTTLED, "throttled")
def requests_425() -> object:
    return get(425)


@case("requests", "status 503, with `NETWORK_RULES` alone", K.NETWORK, "network")
def requests_503_network() -> object:
    return get(503)


@case("requests", "status 404", K.APPLICATION, "throttled", "network")
def requests_404() -> object:
    return get(404)


@case("requests", "status 503, without opt-in rules", K.APPLICATION)
def requests_503_strict() -> object:
    return get(503)


@case("requests", "TLS: unexpected EOF (`SSLEOFError`)", K.NETWORK, "network")
def requests_tls_eof() -> object:
    with accepting(hang_up) as port:
        return need("requests").get(f"https://127.0.0.1:{port}", timeout=TIMEOUT_S)


@case("requests", "TLS: certificate verification failed", K.APPLICATION, "network", final=True)
def requests_certificate() -> object:
    requests = need("requests")
    with self_signed() as url:
        return requests.get(url, timeout=TIMEOUT_S)


@case("requests", "connection reset", K.NETWORK, "network")
def requests_reset() -> object:
    with accepting(reset) as port:
        return need("requests").get(f"http://127.0.0.1:{port}", timeout=TIMEOUT_S)


def too_many(status: int, *, through_requests: bool) -> object:
    urllib3 = need("urllib3")
    retry = urllib3.Retry(total=1, status_forcelist=[status], backoff_factor=0)
    with answering(status) as url:
        if not through_requests:
            with urllib3.PoolManager() as pool:
                return pool.request("GET", url, retries=retry)
        session = need("requests").Session()
        session.mount("http://", need("requests.adapters").HTTPAdapter(max_retries=retry))
        with session:
            return session.get(url, timeout=TIMEOUT_S)


@case("urllib3", "`MaxRetryError`: too many 503", K.THROTTLED, "throttled")
def urllib3_too_many_503() -> object:
    return too_many(503, through_requests=False)


@case("urllib3", "`MaxRetryError`: too many 500", K.NETWORK, "network")
def urllib3_too_many_500() -> object:
    return too_many(500, through_requests=False)


@case("requests", "`RetryError`: too many 503", K.THROTTLED, "throttled")
def requests_too_many_503() -> object:
    return too_many(503, through_requests=True)


@case("urllib3", "TLS: unexpected EOF", K.NETWORK, "network")
def urllib3_tls_eof() -> object:
    urllib3 = need("urllib3")
    with accepting(hang_up) as port, urllib3.PoolManager() as pool:
        return pool.request("GET", f"https://127.0.0.1:{port}", retries=False)


@case("python", "`urllib.request`: TLS, unexpected EOF", K.NETWORK, "network")
def urllib_tls_eof() -> object:
    with accepting(hang_up) as port:
        return urllib.request.urlopen(f"https://127.0.0.1:{port}", timeout=TIMEOUT_S)


@case(
    "python",
    "`urllib.request`: certificate verification failed",
    K.APPLICATION,
    "network",
    final=True,
)
def urllib_certificate() -> object:
    with self_signed() as url:
        return urllib.request.urlopen(url, timeout=TIMEOUT_S)


@case("httpx", "status 503", K.THROTTLED, "throttled")
def httpx_503() -> object:
    httpx = need("httpx")
    with answering(503) as url:
        return httpx.get(url).raise_for_status()


@case("httpx", "TLS: unexpected EOF", K.NETWORK, "network")
def httpx_tls_eof() -> object:
    httpx = need("httpx")
    with accepting(hang_up) as port:
        return httpx.get(f"https://127.0.0.1:{port}")


@case("httpx", "TLS: certificate verification failed", K.APPLICATION, "network", final=True)
def httpx_certificate() -> object:
    httpx = need("httpx")
    with self_signed() as url:
        return httpx.get(url)


@case("httpx", "connection refused", K.NETWORK, "network")
def httpx_refused() -> object:
    return need("httpx").get(f"http://127.0.0.1:{free_port()}")


@case("huggingface-hub", "status 423 (locked)", K.THROTTLED, "throttled")
def huggingface_423() -> object:
    httpx, utils = need("httpx"), need("huggingface_hub.utils")
    with answering(423) as url:
        return utils.hf_raise_for_status(httpx.get(url))


@case(
    "aiohttp", "status 503, `Retry-After` in seconds", K.THROTTLED, "throttled", retry_after_s=7.0
)
def aiohttp_503() -> object:
    aiohttp = need("aiohttp")

    async def ask(url: str) -> None:
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            response.raise_for_status()

    with answering(503, Retry_After="7") as url:
        return asyncio.run(ask(url))


@case("aiohttp", "the server hangs up", K.NETWORK, "network")
def aiohttp_disconnected() -> object:
    aiohttp = need("aiohttp")

    async def ask(url: str) -> None:
        async with aiohttp.ClientSession() as session, session.get(url):
            """Nothing comes."""

    with accepting(hang_up) as port:
        return asyncio.run(ask(f"http://127.0.0.1:{port}"))


def ask_openai(code: str) -> object:
    openai = need("openai")
    body = json.dumps({"error": {"message": "no", "type": code, "code": code}}).encode()
    with answering(429, body, Content_Type="application/json") as url:
        client = openai.OpenAI(api_key="none", base_url=url, max_retries=0)
        return client.models.list()


@case(
    "openai", "status 429: `insufficient_quota`", K.APPLICATION, "throttled", "network", final=True
)
def openai_quota() -> object:
    return ask_openai("insufficient_quota")


@case("openai", "status 429: `rate_limit_exceeded`", K.THROTTLED, "throttled", "network")
def openai_rate() -> object:
    return ask_openai("rate_limit_exceeded")


# --- gRPC --------------------------------------------------------------------------------------


@contextmanager
def grpc_server(status: str, details: str = "no") -> Iterator[str]:
    """Serve gRPC: end every call with this status. Yields the address."""
    grpc = need("grpc")
    futures = need("concurrent.futures")
    ended = threading.Event()

    def answer(request: bytes, context: Any) -> bytes:
        if status == "DEADLINE_EXCEEDED":
            ended.wait(TIMEOUT_S)
        context.abort(grpc.StatusCode[status], details)
        raise AssertionError("abort has not raised")

    def service(self: object, details: object) -> Any:
        return grpc.unary_unary_rpc_method_handler(answer)

    handler = type("Handler", (grpc.GenericRpcHandler,), {"service": service})
    server = grpc.server(futures.ThreadPoolExecutor(2), handlers=[handler()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        ended.set()
        server.stop(0).wait(TIMEOUT_S)


def call(status: str, *, aio: bool, details: str = "no") -> object:
    grpc = need("grpc")
    timeout = 0.1 if status == "DEADLINE_EXCEEDED" else TIMEOUT_S

    async def ask(address: str) -> None:
        async with grpc.aio.insecure_channel(address) as channel:
            await channel.unary_unary("/a.B/C")(b"", timeout=timeout)

    if status == "UNREACHABLE":
        address = f"127.0.0.1:{free_port()}"
        if aio:
            return asyncio.run(ask(address))
        with grpc.insecure_channel(address) as channel:
            return channel.unary_unary("/a.B/C")(b"", timeout=timeout)
    with grpc_server(status, details) as address:
        if aio:
            return asyncio.run(ask(address))
        with grpc.insecure_channel(address) as channel:
            return channel.unary_unary("/a.B/C")(b"", timeout=timeout)


GRPC = (
    ("UNREACHABLE", "nobody listens: UNAVAILABLE", K.NETWORK),
    ("UNAVAILABLE", "UNAVAILABLE", K.NETWORK),
    ("RESOURCE_EXHAUSTED", "RESOURCE_EXHAUSTED", K.THROTTLED),
    ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED", K.NETWORK),
    ("ABORTED", "ABORTED", K.NETWORK),
    ("INTERNAL", "INTERNAL", K.NETWORK),
    ("INVALID_ARGUMENT", "INVALID_ARGUMENT", K.APPLICATION),
)
for _status, _error, _kind in GRPC:
    for _aio in (False, True):
        _run = functools.partial(call, _status, aio=_aio)
        _run.__name__ = f"grpc_{_status.lower()}{'_aio' if _aio else ''}"  # type: ignore[attr-defined]  # a partial takes any
        _where = "`grpc.aio`" if _aio else "`grpc`"
        case("grpcio", f"{_where}: {_error}", _kind, "throttled", "network")(_run)


@case(
    "grpcio",
    "`grpc`: RESOURCE_EXHAUSTED, for a message that is too large",
    K.APPLICATION,
    "throttled",
    "network",
    final=True,
)
def grpc_too_large() -> object:
    details = "Received message larger than max (8388608 vs. 4194304)"
    return call("RESOURCE_EXHAUSTED", aio=False, details=details)


# --- object stores -----------------------------------------------------------------------------


def s3_error(code: str) -> bytes:
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>no</Message>'
        "<RequestId>1</RequestId></Error>"
    ).encode()


def arrow(status: int, code: str = "", *, head: bool = False) -> object:
    need("pyarrow")
    fs = need("pyarrow.fs")
    with answering(status, s3_error(code) if code else b"", Content_Type="application/xml") as url:
        store = fs.S3FileSystem(
            access_key="a",
            secret_key="b",
            region="us-east-1",
            scheme="http",
            endpoint_override=url.removeprefix("http://"),
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=1),
        )
        if head:
            return store.get_file_info("bucket/key")
        return store.get_file_info(fs.FileSelector("bucket", recursive=True))


@case("pyarrow", "S3: status 503 without a code", K.THROTTLED, "throttled", "network")
def pyarrow_503() -> object:
    return arrow(503, head=True)


@case("pyarrow", "S3: `SlowDown`", K.THROTTLED, "throttled", "network")
def pyarrow_slow_down() -> object:
    return arrow(503, "SlowDown")


@case("pyarrow", "S3: `Throttling`", K.THROTTLED, "throttled", "network")
def pyarrow_throttling() -> object:
    return arrow(400, "Throttling")


@case("pyarrow", "S3: `InternalFailure`", K.NETWORK, "throttled", "network")
def pyarrow_internal_failure() -> object:
    return arrow(500, "InternalFailure")


@case("pyarrow", "S3: `InternalError`", K.NETWORK, "throttled", "network")
def pyarrow_internal_error() -> object:
    return arrow(500, "InternalError")


@case("pyarrow", "S3: `OperationAborted`", K.THROTTLED, "throttled", "network")
def pyarrow_aborted() -> object:
    return arrow(409, "OperationAborted")


@case("pyarrow", "S3: `AccessDenied`", K.APPLICATION, "throttled", "network")
def pyarrow_denied() -> object:
    return arrow(403, "AccessDenied")


def boto(status: int, code: str) -> object:
    session, config = need("botocore.session"), need("botocore.config")
    with answering(status, s3_error(code), Content_Type="application/xml") as url:
        client = session.Session().create_client(
            "s3",
            region_name="us-east-1",
            endpoint_url=url,
            aws_access_key_id="a",
            aws_secret_access_key="b",
            config=config.Config(
                retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}
            ),
        )
        return client.get_object(Bucket="bucket", Key="key")


@case("botocore", "S3: `SlowDown`", K.THROTTLED, "throttled", "network")
def botocore_slow_down() -> object:
    return boto(503, "SlowDown")


@case("botocore", "S3: `OperationAborted` (409)", K.THROTTLED, "throttled", "network")
def botocore_aborted() -> object:
    return boto(409, "OperationAborted")


@case("botocore", "S3: `InternalError`", K.NETWORK, "throttled", "network")
def botocore_internal() -> object:
    return boto(500, "InternalError")


@case("botocore", "S3: `NoSuchKey`", K.APPLICATION, "throttled", "network")
def botocore_no_key() -> object:
    return boto(404, "NoSuchKey")


def credentials(**environment: str) -> object:
    """Ask S3 for something, with credentials from where an instance or a container gets them."""
    need("botocore")
    settings = {
        "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
        "AWS_CONFIG_FILE": "/nonexistent",
        "AWS_METADATA_SERVICE_TIMEOUT": "1",
        "AWS_METADATA_SERVICE_NUM_ATTEMPTS": "1",
        **environment,
    }
    lines = [
        "import os",
        "for name in [n for n in os.environ if n.startswith('AWS_')]: del os.environ[name]",
        f"os.environ.update({settings!r})",
        "import botocore.session",
        "client = botocore.session.Session().create_client('s3', region_name='us-east-1')",
        "client.list_buckets()",
    ]
    return in_child("\n".join(lines))


@case(
    "botocore",
    "credentials: the metadata service of the instance does not answer",
    K.NETWORK,
    "network",
)
def botocore_no_credentials() -> object:
    return credentials(AWS_EC2_METADATA_SERVICE_ENDPOINT=f"http://127.0.0.1:{free_port()}")


@case("botocore", "credentials: the service of the container answers 500", K.NETWORK, "network")
def botocore_container_credentials() -> object:
    with answering(500) as url:
        return credentials(AWS_CONTAINER_CREDENTIALS_FULL_URI=f"{url}/credentials")


# --- the node, and child processes -------------------------------------------------------------


@case("python", "EIO: a disk is broken", K.RESOURCE)
def os_eio() -> object:
    with open("/proc/self/mem", "rb") as memory:
        return memory.read(1)


@case("python", "ENXIO: a device is gone", K.RESOURCE)
def os_enxio() -> object:
    with tempfile.TemporaryDirectory() as folder:
        os.mkfifo(f"{folder}/pipe")
        return os.open(f"{folder}/pipe", os.O_WRONLY | os.O_NONBLOCK)


@case("python", "ENOTCONN: a FUSE mount is dead", K.RESOURCE)
def os_enotconn() -> object:
    with socket.socket() as unconnected:
        return unconnected.getpeername()


@case("python", "ENOMEM: no kernel memory", K.RESOURCE)
def os_enomem() -> object:
    return mmap.mmap(-1, 1 << 61)


def failed(number: int) -> OSError:
    """Return what Python makes of a system call that fails so."""
    return OSError(number, os.strerror(number), "/data/part")


@case("python", "EROFS: a disk has become read-only", K.RESOURCE)
def os_erofs() -> object:
    return failed(errno.EROFS)


@case("python", "EREMOTEIO: a disk or network file system is broken", K.RESOURCE)
def os_eremoteio() -> object:
    return failed(errno.EREMOTEIO)


@case("python", "ENFILE: too many open files on the node", K.RESOURCE)
def os_enfile() -> object:
    return failed(errno.ENFILE)


@case("python", "ENOSPC: the disk is full", K.RESOURCE)
def os_enospc() -> object:
    with open("/dev/full", "wb", buffering=0) as full:
        return full.write(b"x")


@case("python", "EMFILE: too many open files", K.RESOURCE)
def os_emfile() -> object:
    code = "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))\nopen('/dev/null')"
    return in_child(code)


NO_PROCESSES = """
import os, resource, subprocess, threading, traceback
if os.getuid() == 0: os.setuid(65534)
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
"""
"""Root is not limited; nobody else may be allowed to read the standard library, so all of it is
imported before."""


@case("python", "EAGAIN of `os.fork`: no more processes", K.RESOURCE)
def os_fork() -> object:
    return in_child(f"{NO_PROCESSES}\nos.fork()")


@case("python", "EAGAIN of `subprocess`: no more processes", K.RESOURCE)
def subprocess_fork() -> object:
    return in_child(f"{NO_PROCESSES}\nsubprocess.run(['/bin/true'])")


@case("python", "`can't start new thread`", K.RESOURCE)
def no_thread() -> object:
    return in_child(f"{NO_PROCESSES}\nthreading.Thread(target=print).start()")


@case("python", "EAGAIN of a socket that does not block", K.APPLICATION)
def os_eagain() -> object:
    one, other = socket.socketpair()
    with one, other:
        one.setblocking(False)
        return one.recv(1)


@case("python", "EACCES: permission denied", K.APPLICATION)
def os_eacces() -> object:
    return failed(errno.EACCES)


@case("python", "`BrokenProcessPool`", K.WORKER_CRASH)
def process_pool() -> object:
    return in_child(
        "import multiprocessing, os\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "context = multiprocessing.get_context('fork')\n"
        "with ProcessPoolExecutor(1, mp_context=context) as pool:\n"
        "    pool.submit(os._exit, 1).result()"
    )


@case("python", "`CalledProcessError`: killed (-9)", K.WORKER_CRASH)
def program_killed() -> object:
    return subprocess.run(["/bin/sh", "-c", "kill -9 $$"], check=True)


@case("python", "`CalledProcessError`: exit code 137", K.WORKER_CRASH)
def program_137() -> object:
    return subprocess.run(["/bin/sh", "-c", "exit 137"], check=True)


@case("python", "`CalledProcessError`: exit code 1", K.APPLICATION)
def program_1() -> object:
    return subprocess.run(["/bin/sh", "-c", "exit 1"], check=True)


@case("python", "`subprocess.TimeoutExpired`", K.TIMEOUT)
def program_slow() -> object:
    return subprocess.run(["/bin/sleep", "9"], timeout=0.05, check=True)


@case("python", "sqlite: `database is locked`", K.THROTTLED, "throttled")
def sqlite_locked() -> object:
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/db"
        one, other = sqlite3.connect(path), sqlite3.connect(path, timeout=0)
        try:
            one.execute("begin exclusive")
            return other.execute("create table t (a)")
        finally:
            one.close()
            other.close()


@case("python", "a bug in an `except ConnectionResetError:` block", K.APPLICATION, "network")
def bug_in_handler() -> object:
    nothing: dict[str, int] = {}
    try:
        raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
    except ConnectionResetError:
        return nothing["retries"]


@case("python", "`raise RuntimeError(...) from` a `ConnectionResetError`", K.NETWORK, "network")
def raised_from() -> object:
    try:
        raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
    except ConnectionResetError as error:
        raise RuntimeError("no answer") from error


# --- GPUs --------------------------------------------------------------------------------------


def torch_error(text: str, cls: str = "AcceleratorError") -> Exception:
    """Return what PyTorch raises: by the names and texts of its source."""
    module = "torch.distributed" if cls.startswith("Dist") else "torch"
    bases: tuple[type[Exception], ...] = (RuntimeError,)
    if cls == "DistBackendError":
        bases = (type("DistError", bases, {"__module__": module}),)
    made: type[Exception] = type(cls, bases, {"__module__": module})
    return made(text)


@case(
    "-",
    "PyTorch: uncorrectable ECC error",
    K.RESOURCE,
    gpu_fault=True,
    gpu_context_lost=True,
)
def cuda_ecc() -> object:
    return torch_error("CUDA error: uncorrectable ECC error encountered")


@case(
    "-",
    "PyTorch: the GPU has fallen off the bus",
    K.RESOURCE,
    gpu_fault=True,
    gpu_context_lost=True,
)
def cuda_off_the_bus() -> object:
    return torch_error(
        "NVML: NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus.", "RuntimeError"
    )


@case(
    "-",
    "PyTorch: unspecified launch failure",
    K.APPLICATION,
    gpu_context_lost=True,
)
def cuda_launch_failure() -> object:
    return torch_error("CUDA error: unspecified launch failure")


@case("-", "PyTorch: illegal memory access", K.APPLICATION, gpu_context_lost=True)
def cuda_illegal_access() -> object:
    return torch_error("CUDA error: an illegal memory access was encountered")


@case("-", "PyTorch: cuBLAS cannot allocate", K.RESOURCE, "cuda")
def cublas_alloc() -> object:
    return torch_error(
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "RuntimeError",
    )


@case("-", "PyTorch: NCCL watchdog", K.NETWORK, "cuda")
def nccl_watchdog() -> object:
    return torch_error(
        "[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=1, "
        "OpType=BROADCAST, NumelIn=131072000, NumelOut=131072000, Timeout(ms)=600000) ran for "
        "600081 milliseconds before timing out.",
        "RuntimeError",
    )


@case("-", "PyTorch: NCCL watchdog, `DistBackendError`", K.NETWORK, "cuda")
def nccl_watchdog_dist() -> object:
    return torch_error(
        "[PG 0 Rank 1] Process group watchdog thread terminated with exception: [Rank 1] Watchdog "
        "caught collective operation timeout: WorkNCCL(SeqNum=1, OpType=ALLGATHER)",
        "DistBackendError",
    )


@case("-", "vLLM: `EngineDeadError`", K.WORKER_CRASH)
def vllm_dead() -> object:
    made = type("EngineDeadError", (Exception,), {"__module__": "vllm.v1.engine.exceptions"})
    text = "EngineCore encountered an issue. See stack trace (above) for the root cause."
    return made(text)


@case("-", "vLLM: the engine does not start", K.SETUP)
def vllm_unborn() -> object:
    return RuntimeError(
        "Engine core initialization failed. See root cause above. Failed core proc(s): {}"
    )


# --- Ray ---------------------------------------------------------------------------------------

RAY: Sequence[tuple[str, Sequence[object], str, FaultKind]] = (
    ("OutOfMemoryError", ("Task was killed due to the node running low on memory.",), "", K.OOM),
    ("WorkerCrashedError", (), "", K.WORKER_CRASH),
    ("NodeDiedError", ("Task failed due to node dying.",), "", K.NODE_LOST),
    ("ObjectLostError", ("00ff", None, "call"), "", K.OBJECT_LOST),
    ("OwnerDiedError", ("00ff", None, "call"), "", K.OBJECT_LOST),
    ("ActorDiedError", ("because its worker process has died.", 0), "", K.WORKER_CRASH),
    ("ActorDiedError", ("because its node has died.", 2), " with its node", K.NODE_LOST),
    ("ActorDiedError", ("because its node has died.", 3), " with a spot node", K.PREEMPTION),
    ("ActorUnavailableError", ("The actor is unavailable.", None), "", K.UNAVAILABLE),
    ("TaskCancelledError", (), "", K.INTERRUPTED),
)


def wrapped(name: str, arguments: Sequence[object], *, dual: bool) -> object:
    """Return what Ray raises where the task of an argument has failed."""
    exceptions = need("ray.exceptions")
    if name == "ActorDiedError":
        text, reason = arguments
        context = need("ray.core.generated.common_pb2").ActorDiedErrorContext(
            error_message=f"The actor is dead {text}",
            actor_id=bytes(16),
            class_name="Actor",
        )
        context.node_death_info.reason = reason
        arguments = (context,)
    cause = getattr(exceptions, name)(*arguments)
    cause.args = ()  # Ray pickles it; the context pickles only where a cluster runs.
    error = exceptions.RayTaskError("f", "Traceback\n", cause, "ray::f()", 1, "127.0.0.1")
    return error.as_instanceof_cause() if dual else error


for _name, _arguments, _note, _kind in RAY:
    for _dual in (False, True):
        _run = functools.partial(wrapped, _name, _arguments, dual=_dual)
        _run.__name__ = f"ray_{_name.lower()}{_note.replace(' ', '_')}{'_dual' if _dual else ''}"  # type: ignore[attr-defined]  # a partial takes any
        _how = "`as_instanceof_cause()`" if _dual else "`RayTaskError`"
        case("ray", f"{_how} of `{_name}`{_note}", _kind, secondhand=True)(_run)


@case("ray", "`RayTaskError` of a `ValueError`", K.APPLICATION)
def ray_task_error() -> object:
    exceptions = need("ray.exceptions")
    error = exceptions.RayTaskError("f", "Traceback\n", ValueError("x"), "ray::f()", 1, "127.0.0.1")
    return error.as_instanceof_cause()


@case("ray", "`AuthenticationError`", K.SYSTEM, final=True)
def ray_authentication() -> object:
    return need("ray.exceptions").AuthenticationError("Token authentication failed")


@case("ray", "`ObjectFreedError`", K.SYSTEM, final=True)
def ray_object_freed() -> object:
    return need("ray.exceptions").ObjectFreedError("00ff", None, "call")


PIP = (
    "Failed to install pip packages: Run cmd[9] failed with the following details.\n"
    "Command '['/tmp/ray/session/virtualenv/bin/python', '-m', 'pip', 'install', '-r', 'r.txt']' "
    "returned non-zero exit status 1.\nLast 50 lines of stdout:\n"
)


@case("ray", "`RuntimeEnvSetupError`: pip knows no such package", K.SETUP, final=True)
def ray_no_such_package() -> object:
    text = (
        "    ERROR: Could not find a version that satisfies the requirement no-such-thing==1 "
        "(from versions: none)\n    ERROR: No matching distribution found for no-such-thing==1\n"
    )
    return need("ray.exceptions").RuntimeEnvSetupError(PIP + text)


@case("ray", "`RuntimeEnvSetupError`: the package index cannot be reached", K.SETUP)
def ray_no_index() -> object:
    text = (
        "    WARNING: Retrying (Retry(total=0, connect=None, read=None, redirect=None, "
        "status=None)) after connection broken by 'NewConnectionError(...): Failed to establish "
        "a new connection: [Errno 111] Connection refused': /simple/requests/\n"
        "    ERROR: Could not find a version that satisfies the requirement requests "
        "(from versions: none)\n    ERROR: No matching distribution found for requests\n"
    )
    return need("ray.exceptions").RuntimeEnvSetupError(PIP + text)


# --- the table ---------------------------------------------------------------------------------


def steady(text: str) -> str:
    """Return the text without what differs from run to run."""
    text = re.sub(r"(127\.0\.0\.1(?:%3A|:))\d+", r"\g<1>8000", text)
    text = re.sub(r"port=\d+", "port=8000", text)
    text = re.sub(r"0x[0-9a-f]{6,}", "0x7f0000000000", text)
    text = re.sub(r"\d{4}-\d\d-\d\dT[\d:.+]+", "2026-10-21T07:28:00", text)
    text = re.sub(r"0\.049\d+", "0.05", text)
    return re.sub(r"/tmp/tmp\w+", "/tmp/folder", text)


def row(one: Case, record: ErrorRecord) -> dict[str, object]:
    """Return the line of the table."""
    return {
        "name": one.name,
        "error": one.error,
        "library": version(one.library),
        "sets": list(one.sets),
        "kind": one.kind.value,
        "final": one.final,
        "facts": one.facts,
        "record": json.loads(steady(json.dumps(record.__replace__(traceback="").as_json()))),
    }


def main() -> int:
    """Raise every error and print the verdicts that are not as expected; exit code 1: some are."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="write the table")
    options = parser.parse_args()
    known = json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.exists() else []
    old = {each["name"]: each for each in known}
    rows, wrong = [], []
    for one in CASES.values():
        try:
            record = record_of(one)
            fault = judged(one, record)
            if fault.kind is not one.kind:
                wrong.append(f"{one.name}: expected {one.kind}, but it is {fault}")
            rows.append(row(one, record))
        except NotHere as error:
            if one.name in old:
                rows.append(old[one.name])
            print(f"{one.name}: {'kept' if one.name in old else 'still missing'}: {error}")
    if options.write:
        lines = ",\n".join(json.dumps(each) for each in rows)
        TABLE.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    print("\n".join(wrong))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
