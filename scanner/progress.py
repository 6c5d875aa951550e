"""What a scan tells while it runs: one status line on a terminal, a line now and then in a log, or JSON."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from typing import Any

LOG_EVERY_S = 30.0  # where no terminal redraws the line
REFRESH_S = 0.5


class Progress:
    """Counts a scan's spans and videos, and shows them. Use as a context manager.

    Text goes to stderr, JSON events to stdout, one a line: scripts read the one, people the other.
    """

    def __init__(self, *, quiet: bool = False, as_json: bool = False) -> None:
        self.videos = self.videos_done = self.spans_done = self.flagged = self.failed = 0
        self.seconds = 0.0  # of video
        self.statuses: Counter[str] = Counter()  # of spans
        self.listing = True
        self.phase = "listing"
        self._began = time.monotonic()
        self._partly: dict[str, int] = {}  # spans still missing of videos that have several
        self._quiet, self._json = quiet, as_json
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Progress:
        if not self._quiet and not self._json:
            self._thread = threading.Thread(target=self._show, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def event(self, name: str, **facts: Any) -> None:
        """Print a JSON event where JSON was asked for."""
        if self._json:
            print(json.dumps({"event": name, **facts}, default=str), flush=True)

    def span(self, uri: str, missing_after: int, status: str, *, failed: bool, flagged: int, seconds: float) -> None:
        """Count a span that has been written. missing_after: spans of its video that this run still owes,
        if it is the first one of it to arrive."""
        self.phase = "scanning"
        self.spans_done += 1
        self.seconds += seconds
        self.flagged += flagged
        self.failed += failed
        self.statuses[status] += 1
        missing = self._partly.pop(uri, missing_after + 1) - 1
        if missing > 0:
            self._partly[uri] = missing
        else:
            self.videos_done += 1
        self.event("span", uri=uri, status=status, flagged=flagged, seconds=round(seconds, 3))

    def rate(self) -> float:
        """Hours of video per hour."""
        return self.seconds / max(1e-9, time.monotonic() - self._began)

    def left_s(self) -> float | None:
        """Seconds until the end, if the videos to come take as long as those that are done; None before the first."""
        elapsed = time.monotonic() - self._began
        return elapsed / self.videos_done * (self.videos - self.videos_done) if self.videos_done else None

    def facts(self, elapsed_s: float) -> dict[str, Any]:
        """What the record of a run says of it while it goes on; spans and hours are named as in a finished one."""
        return {
            "spans": self.spans_done,
            "video_hours": round(self.seconds / 3600, 4),
            "wall_s": round(elapsed_s, 2),
            "video_hours_per_hour": round(self.seconds / max(1e-9, elapsed_s), 2),
            "flagged_clips": self.flagged,
            "so_far": {
                "videos_done": self.videos_done,
                "videos_found": self.videos,
                "listing": self.listing,
                "spans_by_status": dict(self.statuses),
                "left_s": self.left_s(),
            },
        }

    def line(self) -> str:
        """The status line."""
        elapsed = time.monotonic() - self._began
        if self.phase != "scanning":
            found = f"{self.videos:,} videos to scan" if self.videos else "looking for videos"
            return f"{self.phase}: {found} · {clock(elapsed)}"
        total = f"{self.videos:,}{'+' if self.listing else ''}"
        left = self.left_s()
        return (
            f"{self.videos_done:,}/{total} videos · {self.rate():.1f} video-hours per hour"
            f" · {self.flagged:,} clips flagged · {self.failed:,} spans failed"
            f" · {clock(elapsed)}, {'?' if left is None else clock(left)} left"
        )

    def _show(self) -> None:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live
            from rich.text import Text

            console = Console(stderr=True)
            with Live(console=console, transient=True, auto_refresh=False) as live:
                while not self._stop.wait(REFRESH_S):
                    live.update(Text(self.line(), overflow="ellipsis", no_wrap=True), refresh=True)
            return
        while not self._stop.wait(LOG_EVERY_S):
            print(self.line(), file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """A duration as 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
