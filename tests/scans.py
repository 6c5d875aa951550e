"""Running `deepsweep` as a user does, in a process of its own, and reading what it left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from queries.catalog import open_catalog

ROOT = Path(__file__).parents[1]
TIMEOUT_S = 280
SPAN_S = 5.0  # so that videos of ten seconds have several spans
SPANS = ("--span-seconds", f"{SPAN_S:g}")

#: Columns that differ between two scans of the same videos.
CIRCUMSTANCES = frozenset(
    {"run_id", "scanned_at", "content_tag", "worker_seconds", "worker_s", "size_bytes", "model_digest"}
)


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-c", "from scanner.cli import main; main()", *map(str, arguments)]


def environment(**extra: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **extra}


def deepsweep(*arguments: str | Path, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; its output as text."""
    return subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        env=environment(**extra),
        cwd=ROOT,
    )


def begin_scan(results: Path, *arguments: str | Path) -> subprocess.Popen[bytes]:
    """A scan that runs, and says nothing."""
    return subprocess.Popen(
        command("scan", *arguments, "--out", results, "--quiet"),
        env=environment(),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def parts_of(results: Path) -> list[Path]:
    """The parts that are in RESULTS."""
    return list(results.glob("spans/*/part-*.parquet"))


def interrupted_scan(results: Path, parts: int, how: signal.Signals, *arguments: str | Path) -> int:
    """Start a scan, send `how` once so many parts are on disk, and wait for its end; the exit code."""
    process = begin_scan(results, *arguments)
    try:
        deadline = time.monotonic() + TIMEOUT_S
        while len(parts_of(results)) < parts and process.poll() is None:
            assert time.monotonic() < deadline, "the scan wrote nothing"
            time.sleep(0.02)
        process.send_signal(how)
        return process.wait(timeout=60)
    finally:
        if process.poll() is None:
            process.kill()


def rows(results: str | Path, view: str) -> list[dict[str, Any]]:
    """A view's rows, without what two scans of the same videos may differ in, in a fixed order."""
    with open_catalog(str(results)) as catalog:
        answer = catalog.execute(f"SELECT * FROM {view}")
        names = [column[0] for column in answer.description]
        found = [dict(zip(names, row, strict=True)) for row in answer.fetchall()]
    for row in found:
        for name in CIRCUMSTANCES & row.keys():
            del row[name]
        row["uri"] = row["uri"].split("/archive/")[-1]
    return sorted(found, key=repr)


def videos(results: str | Path) -> dict[str, dict[str, Any]]:
    """The `videos` view by file name."""
    return {row["uri"].rsplit("/", 1)[-1]: row for row in rows(results, "videos")}
