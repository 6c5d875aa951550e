"""What the report shows, read from RESULTS through the views: rows and figures, no HTML."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import duckdb

from queries.catalog import open_catalog
from queries.report.cards import ModelCard, find_card
from queries.text import one_sentence
from scanner.errors import UserError

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

Row = dict[str, Any]

BINS = 20  # of the histogram, 0.05 of score each
MAX_ROWS = 5000  # of the table: at 1 KB a row it stays light; `deepsweep query` lists more
FACES = 3  # tracks with plots per video, those that speak loudest
PICTURES = 6  # per video
MAX_PICTURE_BYTES = 200_000  # a crop of 192 px is 5 to 15 KB; results may come from strangers
COLUMNS = 300  # of the overview of a long video
CAUSES = 20  # per status

#: Ranked as `deepsweep query flagged` ranks: a video that failed in part counts with its highest flagged clip.
_RANKED = """
    CREATE TEMP TABLE ranked AS
    WITH best AS (SELECT uri, max(score) AS score FROM clips WHERE flagged GROUP BY uri)
    SELECT
        row_number() OVER (
            ORDER BY coalesce(v.score, b.score) DESC NULLS LAST, v.status = 'ok' DESC, v.uri
        ) AS rank,
        v.uri, v.status, v.error, v.verdict, v.score, v.cnn_score, b.score AS clip_score, v.top_t,
        CASE WHEN v.score IS NOT NULL OR b.score IS NOT NULL THEN v.flagged_clips END AS flagged_clips,  -- else unknown
        v.blink_count, v.blink_rate, v.blink_score, v.micro_irregularity, v.n_faces, v.face_seconds,
        v.analyzed_seconds, v.lost_seconds, v.duration_s, v.width, v.height, v.fps, v.codec, v.decoder, v.size_bytes,
        v.pending_spans, v.threshold, v.model, v.model_digest, v.run_id, v.scanned_at,
        coalesce(f.failed, false) AS failed
    FROM videos AS v
    LEFT JOIN best AS b ON b.uri = v.uri AND v.model IS DISTINCT FROM 'untrained'
    LEFT JOIN (SELECT uri, true AS failed FROM failures) AS f ON f.uri = v.uri
"""
_TOTALS = """
    SELECT
        count(*) AS videos,
        coalesce(sum(duration_s), 0) / 3600 AS hours,
        coalesce(sum(lost_seconds), 0) AS lost_seconds,
        count(*) FILTER (failed) AS failed,
        count(*) FILTER (score IS NOT NULL) AS scored,
        count(*) FILTER (verdict = 'fake') AS fake,
        count(*) FILTER (verdict = 'uncertain') AS uncertain,
        count(*) FILTER (verdict = 'real') AS real,
        coalesce(sum(flagged_clips), 0)::BIGINT AS flagged_clips,
        count(*) FILTER (pending_spans > 0) AS unfinished,
        count(*) FILTER (status = 'ok' AND blink_rate IS NULL) AS blinks_unknown,
        count(*) FILTER (status = 'ok') AS ok,
        count(*) FILTER (status = 'ok' AND model = 'untrained') AS untrained
    FROM ranked
"""
_STATUSES = """
    SELECT status, any_value(failed) AS failed, count(*) AS videos, coalesce(sum(duration_s), 0) / 3600 AS hours
    FROM ranked GROUP BY status ORDER BY status = 'ok' DESC, any_value(failed), videos DESC, status
"""
_HISTOGRAM = f"""
    SELECT least(floor(score * {BINS}), {BINS - 1})::INTEGER AS bin, count(*) AS videos
    FROM ranked WHERE score IS NOT NULL GROUP BY bin
"""
_MODELS = """
    SELECT model, model_digest, count(*) AS videos, list(DISTINCT threshold ORDER BY threshold) AS thresholds
    FROM ranked WHERE model IS NOT NULL GROUP BY ALL ORDER BY videos DESC, model, model_digest
"""
#: Reasons that differ in numbers only, or in how much of the video they stopped, are one cause.
_CAUSES = f"""
    SELECT
        status, count(*) AS videos, min(error) AS error, min(uri) AS example, max(attempts) AS attempts,
        sum(count(*)) OVER (PARTITION BY status)::BIGINT AS status_videos,
        count(*) OVER (PARTITION BY status) AS causes
    FROM failures
    GROUP BY status, regexp_replace(error, '[0-9]+([.][0-9]+)?|[ ]?[(][0-9]+ of [0-9]+ spans[)]$', '', 'g')
    QUALIFY row_number() OVER (PARTITION BY status ORDER BY count(*) DESC, min(uri)) <= {CAUSES}
    ORDER BY status_videos DESC, status, videos DESC, example
"""
_RUNS = """
    SELECT
        run_id, started_at, finished_at, interrupted, model, videos, spans, video_hours, video_hours_per_hour,
        settings ->> 'model' AS model_setting,
        versions ->> 'deepsweep' AS version
    FROM runs ORDER BY run_id
"""
_FACES = f"""
    SELECT *, count(*) OVER (PARTITION BY uri) AS tracks FROM faces WHERE uri IN ($URIS)
    QUALIFY row_number() OVER (
        PARTITION BY uri ORDER BY score DESC NULLS LAST, face_seconds DESC NULLS LAST, face_id
    ) <= {FACES}
    ORDER BY uri, score DESC NULLS LAST, face_seconds DESC NULLS LAST, face_id
"""
_SIGNALS = """
    SELECT
        p.uri, p.f.face_id AS face_id,
        [s.t FOR s IN p.f.signals] AS t, [s.ear FOR s IN p.f.signals] AS ear, [s.motion FOR s IN p.f.signals] AS motion
    FROM (SELECT uri, unnest(faces) AS f FROM spans WHERE uri IN ($URIS)) AS p
    SEMI JOIN shown_faces AS k ON k.uri = p.uri AND k.face_id = p.f.face_id
"""
_CLIPS = """
    SELECT c.uri, c.face_id, c.t_start, c.t_end, c.score, c.flagged
    FROM clips AS c SEMI JOIN shown_faces AS k ON k.uri = c.uri AND k.face_id = c.face_id
    WHERE c.uri IN ($URIS) ORDER BY c.uri, c.face_id, c.t_start
"""
_OVERVIEW = f"""
    SELECT c.uri, least(floor({COLUMNS} * c.t_start / r.duration_s), {COLUMNS - 1})::INTEGER AS bin,
        max(c.score) AS score
    FROM clips AS c JOIN ranked AS r USING (uri)
    WHERE c.uri IN ($URIS) AND c.score IS NOT NULL AND r.duration_s > 0
    GROUP BY ALL ORDER BY ALL
"""
_THUMBNAILS = f"""
    SELECT uri, face_id, t, score, image, heatmap FROM thumbnails
    WHERE uri IN ($URIS) AND octet_length(image) <= {MAX_PICTURE_BYTES}
        AND coalesce(octet_length(heatmap), 0) <= {MAX_PICTURE_BYTES}
    QUALIFY row_number() OVER (PARTITION BY uri ORDER BY score DESC NULLS LAST, t, face_id) <= {PICTURES}
    ORDER BY uri, score DESC NULLS LAST, t, face_id
"""


@dataclass
class Face:
    """One track: its row of `faces`, its clips, and its signals (samples,), None where unknown."""

    row: Row
    clips: list[Row] = field(default_factory=list)
    t: list[float] = field(default_factory=list)
    ear: list[float | None] = field(default_factory=list)
    motion: list[float | None] = field(default_factory=list)


@dataclass
class Evidence:
    """What a person needs to judge one video. overview: (column of COLUMNS, highest clip score in it)."""

    faces: list[Face] = field(default_factory=list)
    tracks: int = 0
    thumbnails: list[Row] = field(default_factory=list)
    overview: list[tuple[int, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Findings:
    """Everything on the page. videos: the first MAX_ROWS by rank; evidence: of the first `top`, by URI."""

    totals: Row
    statuses: list[Row]
    histogram: list[int]
    videos: list[Row]
    evidence: dict[str, Evidence]
    models: list[tuple[Row, ModelCard | str]]  # a sentence where there is no card
    causes: list[Row]
    runs: list[Row]


def read_findings(results: str, top: int) -> Findings:
    """Read what the report shows. top: videos with evidence. Raises UserError as open_catalog does."""
    connection = open_catalog(results)
    try:
        return _read(connection, top)
    except duckdb.Error as error:
        raise UserError(f"{results} could not be read: {one_sentence(error)}") from None
    finally:
        connection.close()


def _read(connection: DuckDBPyConnection, top: int) -> Findings:
    connection.execute(_RANKED)
    videos = _rows(connection, f"FROM ranked ORDER BY rank LIMIT {MAX_ROWS}")
    shown = [v["uri"] for v in videos if v["status"] == "ok" or v["flagged_clips"]][:top]
    bins = {row["bin"]: row["videos"] for row in _rows(connection, _HISTOGRAM)}
    runs = _rows(connection, _RUNS)
    settings = {run["model_setting"] for run in runs if run["model_setting"]}
    return Findings(
        totals=_rows(connection, _TOTALS)[0],
        statuses=_rows(connection, _STATUSES),
        histogram=[bins.get(i, 0) for i in range(BINS)],
        videos=videos,
        evidence=_evidence(connection, shown) if shown else {},
        models=[(row, find_card(row["model"], row["model_digest"], settings)) for row in _rows(connection, _MODELS)],
        causes=_rows(connection, _CAUSES),
        runs=runs,
    )


def _evidence(connection: DuckDBPyConnection, uris: Sequence[str]) -> dict[str, Evidence]:
    """One query per kind for all videos: on a large archive opening the parts costs more than reading them."""
    found: dict[str, Evidence] = {uri: Evidence() for uri in uris}
    faces: dict[tuple[str, str], Face] = {}
    _about(connection, "CREATE TEMP TABLE shown_faces AS " + _FACES, uris)
    for row in _rows(connection, "FROM shown_faces"):
        face = faces[row["uri"], row["face_id"]] = Face(row)
        found[row["uri"]].faces.append(face)
        found[row["uri"]].tracks = row["tracks"]
    for row in _about(connection, _SIGNALS, uris):
        face = faces[row["uri"], row["face_id"]]
        face.t, face.ear, face.motion = row["t"] or [], row["ear"] or [], row["motion"] or []
    for row in _about(connection, _CLIPS, uris):
        faces[row["uri"], row["face_id"]].clips.append(row)
    for row in _about(connection, _THUMBNAILS, uris):
        found[row["uri"]].thumbnails.append(row)
    overview = defaultdict(list)
    for row in _about(connection, _OVERVIEW, uris):
        overview[row["uri"]].append((row["bin"], row["score"]))
    for uri, columns in overview.items():
        found[uri].overview = columns
    return found


def _about(connection: DuckDBPyConnection, sql: str, uris: Sequence[str]) -> list[Row]:
    """Rows of a query on some videos. Constants, unlike a joined table, are pushed down into the Parquet scan."""
    names = {f"uri{i}": uri for i, uri in enumerate(uris)}
    return _rows(connection, sql.replace("$URIS", ", ".join(f"${name}" for name in names)), names)


def _rows(connection: DuckDBPyConnection, sql: str, params: Row | None = None) -> list[Row]:
    cursor = connection.execute(sql, params)
    names = [column[0] for column in cursor.description or ()]
    return [dict(zip(names, values, strict=True)) for values in cursor.fetchall()]
