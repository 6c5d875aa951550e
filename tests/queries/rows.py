"""Small RESULTS, written row by row through the schema that the scanner writes."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from scanner.results import SPAN

#: What nobody knows of a span that was not read well.
_MEASURED = [
    *("score", "verdict", "cnn_score", "blink_count", "blink_s", "blink_rate", "blink_score", "micro_irregularity"),
    *("n_faces", "face_s", "analyzed_s"),
]

MIDNIGHT = datetime(2025, 3, 1, tzinfo=timezone.utc)


def span(uri: str, index: int = 0, count: int = 1, /, **values: Any) -> dict[str, Any]:
    """A row of SPAN: span `index` of `count`, 60 s each, read well and with one face. values replace defaults.

    run: the number of the run it was written in; later runs have larger numbers.
    """
    run = values.pop("run", 1)
    row: dict[str, Any] = dict.fromkeys(SPAN.names)
    row |= {
        "schema_version": 1,
        "run_id": f"run-{run:03}",
        "scanned_at": MIDNIGHT + timedelta(days=run, seconds=index),
        "uri": uri,
        "content_tag": "tag-1",
        "size_bytes": 1_000_000,
        "span_index": index,
        "span_count": count,
        "t_start": 60.0 * index,
        "t_end": 60.0 * (index + 1),
        "duration_s": 60.0 * count,
        "width": 1280,
        "height": 720,
        "fps": 25.0,
        "codec": "h264",
        "decoder": "pyav",
        "status": "ok",
        "lost_s": 0.0,
        "analyzed_s": 60.0,
        "face_s": 50.0,
        "n_faces": 1,
        "score": 0.1,
        "verdict": "real",
        "cnn_score": 0.2,
        "blink_count": 15,
        "blink_s": 50.0,
        "blink_rate": 18.0,
        "blink_score": 0.3,
        "micro_irregularity": 1.0,
        "model": "builtin-1",
        "model_digest": "model-1",
        "settings_digest": "settings-1",
        "threshold": 0.5,
        "worker_s": 12.0,
        "faces": [],
        "clips": [],
        "frames": [],
        "thumbnails": [],
    }
    if values.get("status", "ok") != "ok":
        row |= dict.fromkeys(_MEASURED)
    unknown = values.keys() - row.keys()
    assert not unknown, unknown
    return row | values


def clip(t: float, score: float, *, flagged: bool | None = None, face: str = "0-1") -> dict[str, Any]:
    """A clip of one second that is flagged from 0.5 on."""
    box = {"x": 0.1, "y": 0.2, "w": 0.3, "h": 0.4}
    flagged = score >= 0.5 if flagged is None else flagged
    return {
        "face_id": face,
        "t_start": t,
        "t_end": t + 1,
        "score": score,
        "cnn_score": score,
        "flagged": flagged,
    } | box


def write_part(results: Path, rows: list[dict[str, Any]], name: str = "part-0") -> Path:
    """One Parquet part in the folder of the first row's run."""
    path = results / "spans" / f"run_id={rows[0]['run_id']}" / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=SPAN), path)
    return path


def write_run(results: Path, run: int = 1, **values: Any) -> Path:
    """The record of one run."""
    record = {
        "run_id": f"run-{run:03}",
        "started_at": (MIDNIGHT + timedelta(days=run)).isoformat(),
        "finished_at": (MIDNIGHT + timedelta(days=run, hours=8)).isoformat(),
        "settings": {"fps": 15, "span_seconds": 60},
        "model": "builtin-1",
        "model_digest": "model-1",
        "counts": {"ok": 2, "timeout": 1},
        "videos": 3,
        "spans": 4,
        "video_hours": 2.0,
        "video_hours_per_hour": 0.25,
        "versions": {"deepsweep": "0.1.0"},
        "interrupted": False,
    }
    path = results / "runs" / f"{record['run_id']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record | values), encoding="utf-8")
    return path
