"""The end of a scan: what the views say of this run, as a table."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from queries.catalog import ask_catalog
from scanner.config import ScanConfig

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

SHOWN_VIDEOS = 20
PIPED_WIDTH = 160  # columns, where no terminal says otherwise

_COUNTS = "SELECT status, count(*) FROM videos WHERE run_id = $run GROUP BY ALL ORDER BY ALL"
_FLAGGED = "SELECT coalesce(sum(flagged_clips), 0)::BIGINT FROM videos WHERE run_id = $run"
_SHOWN = """
    SELECT uri, status, verdict, score, blink_count, micro_irregularity, n_faces, coalesce(error, '')
    FROM videos WHERE run_id = $run
    ORDER BY score DESC NULLS LAST, status = 'ok' DESC, uri LIMIT $limit
"""


@dataclass(frozen=True)
class Summary:
    """What a run found, per video."""

    counts: dict[str, int]  # videos by status
    videos: int
    flagged_clips: int
    shown: list[tuple]


def summarize(results: str, run_id: str) -> Summary:
    """Read a run's videos back from RESULTS: what is told is what is on disk."""

    def read(catalog: DuckDBPyConnection) -> Summary:
        counts = dict(catalog.execute(_COUNTS, {"run": run_id}).fetchall())
        (flagged,) = catalog.execute(_FLAGGED, {"run": run_id}).fetchone() or (0,)
        shown = catalog.execute(_SHOWN, {"run": run_id, "limit": SHOWN_VIDEOS}).fetchall()
        return Summary(counts, sum(counts.values()), int(flagged), shown)

    return ask_catalog(results, read)


def print_summary(summary: Summary, record: dict[str, Any], config: ScanConfig) -> None:
    """The verdict table, and where to go from here, on stdout."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from queries.text import escape_controls

    console = Console(width=None if sys.stdout.isatty() else PIPED_WIDTH)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("video", overflow="fold")
    table.add_column("status")
    table.add_column("verdict")
    for name in ("score", "blinks", "micro", "faces"):
        table.add_column(name, justify="right")
    reasons: list[str] = []
    prefix = _common_folder([row[0] for row in summary.shown])
    for uri, status, verdict, score, blinks, micro, faces, error in summary.shown:
        cells = (
            uri[len(prefix) :],
            status,
            verdict or "–",
            _number(score, 3),
            _number(blinks, 0),
            _number(micro, 2),
            _number(faces, 0),
        )
        if error:
            reasons.append(f"{uri[len(prefix) :]}: {error}")
        table.add_row(*(Text(escape_controls(str(cell))) for cell in cells))
    console.print(table)
    for reason in reasons:
        console.print(Text(escape_controls(reason), style="dim"))
    if summary.videos > len(summary.shown):
        console.print(f"… and {summary.videos - len(summary.shown):,} more")
    counts = ", ".join(f"{n:,} {status}" for status, n in summary.counts.items())
    console.print()
    console.print(Text(f"{summary.videos:,} videos ({counts}), {summary.flagged_clips:,} clips flagged"))
    console.print(
        f"{record['video_hours'] * 60:.1f} minutes of video in {record['wall_s']:.0f} s"
        f" ({record['video_hours_per_hour']:.1f} video-hours per hour, start-up included)"
    )
    if record["model"] == "untrained":
        console.print("The model is untrained: no video was given a verdict.")
    if record["interrupted"]:
        console.print("Interrupted. The same command goes on from here.")
    console.print(Text(f"Results: {config.out}   Ask them: deepsweep query summary --results {config.out}"))


def _common_folder(uris: list[str]) -> str:
    """The longest shared prefix that ends in a slash, and leaves a name of each: also of a folder, "/archive/2024/"."""
    uris = [uri.rstrip("/") for uri in uris]
    if len(uris) < 2:
        return uris[0][: uris[0].rfind("/") + 1] if uris else ""
    low, high = min(uris), max(uris)
    same = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))
    return low[: low.rfind("/", 0, same) + 1]


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
