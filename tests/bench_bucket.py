"""A bucket of any number of videos that can only be listed, and RESULTS in which most of them are done."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from unittest.mock import patch
from urllib.parse import parse_qs, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from scanner.records import RunFacts
from scanner.results import SCHEMA_VERSION, SPAN, Status
from scanner.storage import put_bytes, s3_client

BUCKET = "archive"
PAGE = 1000  # keys S3 lists at once
ROWS_PER_PART = 50_000  # of what is done already, as `deepsweep compact` leaves it


class Listing(BaseHTTPRequestHandler):
    """ListObjectsV2 of a bucket with `keys` videos; nothing else."""

    protocol_version = "HTTP/1.1"
    keys = 0

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        first = int(query.get("continuation-token", ["0"])[0])
        last = min(self.keys, first + int(query.get("max-keys", [str(PAGE)])[0]))
        entries = "".join(
            f"<Contents><Key>{key(n)}</Key><LastModified>2025-03-01T00:00:00.000Z</LastModified>"
            f"<ETag>&quot;{tag(n)}&quot;</ETag><Size>{10**7}</Size></Contents>"
            for n in range(first, last)
        )
        more = f"<NextContinuationToken>{last}</NextContinuationToken>" if last < self.keys else ""
        text = (
            f'<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>{BUCKET}'
            f"</Name><KeyCount>{last - first}</KeyCount><IsTruncated>{str(bool(more)).lower()}</IsTruncated>"
            f"{more}{entries}</ListBucketResult>"
        ).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: object) -> None:
        pass


def key(number: int) -> str:
    """Keys as archives have them, in byte order."""
    return f"footage/{number // 1000:05}/camera-{number % 7}/recording-{number:09}.mp4"


def tag(number: int) -> str:
    """An ETag: 32 hexadecimal digits that compress as badly as real ones."""
    return f"{number * 0x9E3779B97F4A7C15F39CC0605CEDC835 % (1 << 128):032x}"


def serve(keys: int, port: Any) -> None:
    """In a process of its own, whose CPU is not the driver's: answer until killed."""
    Listing.keys = keys
    server = ThreadingHTTPServer(("127.0.0.1", 0), Listing)
    port.send(server.server_address[1])
    server.serve_forever()


@contextlib.contextmanager
def bucket(keys: int) -> Iterator[None]:
    """Point this process's S3 clients at such a bucket."""
    here, there = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(keys, there), daemon=True)
    server.start()
    settings = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{here.recv()}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "NO_PROXY": "127.0.0.1",
    }
    try:
        with patch.dict(os.environ, settings):
            s3_client.cache_clear()
            yield
    finally:
        s3_client.cache_clear()
        server.kill()
        server.join()


def write_done(results: str, facts: RunFacts, count: int) -> None:
    """RESULTS in which the first `count` videos of the bucket are done."""
    for first in range(0, count, ROWS_PER_PART):
        numbers = range(first, min(count, first + ROWS_PER_PART))
        known: dict[str, Any] = {
            "uri": [f"s3://{BUCKET}/{key(n)}" for n in numbers],
            "content_tag": [tag(n) for n in numbers],
        }
        same = {
            "schema_version": SCHEMA_VERSION,
            "run_id": "20250301-000000-000000-0000",
            "span_index": 0,
            "span_count": 1,
            "status": Status.NO_FACE.value,
            "model_digest": facts.spec.digest,
            "settings_digest": facts.settings_digest,
        }
        columns = [
            pa.array(known[field.name], field.type)
            if field.name in known
            else pa.repeat(pa.scalar(same.get(field.name), field.type), len(numbers))
            for field in SPAN
        ]
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_arrays(columns, schema=SPAN), sink, compression="zstd")
        put_bytes(f"{results}/spans/run_id={same['run_id']}/part-{first:09}.parquet", sink.getvalue().to_pybytes())
