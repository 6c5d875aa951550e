"""The webhook against real local servers: signed, tried again, and never the scan's undoing."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from scanner import webhook
from scanner.webhook import SECRET_VARIABLE, SIGNATURE_HEADER, TIMESTAMP_HEADER, signature, tell_webhook

SECRET = "a secret"
RECORD = {"run_id": "run-1", "counts": {"ok": 3}, "videos": 3}
PATH = "/hooks/T0K3N?key=hidden"


class Receiver:
    """A server that answers with these statuses in turn, then 200; keeps what it was sent."""

    def __init__(self, *statuses: int, location: str = "") -> None:
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        waiting, receiver = list(statuses), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
                receiver.headers.append(dict(self.headers))
                self.send_response(waiting.pop(0) if waiting else 200)
                if location:
                    self.send_header("Location", location)
                self.end_headers()

            def do_GET(self) -> None:
                receiver.bodies.append(b"GET")
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}{PATH}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "BACKOFF_S", (0.01, 0.02))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv(SECRET_VARIABLE, SECRET)


@pytest.fixture
def receive() -> Iterator[Callable[..., Receiver]]:
    """receive(status, ...): a running Receiver."""
    running: list[Receiver] = []

    def start(*statuses: int, location: str = "") -> Receiver:
        running.append(Receiver(*statuses, location=location))
        return running[-1]

    yield start
    for receiver in running:
        receiver.close()


def test_the_record_arrives_and_its_signature_verifies(receive):
    receiver = receive()
    assert tell_webhook(receiver.url, RECORD)
    (body,), (headers,) = receiver.bodies, receiver.headers
    assert json.loads(body) == RECORD and headers["Content-Type"] == "application/json"
    expected = hmac.new(SECRET.encode(), headers[TIMESTAMP_HEADER].encode() + b"." + body, hashlib.sha256).hexdigest()
    assert headers[SIGNATURE_HEADER] == f"sha256={expected}"
    assert abs(time.time() - int(headers[TIMESTAMP_HEADER])) < 600


def test_the_snippet_in_the_documentation_accepts_what_is_sent_and_refuses_what_was_changed(receive):
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(.*?def is_genuine.*?)```", page, re.DOTALL)
    names: dict = {}
    exec(snippet, names)
    receiver = receive()
    tell_webhook(receiver.url, RECORD)
    (body,), (headers,) = receiver.bodies, receiver.headers
    assert names["is_genuine"](headers, body, SECRET.encode())
    assert not names["is_genuine"](headers, body + b" ", SECRET.encode())
    assert not names["is_genuine"](headers, body, b"another secret")
    old = str(int(time.time()) - 3600)
    replayed = headers | {TIMESTAMP_HEADER: old, SIGNATURE_HEADER: signature(SECRET.encode(), old, body)}
    assert not names["is_genuine"](replayed, body, SECRET.encode())
    assert not names["is_genuine"]({}, body, SECRET.encode())


def test_without_a_secret_nothing_is_signed(receive, monkeypatch):
    monkeypatch.delenv(SECRET_VARIABLE)
    receiver = receive()
    assert tell_webhook(receiver.url, RECORD)
    assert SIGNATURE_HEADER not in receiver.headers[0] and TIMESTAMP_HEADER not in receiver.headers[0]


def test_a_server_that_is_busy_for_a_while_is_told_in_the_end(receive, capsys):
    receiver = receive(503, 429, 500)
    assert tell_webhook(receiver.url, RECORD)
    assert len(receiver.bodies) == 4 and capsys.readouterr().err == ""


@pytest.mark.parametrize("status", [400, 403, 404, 410])
def test_a_server_that_refuses_is_asked_once(receive, capsys, status):
    receiver = receive(status)
    assert not tell_webhook(receiver.url, RECORD)
    assert len(receiver.bodies) == 1 and f"it answered {status}" in capsys.readouterr().err


def test_a_server_that_stays_busy_costs_a_warning(receive, capsys):
    receiver = receive(*[503] * 10_000)
    assert not tell_webhook(receiver.url, RECORD, patience_s=0.3)
    assert len(receiver.bodies) > 1 and "it answered 503" in capsys.readouterr().err


def test_after_an_interrupt_nobody_waits_long(receive, capsys, monkeypatch):
    monkeypatch.setattr(webhook, "HURRY_S", 0.1)
    receiver = receive(*[503] * 10_000)
    assert not tell_webhook(receiver.url, RECORD | {"interrupted": True})
    assert receiver.bodies and "it answered 503" in capsys.readouterr().err


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/x", "http://127.0.0.1:1/elsewhere"])
def test_a_redirect_is_not_followed(receive, capsys, location):
    receiver = receive(302, location=location)
    assert not tell_webhook(receiver.url, RECORD)
    assert len(receiver.bodies) == 1 and "it answered 302" in capsys.readouterr().err


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://127.0.0.1/x",
        "gopher://x",
        "nonsense",
        "",
        "http://",
        "http://[::1",
        "http://a b/",
        "http://127.0.0.1:1/ä",
    ],
)
def test_what_is_no_web_address_costs_a_warning(url, capsys):
    assert not tell_webhook(url, RECORD, patience_s=0.1)
    assert "could not be told" in capsys.readouterr().err


def test_nobody_there_and_a_server_that_never_answers_cost_a_warning(capsys, monkeypatch):
    monkeypatch.setattr(webhook, "TIMEOUT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as deaf:  # takes connections, and never says a word
        port = deaf.getsockname()[1]
        assert not tell_webhook(f"http://127.0.0.1:{port}{PATH}", RECORD, patience_s=0.5)
        assert "timed out" in capsys.readouterr().err
    assert not tell_webhook(f"http://127.0.0.1:{port}{PATH}", RECORD, patience_s=0.5)
    assert "refused" in capsys.readouterr().err


def test_neither_the_secret_nor_the_path_is_ever_shown(receive, capsys):
    receiver = receive(*[500] * 10_000)
    tell_webhook(receiver.url, RECORD, patience_s=0.1)
    with_password = receiver.url.replace("127.0.0.1", "user:pa55word@127.0.0.1")
    tell_webhook(with_password, RECORD, patience_s=0.1)
    shown = "".join(capsys.readouterr())
    assert "127.0.0.1" in shown
    assert not any(word in shown for word in (SECRET, "T0K3N", "hidden", "pa55word"))
