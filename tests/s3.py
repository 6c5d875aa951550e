"""An S3 server for tests: moto over real HTTP, so that boto3, Arrow and child processes all reach it."""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
import threading
import urllib.request
from collections import deque
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import pytest
from moto.server import ThreadedMotoServer

from scanner.storage import s3_client

BUCKET = "archive"

_OTHER_SETTINGS = ("AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_CA_BUNDLE")


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """URL of one server for the whole session, on a free port of the loopback interface."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A boto3 client of an otherwise empty server with one bucket, BUCKET.

    The environment points there, so scans, Arrow and processes started by the test (Ray's workers too) do.
    """
    use_endpoint(monkeypatch, s3_endpoint)
    reset = urllib.request.Request(f"{s3_endpoint}/moto-api/reset", method="POST")
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(reset, timeout=10).close()
    client = s3_client()
    client.create_bucket(Bucket=BUCKET)
    yield client
    s3_client.cache_clear()


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


class Proxy:
    """Stands before the S3 server, notes every request, and spoils the next GETs of objects as told.

    faults: what happens to each coming GET of an object, in turn; an HTTP status with its S3 error code
    ("503 SlowDown", "403 AccessDenied"), or after half of the body "reset" (RST), "truncate" (FIN), or
    "stall" (until `go_on` is set).
    listing_fault: the same for every listing, while it is set; only an HTTP status.
    requests: (method, path) of all so far. stalled: set when a GET has begun to stall.
    """

    def __init__(self, endpoint: str) -> None:
        self.requests: list[tuple[str, str]] = []
        self.faults: deque[str] = deque()
        self.listing_fault = ""
        self.stalled = threading.Event()
        self.go_on = threading.Event()
        proxy, upstream = self, urlsplit(endpoint).netloc

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def forward(self) -> None:
                proxy.requests.append((self.command, self.path))
                fault = ""
                if "list-type" in self.path:
                    fault = proxy.listing_fault
                elif self.command == "GET" and proxy.faults:
                    fault = proxy.faults.popleft()
                length = int(self.headers.get("Content-Length") or 0)
                data = self.rfile.read(length)
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
                elif fault:
                    if fault == "reset":  # closing a socket that lingers for 0 seconds sends RST
                        linger = struct.pack("ii", 1, 0)
                        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
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

    def gets(self, key: str) -> int:
        """How often the object was asked for."""
        return sum(method == "GET" and path.split("?")[0].endswith(key) for method, path in self.requests)

    def close(self) -> None:
        self.go_on.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def proxy(s3: Any, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The S3 server of `s3`, reached through a Proxy; `s3` itself still goes there directly."""
    proxy = Proxy(s3_endpoint)
    use_endpoint(monkeypatch, proxy.url)
    yield proxy
    proxy.close()
