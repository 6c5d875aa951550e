"""`deepsweep status`: what the records in RESULTS say of its runs, live and past, from wherever RESULTS can be read."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from enum import Enum
from typing import Any

import click

from scanner.errors import EXIT_PREFLIGHT, UserError
from scanner.progress import clock

#: Ten beats of a live run (scanner/heartbeat.py), so that a slow store or clocks minutes apart declare nobody dead.
SILENT_AFTER_S = 300.0
SHOWN_RUNS = 10
PIPED_WIDTH = 160  # columns, where no terminal says otherwise


class State(str, Enum):
    """How a run is, or how it ended."""

    RUNNING = "running"
    SILENT = "probably dead"  # neither ended nor heard of: killed, or its machine is gone
    FINISHED = "finished"
    INTERRUPTED = "interrupted"  # by Ctrl-C or SIGTERM
    STALLED = "stalled"  # ended by its own watchdog
    BROKE_OFF = "broke off"  # an error ended it, Ray's mostly


NOT_WELL = frozenset({State.SILENT, State.STALLED, State.BROKE_OFF})


@dataclass(frozen=True)
class Run:
    """One run as its record tells it. Durations in seconds; None where that is not known."""

    run_id: str
    state: State
    started_at: datetime
    finished_at: datetime | None
    silence_s: float | None  # since the last sign of life of a run that has not ended
    videos: int | None  # done
    videos_found: int | None  # to be done, as far as is known; of a run that has not ended
    spans: int
    counts: Mapping[str, int]  # by status: of videos once the run has summed up, of spans before
    counted: str  # "videos" or "spans"
    flagged_clips: int | None
    video_hours: float
    video_hours_per_hour: float
    wall_s: float | None
    left_s: float | None
    model: str | None
    reason: str | None  # why it stalled or broke off

    @property
    def is_live(self) -> bool:
        return self.state is State.RUNNING

    @property
    def took_s(self) -> float | None:
        if self.wall_s is not None or self.finished_at is None:
            return self.wall_s
        return (self.finished_at - self.started_at).total_seconds()


def run_of(record: Mapping[str, Any], now: datetime) -> Run:
    """What a record, runs/<run_id>.json, says at this moment. Raises ValueError where it is none."""
    started, finished, alive = (_moment(record.get(key)) for key in ("started_at", "finished_at", "alive_at"))
    run_id = record.get("run_id")
    if started is None or not isinstance(run_id, str):
        raise ValueError("not a run record")
    silence = None if finished else (now - (alive or started)).total_seconds()
    so_far = record.get("so_far") or {}
    stalled = record.get("stalled")
    return Run(
        run_id=run_id,
        state=_state(record, silence),
        started_at=started,
        finished_at=finished,
        silence_s=silence,
        videos=record.get("videos", so_far.get("videos_done")),
        videos_found=so_far.get("videos_found"),
        spans=record.get("spans") or 0,
        counts=record.get("counts") or so_far.get("spans_by_status") or {},
        counted="videos" if "counts" in record else "spans",
        flagged_clips=record.get("flagged_clips"),
        video_hours=record.get("video_hours") or 0.0,
        video_hours_per_hour=record.get("video_hours_per_hour") or 0.0,
        wall_s=record.get("wall_s"),
        left_s=so_far.get("left_s"),
        model=record.get("model"),
        reason=" ".join(stalled) if stalled else record.get("broke_off"),
    )


def _state(record: Mapping[str, Any], silence_s: float | None) -> State:
    if silence_s is not None:
        return State.SILENT if abs(silence_s) > SILENT_AFTER_S else State.RUNNING  # either way, of a clock that was set
    if record.get("stalled"):
        return State.STALLED
    if record.get("broke_off"):
        return State.BROKE_OFF
    return State.INTERRUPTED if record.get("interrupted") else State.FINISHED


def _moment(text: Any) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def read_runs(results: str, run_id: str | None = None) -> list[Run]:
    """The runs in RESULTS, or the one of this name; the latest first.

    Raises UserError where RESULTS can't be read or a record is damaged.
    """
    from queries.catalog import foreign_record, list_runs, read_documents

    now = datetime.now(timezone.utc)
    files = list_runs(results)
    if run_id is not None:
        files = [file for file in files if file.endswith(f"/{run_id}.json")]
    runs = []
    for file, text in zip(files, read_documents(files), strict=True):
        try:
            runs.append(run_of(json.loads(text), now))
        except (ValueError, TypeError, AttributeError):
            raise foreign_record(file) from None
    return sorted(runs, key=lambda run: run.run_id, reverse=True)


# --- the command ------------------------------------------------------------------------------------------


@click.command()
@click.argument("results", envvar="DEEPSWEEP_RESULTS", metavar="RESULTS")
@click.option("--run", "run_id", metavar="ID", help="One run, in full; `latest` is the newest.")
@click.option("--json", "as_json", is_flag=True, help="Print the runs as JSON, the latest first.")
def status(results: str, run_id: str | None, as_json: bool) -> None:
    """Show how the scans into RESULTS stand, live or ended, from anywhere that can read RESULTS.

    A scan rewrites its record every 30 seconds. One that has not ended, and not been heard of for 5 minutes, is
    shown as probably dead; the same `scan` command goes on from where it was.

    \b
    The last runs, then all of one:
      deepsweep status s3://archive-results
      deepsweep status s3://archive-results --run latest

    \b
    Exit codes: 0 told, 2 no such results or run, 4 the run, or the latest of them, is probably dead, stalled or
    broke off.
    """
    runs = _wanted(results, run_id)
    if as_json:
        print(json.dumps([_facts(run) for run in runs], indent=1))
    elif run_id is not None:
        _print_run(runs[0])
    else:
        _print_table(runs)
    sys.exit(EXIT_PREFLIGHT if runs and runs[0].state in NOT_WELL else 0)


def _wanted(results: str, run_id: str | None) -> list[Run]:
    runs = read_runs(results, None if run_id == "latest" else run_id)
    if run_id is None:
        return runs
    if not runs:
        raise UserError(f"there is no run {run_id} in {results}. `deepsweep status {results}` lists them.")
    return runs[:1]


def _facts(run: Run) -> dict[str, Any]:
    return {key: value.isoformat() if isinstance(value, datetime) else value for key, value in vars(run).items()}


def _print_table(runs: Sequence[Run]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from queries.text import escape_controls

    console = Console(width=None if sys.stdout.isatty() else PIPED_WIDTH)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("run", "state", "started (UTC)"):
        table.add_column(name, no_wrap=True)
    for name in ("took", "videos", "spans", "flagged", "hours", "hours/h", "left"):
        table.add_column(name, justify="right", no_wrap=True)
    for run in runs[:SHOWN_RUNS]:
        started = run.started_at.astimezone(timezone.utc)
        cells = (
            *(run.run_id, _told_state(run), f"{started:%Y-%m-%d %H:%M}", _duration(run.took_s), _videos(run)),
            *(f"{run.spans:,}", _count(run.flagged_clips), f"{run.video_hours:,.1f}"),
            *(f"{run.video_hours_per_hour:.1f}", _duration(run.left_s) if run.is_live else ""),
        )
        table.add_row(*(Text(escape_controls(cell)) for cell in cells))
    console.print(table)
    if len(runs) > SHOWN_RUNS:
        console.print(f"… and {len(runs) - SHOWN_RUNS:,} earlier ones (--json shows all)")
    if not runs:
        console.print("No run has left a record here.")


def _print_run(run: Run) -> None:
    from queries.text import escape_controls

    counts = ", ".join(f"{count:,} {name}" for name, count in sorted(run.counts.items()))
    lines = [
        ("run", run.run_id),
        ("state", _told_state(run)),
        ("why", run.reason or ""),
        ("started", f"{run.started_at.astimezone(timezone.utc):%Y-%m-%d %H:%M:%S} UTC"),
        ("took", _duration(run.took_s)),
        ("left", _duration(run.left_s) if run.is_live else ""),
        ("videos", _videos(run)),
        ("spans", f"{run.spans:,}"),
        (f"{run.counted} by status", counts),
        ("flagged clips", _count(run.flagged_clips)),
        ("video", f"{run.video_hours:,.1f} hours, {run.video_hours_per_hour:.1f} of them per hour"),
        ("model", run.model or ""),
    ]
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        if value:
            click.echo(f"{name:<{width}}  {escape_controls(value)}")


def _told_state(run: Run) -> str:
    """The state, and of a run that has not ended, when it was last heard of."""
    if run.silence_s is None:
        return run.state.value
    return f"{run.state.value} (heard of {_duration(max(0.0, run.silence_s))} ago)"


def _videos(run: Run) -> str:
    done = _count(run.videos)
    return done if run.finished_at or run.videos_found is None else f"{done}/{run.videos_found:,}"


def _count(number: int | None) -> str:
    return "–" if number is None else f"{number:,}"


def _duration(seconds: float | None) -> str:
    return "–" if seconds is None else clock(seconds)
