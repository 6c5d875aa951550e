"""An S3 server for tests, in any weather: moto over real HTTP, so that boto3, Arrow and child processes reach it."""

from __future__ import annotations

import contextlib
import http.client
import random
import socket
import struct
import threading
import urllib.request
from collections import Counter, deque
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import pytest
from moto.server import ThreadedMotoServer

from scanner.storage import s3_client

BUCKET = "archive"

_OTHER_SETTINGS = ("AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_CA_BUNDLE")


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """URL of a server on a free port of the loopback interface."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


@contextlib.contextmanager
def empty_bucket(endpoint: str, patch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A boto3 client of the server, emptied, with one bucket, BUCKET; the environment points there."""
    use_endpoint(patch, endpoint)
    reset = urllib.request.Request(f"{endpoint}/moto-api/reset", method="POST")
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(reset, timeout=10).close()
    client = s3_client()
    client.create_bucket(Bucket=BUCKET)
    try:
        yield client
    finally:
        s3_client.cache_clear()


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """URL of one server for the whole session."""
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture
def s3(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A boto3 client of an otherwise empty server with one bucket, BUCKET.

    The environment points there, so scans, Arrow and processes started by the test (Ray's workers too) do.
    """
    with empty_bucket(s3_endpoint, monkeypatch) as client:
        yield client


def use_endpoint(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Point every S3 client made from here on, in this process and its children, at url."""
    for name in _OTHER_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    s3_client.cache_clear()


class Storm:
    """Bad weather for the coming requests of any kind: the same seed spoils the first, second, ... in the same way.

    A third of them is answered well. One request fails at most MOST_IN_A_ROW times in a row: fewer than any client
    tries again, so that a storm delays a scan, and changes nothing.
    """

    FAULTS = ("503 SlowDown", "500 InternalError", "drop", "reset", "truncate", "slow", "", "", "")
    MOST_IN_A_ROW = 3

    def __init__(self, seed: int, requests: int) -> None:
        rng = random.Random(seed)
        self._faults = deque(rng.choice(self.FAULTS) for _ in range(requests))
        self._in_a_row: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()

    def next(self, method: str, path: str) -> str:
        """What happens to this request; "" once the storm is over."""
        with self._lock:
            fault = self._faults.popleft() if self._faults else ""
            if self._in_a_row[method, path] >= self.MOST_IN_A_ROW:
                fault = ""
            self._in_a_row[method, path] = self._in_a_row[method, path] + 1 if fault else 0
            return fault


class Proxy:
    """Stands before the S3 server, notes every request, and spoils the next GETs of objects as told.

    faults: what happens to each coming GET of an object, in turn; an HTTP status with its S3 error code
    ("503 SlowDown", "403 AccessDenied"), "drop" (RST before any answer), "slow" (by SLOW_S), or after half of
    the body "reset" (RST), "truncate" (FIN), or "stall" (until `go_on` is set).
    listing_fault: the same for every listing, while it is set; only an HTTP status.
    head_fault: the same for every HEAD.
    refusal: an HTTP status with its error code for every request of any kind, while it is set.
    storm: spoils what none of these does.
    requests: (method, path) of all so far. stalled: set when a GET has begun to stall.
    """

    SLOW_S = 0.5

    def __init__(self, endpoint: str) -> None:
        self.requests: list[tuple[str, str]] = []
        self.faults: deque[str] = deque()
        self.listing_fault = self.head_fault = self.refusal = ""
        self.storm = Storm(0, 0)
        self.stalled = threading.Event()
        self.go_on = threading.Event()
        proxy, upstream = self, urlsplit(endpoint).netloc

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def forward(self) -> None:
                proxy.requests.append((self.command, self.path))
                fault = proxy.next_fault(self.command, self.path)
                length = int(self.headers.get("Content-Length") or 0)
                data = self.rfile.read(length)
                if fault == "drop":
                    self.reset()
                    return
                if fault == "slow":
                    proxy.go_on.wait(proxy.SLOW_S)
                    fault = ""
                connection = http.client.HTTPConnection(upstream, timeout=30)
                connection.request(self.command, self.path, data, dict(self.headers))
                answer = connection.getresponse()
                body = answer.read()
                connection.close()
                if fault[:3].isdigit():
                    status, _, code = fault.partition(" ")
                    body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
                    self.send_response(int(status))
                    self.send_header("Content-Length", str(len(body)))
                    fault = ""
                else:
                    self.send_response_only(answer.status)
                    for name, value in answer.getheaders():
                        if name.lower() != "connection":
                            self.send_header(name, value)
                self.end_headers()
                if self.command == "HEAD":
                    return
                self.wfile.write(body[: len(body) // 2] if fault else body)
                if fault == "stall":
                    proxy.stalled.set()
                    proxy.go_on.wait(60)
                    self.wfile.write(body[len(body) // 2 :])
                elif fault == "reset":
                    self.reset()
                elif fault:
                    self.close_connection = True

            def reset(self) -> None:
                # Closing a socket that lingers for 0 seconds sends RST.
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = forward  # noqa: N815  http.server's names

            def handle(self) -> None:
                with contextlib.suppress(ConnectionError):  # a killed client is part of the tests
                    super().handle()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def next_fault(self, method: str, path: str) -> str:
        """What happens to this request."""
        if self.refusal:
            return self.refusal
        if "list-type" in path and self.listing_fault:
            return self.listing_fault
        if method == "HEAD" and self.head_fault:
            return self.head_fault
        if method == "GET" and "list-type" not in path and self.faults:
            return self.faults.popleft()
        return self.storm.next(method, path)

    def gets(self, key: str) -> int:
        """How often the object was asked for."""
        return sum(method == "GET" and path.split("?")[0].endswith(key) for method, path in self.requests)

    def close(self) -> None:
        self.go_on.set()
        self._server.shutdown()
        self._server.server_close()


@contextlib.contextmanager
def behind_proxy(endpoint: str, patch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A Proxy before the server; the environment points at it."""
    proxy = Proxy(endpoint)
    use_endpoint(patch, proxy.url)
    try:
        yield proxy
    finally:
        proxy.close()


@pytest.fixture
def proxy(s3: Any, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The S3 server of `s3`, reached through a Proxy; `s3` itself still goes there directly."""
    with behind_proxy(s3_endpoint, monkeypatch) as proxy:
        yield proxy


def put(client, key: str, data: bytes) -> tuple[str, str, int]:
    """An object, as (uri, content tag, size)."""
    tag = client.put_object(Bucket=BUCKET, Key=key, Body=data)["ETag"].strip('"')
    return f"s3://{BUCKET}/{key}", tag, len(data)
