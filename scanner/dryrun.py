"""`scan --dry-run`: what a scan would do, and how long it may take, without starting Ray."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

from scanner.config import ScanConfig
from scanner.errors import EXIT_OK
from scanner.guard import Guard, GuardFailure
from scanner.pipeline import PROBE_DEADLINE_S, Todo, probe_video
from scanner.sources import Video
from scanner.storage import is_s3
from scanner.uris import local_path

SAMPLE = 20  # videos whose headers are read
#: Seconds of 720p talking head that one core scans in a second, `make bench` on two cores of an AMD EPYC.
SECONDS_PER_CORE_SECOND = 3.1


@dataclass
class Forecast:
    """What was counted, and what is only estimated."""

    videos: int = 0
    done_before: int = 0
    bytes: int = 0
    unreadable: int = 0
    sampled: int = 0
    hours: float | None = None
    expected_minutes: float | None = None


def dry_run(inventory: Any, config: ScanConfig) -> int:
    """Count the videos to scan, read the headers of a sample, and print what that means."""
    forecast = Forecast()
    sample: list[Todo] = []
    for todo in inventory:
        forecast.videos += 1
        forecast.bytes += todo.video.size_bytes or 0
        forecast.unreadable += todo.video.error is not None
        # Every so often, and ever more rarely: a sample of the whole list in one pass.
        if len(sample) < SAMPLE:
            sample.append(todo)
        elif forecast.videos % max(1, forecast.videos // SAMPLE) == 0:
            sample[forecast.videos % SAMPLE] = todo
    forecast.done_before = inventory.met - forecast.videos if config.limit is None else 0
    _estimate(forecast, [todo.video for todo in sample], config)
    if config.json:
        print(json.dumps({"event": "dry_run", **forecast.__dict__}))
    elif not config.quiet:
        print(_text(forecast, config))
    return EXIT_OK


def _estimate(forecast: Forecast, videos: list[Video], config: ScanConfig) -> None:
    """Hours from the sampled durations, by bytes where sizes are known."""
    local = [v for v in videos if v.error is None and not is_s3(v.uri)]
    if not local:
        return
    guard = Guard(preload=("scanner.analysis",), memory_limit=config.memory_limit)
    seconds, size = 0.0, 0
    try:
        for video in local:
            try:
                info = guard.run(probe_video, str(local_path(video.uri)), deadline_s=PROBE_DEADLINE_S)
            except (GuardFailure, Exception):
                continue  # a scan would make it a row with its reason
            forecast.sampled += 1
            seconds += info.duration_s
            size += video.size_bytes or 0
    finally:
        guard.close()
    if not size:
        return
    total = forecast.bytes * seconds / size
    forecast.hours = round(total / 3600, 3)
    forecast.expected_minutes = round(total / (SECONDS_PER_CORE_SECOND * (os.cpu_count() or 1)) / 60, 1)


def _text(forecast: Forecast, config: ScanConfig) -> str:
    lines = [f"{forecast.videos:,} videos to scan, {forecast.bytes / 1e9:,.2f} GB"]
    if forecast.done_before:
        lines.append(f"{forecast.done_before:,} are done already in {config.out}")
    if forecast.unreadable:
        lines.append(f"{forecast.unreadable:,} are listed but can't be read")
    if forecast.hours is not None:
        lines.append(f"about {forecast.hours:,.2f} hours of video, from the headers of {forecast.sampled} of them")
        lines.append(
            f"about {forecast.expected_minutes:,.0f} minutes on the {os.cpu_count()} cores of this machine,"
            f" at {SECONDS_PER_CORE_SECOND} seconds of video per core and second"
        )
    lines.append("nothing was scanned (--dry-run)")
    return "\n".join(lines)
