"""How long `flagged` and `summary` take over millions of frames: python -m tests.bench_queries [--rows N]."""

from __future__ import annotations

import argparse
import io
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from queries.catalog import open_catalog
from queries.formats import write_answer
from queries.run import run_query
from scanner.results import CLIP, FACE, FRAME, SIGNAL, SPAN, THUMBNAIL, write_run
from tests.scans import command

ROWS = 10_000_000
REPEATS = 3
LIMIT_S = 2.0  # to open RESULTS and answer: what is promised of each query
QUERIES = ("flagged", "summary")
MIB = 2**20

SPAN_S = 60
FPS = 15
FRAMES_PER_SPAN = SPAN_S * FPS  # of one face that is seen throughout
CLIP_FRAMES = 16
SPANS_PER_VIDEO = 10
SPANS_PER_PART = 16  # as a scan with a GPU writes them; one without writes 1
PICTURES_PER_SPAN = 3
PICTURE_BYTES = 3000
FLAG_FROM = 0.99  # of evenly spread scores: one clip in a hundred


def write_results(folder: Path, rows: int, spans_per_part: int = SPANS_PER_PART, seed: int = 1) -> int:
    """RESULTS with at least so many rows of `frames`, and what else a scan writes beside them. Returns the spans.

    One part is in memory at a time. It is made column by column, since write_part's way over Python rows would
    take an hour for ten million.
    """
    rng = np.random.default_rng(seed)
    spans = -(-rows // FRAMES_PER_SPAN)
    run_id = "20260101-000000-000000-bench"
    write_run(str(folder), {"run_id": run_id, "started_at": "2026-01-01T00:00:00+00:00", "settings": {}, "counts": {}})
    target = folder / "spans" / f"run_id={run_id}"
    target.mkdir(parents=True)
    for first in range(0, spans, spans_per_part):
        part = _part(rng, run_id, np.arange(first, min(first + spans_per_part, spans)))
        pq.write_table(part, target / f"part-{first:024x}.parquet", compression="zstd")
    return spans


def _part(rng: np.random.Generator, run_id: str, numbers: np.ndarray) -> pa.Table:
    """Spans of these numbers, each of one face: as SPAN has them."""
    spans = len(numbers)
    index, score = numbers % SPANS_PER_VIDEO, rng.random(spans)
    values = {
        "schema_version": np.ones(spans),
        "run_id": [run_id] * spans,
        "scanned_at": [datetime(2026, 1, 1, tzinfo=timezone.utc)] * spans,
        "uri": [f"s3://archive/2026/tape-{n // SPANS_PER_VIDEO:06}.mp4" for n in numbers],
        "span_index": index,
        "t_start": index * SPAN_S,
        "t_end": (index + 1) * SPAN_S,
        "score": score,
        "cnn_score": score,
        "verdict": np.where(score >= FLAG_FROM, "fake", "real"),
        "faces": _lists(FACE, spans, 1, _random(FACE, spans, rng) | {"signals": _signals(rng, spans)}),
        "clips": _clips(rng, spans),
        "frames": _lists(FRAME, spans, FRAMES_PER_SPAN, _random(FRAME, spans * FRAMES_PER_SPAN, rng)),
        "thumbnails": _lists(THUMBNAIL, spans, PICTURES_PER_SPAN, _random(THUMBNAIL, spans * PICTURES_PER_SPAN, rng)),
    }
    same = {
        **{"content_tag": "tag", "size_bytes": 10**8, "span_count": SPANS_PER_VIDEO, "duration_s": 600.0},
        **{"width": 1920, "height": 1080, "fps": 25.0, "codec": "h264", "decoder": "pyav", "status": "ok"},
        **{"lost_s": 0.0, "analyzed_s": 60.0, "face_s": 60.0, "n_faces": 1, "blink_count": 15, "blink_s": 60.0},
        **{"blink_rate": 15.0, "blink_score": 0.2, "micro_irregularity": 1.0, "model": "bench"},
        **{"model_digest": "model", "settings_digest": "settings", "threshold": FLAG_FROM, "worker_s": 20.0},
    }
    values |= {name: [value] * spans for name, value in same.items()}
    columns = [
        values[field.name]
        if isinstance(values.get(field.name), pa.Array)
        else pa.array(values.get(field.name, [None] * spans)).cast(field.type)
        for field in SPAN
    ]
    return pa.table(columns, schema=SPAN)


def _clips(rng: np.random.Generator, spans: int) -> pa.Array:
    each = FRAMES_PER_SPAN // CLIP_FRAMES
    clips = _random(CLIP, spans * each, rng)
    return _lists(CLIP, spans, each, clips | {"flagged": pa.array(clips["score"].to_numpy() >= FLAG_FROM)})


def _signals(rng: np.random.Generator, spans: int) -> pa.Array:
    return _lists(SIGNAL, spans, FRAMES_PER_SPAN, _random(SIGNAL, spans * FRAMES_PER_SPAN, rng))


def _random(struct: pa.StructType, rows: int, rng: np.random.Generator) -> dict[str, pa.Array]:
    """Columns of a struct of plain fields. Noise compresses less than real figures: the files are no smaller."""
    return {field.name: _column(field.type, rows, rng) for field in struct}


def _column(type_: pa.DataType, rows: int, rng: np.random.Generator) -> pa.Array:
    if pa.types.is_string(type_):
        return pa.array(["0-1"] * rows, type_)
    if pa.types.is_boolean(type_):
        return pa.array(rng.random(rows) < 0.05)
    if pa.types.is_binary(type_):
        return pa.array([rng.bytes(PICTURE_BYTES) for _ in range(rows)], type_)
    if pa.types.is_list(type_):
        return pa.nulls(rows, type_)
    return pa.array(rng.random(rows)).cast(type_, safe=False)


def _lists(struct: pa.StructType, spans: int, each: int, columns: dict[str, pa.Array]) -> pa.Array:
    items = pa.StructArray.from_arrays([columns[field.name] for field in struct], fields=list(struct))
    return pa.ListArray.from_arrays(pa.array(np.arange(spans + 1) * each, pa.int32()), items)


def ask(results: str, name: str) -> None:
    """What the command does, timed from inside; prints seconds to open, seconds to answer, peak MiB."""
    began = time.perf_counter()
    with closing(open_catalog(results)) as connection:
        opened = time.perf_counter()
        write_answer(run_query(connection, name), "table", io.BytesIO())
        answered = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # kB on Linux
    print(opened - began, answered - opened, peak)


def measure(results: Path) -> bool:
    """Print medians for each query, each asked in processes of its own; whether all keep to LIMIT_S."""
    kept = True
    print(f"{'query':<10} {'open s':>8} {'ask s':>8} {'both s':>8} {'command s':>10} {'peak MiB':>9}")
    for name in QUERIES:
        runs = []
        for _ in range(REPEATS):
            done = _run([sys.executable, "-m", "tests.bench_queries", "--ask", name, str(results)])
            began = time.perf_counter()
            _run(command("query", name, "--results", results))
            runs.append([*map(float, done.split()), time.perf_counter() - began])
        opened, asked, peak, whole = (statistics.median(column) for column in zip(*runs, strict=True))
        kept = kept and opened + asked < LIMIT_S
        print(f"{name:<10} {opened:8.2f} {asked:8.2f} {opened + asked:8.2f} {whole:10.2f} {peak:9.0f}")
    return kept


def _run(words: list[str]) -> str:
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=ROWS, help="rows of `frames`")
    parser.add_argument("--spans-per-part", type=int, default=SPANS_PER_PART, help="1 is a scan without a GPU")
    parser.add_argument("--ask", nargs=2, metavar=("NAME", "RESULTS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ask:
        ask(options.ask[1], options.ask[0])
        return 0
    with tempfile.TemporaryDirectory(prefix="deepsweep-bench-") as scratch:
        results = Path(scratch) / "results"
        began = time.perf_counter()
        spans = write_results(results, options.rows, options.spans_per_part)
        size = sum(file.stat().st_size for file in results.rglob("*.parquet"))
        parts = sum(1 for _ in results.rglob("*.parquet"))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"{spans * FRAMES_PER_SPAN:,} frames in {spans:,} spans, {parts:,} parts, {size / MIB:,.0f} MiB: "
            f"written in {time.perf_counter() - began:.0f} s with {peak:.0f} MiB, {os.cpu_count()} cores\n"
        )
        kept = measure(results)
    print(f"\n{'Each' if kept else 'NOT each'} opened and answered in under {LIMIT_S:g} s, medians of {REPEATS}.")
    return 0 if kept or options.rows < ROWS else 1  # fewer only show whether it works


if __name__ == "__main__":
    sys.exit(main())
