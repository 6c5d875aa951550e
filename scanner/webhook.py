"""Telling a webhook how a scan ended: signed, retried for a bounded time, and never the scan's undoing."""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import os
import random
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from scanner.uris import redacted

SECRET_VARIABLE = "DEEPSWEEP_WEBHOOK_SECRET"
SIGNATURE_HEADER, TIMESTAMP_HEADER = "X-Deepsweep-Signature", "X-Deepsweep-Timestamp"
TIMEOUT_S = 10.0  # of one attempt, for each wait on the network
PATIENCE_S = 120.0  # for all attempts: whoever waits for the scan's exit code waits no longer
HURRY_S = 10.0  # the same when the scan was interrupted: whoever did that wants it to end
BACKOFF_S = (1.0, 30.0)  # the first wait, doubled from then on, and the longest
BUSY = 429  # "too many requests": worth another try, like every 5xx


def signature(secret: bytes, timestamp: str, body: bytes) -> str:
    """`sha256=` and the HMAC of `timestamp.body`. The time is signed too, so that an old message can't be replayed."""
    return "sha256=" + hmac.new(secret, timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


def tell_webhook(url: str, record: Mapping[str, Any], patience_s: float | None = None) -> bool:
    """POST a run's record as JSON; whether somebody took it. If not, a sentence on stderr says why.

    Signed where DEEPSWEEP_WEBHOOK_SECRET is set. Tried again, for patience_s seconds at most (by default PATIENCE_S,
    or HURRY_S), when the connection fails or the answer is 429 or 5xx. A redirect is not followed: it could lead the
    summary anywhere.
    """
    if patience_s is None:
        patience_s = HURRY_S if record.get("interrupted") else PATIENCE_S
    if not url.lower().startswith(("http://", "https://")):
        return _warn(url, "it is neither http:// nor https://")
    body = json.dumps(record, default=str).encode()
    deadline = time.monotonic() + patience_s
    wait = BACKOFF_S[0]
    while True:
        problem, again = _attempt(url, body, min(TIMEOUT_S, max(0.1, deadline - time.monotonic())))
        if problem is None:
            return True
        pause = wait * random.uniform(0.5, 1)  # so that many scans that end at once don't knock in step
        if not again or time.monotonic() + pause >= deadline:
            return _warn(url, problem)
        time.sleep(pause)
        wait = min(wait * 2, BACKOFF_S[1])


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Lets a redirect be what it is: an answer that is not a success."""

    def redirect_request(self, *_: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirects)


def _attempt(url: str, body: bytes, timeout_s: float) -> tuple[str | None, bool]:
    """(what went wrong or None, whether another attempt may help)."""
    try:
        request = urllib.request.Request(url, body, {"Content-Type": "application/json", **_signed(body)})
        with _OPENER.open(request, timeout=timeout_s):
            return None, False
    except urllib.error.HTTPError as error:
        error.close()
        return f"it answered {error.code}", error.code == BUSY or error.code >= 500
    except (http.client.InvalidURL, ValueError):  # whose own words would repeat the URL
        return "that is not a URL", False
    except (OSError, http.client.HTTPException) as error:
        return f"{getattr(error, 'reason', None) or error or type(error).__name__}", True


def _signed(body: bytes) -> dict[str, str]:
    """Headers of this attempt; none where no secret is set."""
    secret = os.environ.get(SECRET_VARIABLE, "").encode("utf-8", "surrogateescape")
    if not secret:
        return {}
    timestamp = str(int(time.time()))
    return {TIMESTAMP_HEADER: timestamp, SIGNATURE_HEADER: signature(secret, timestamp, body)}


def _warn(url: str, problem: str) -> bool:
    # Only the host: path and query of a webhook's URL are often its password.
    print(f"deepsweep: the webhook at {_host(url)} could not be told: {problem}.", file=sys.stderr)
    return False


def _host(url: str) -> str:
    try:
        return urlsplit(redacted(url)).hostname or "?"
    except ValueError:
        return "?"
