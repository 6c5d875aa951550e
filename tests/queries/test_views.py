"""What the views say of rows on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from queries.catalog import open_catalog
from queries.run import VIEWS
from scanner.results import FAILED, Status
from tests.queries.conftest import ask
from tests.queries.rows import clip, span, write_part, write_run

CONTRACT = {
    "videos": "uri content_tag size_bytes duration_s width height fps codec decoder status error verdict score "
    "cnn_score blink_count blink_rate blink_score micro_irregularity n_faces face_seconds analyzed_seconds "
    "flagged_clips top_t model run_id scanned_at lost_seconds pending_spans",
    "clips": "uri face_id t_start t_end score cnn_score flagged x y w h run_id",
    "frames": "uri face_id t score ear blink x y w h run_id",
    "faces": "uri face_id t_start t_end score blink_count blink_rate micro_irregularity face_seconds cnn_score "
    "blink_score blink_times x y w h run_id",
    "thumbnails": "uri face_id t score image heatmap run_id",
    "failures": "uri status error attempts run_id",
    "runs": "run_id started_at finished_at settings counts video_hours_per_hour",
}


def videos(connection, *columns: str) -> list[tuple]:
    return connection.sql(f"SELECT {', '.join(columns)} FROM videos ORDER BY uri").fetchall()


@pytest.mark.parametrize("view", CONTRACT)
def test_a_view_has_the_columns_of_the_contract(catalog, view):
    columns = {row["column_name"] for row in ask(catalog([span("a")]), f"DESCRIBE {view}")}
    assert columns >= set(CONTRACT[view].split())


def test_views_are_all_that_show_tables_lists(catalog):
    assert {row["name"] for row in ask(catalog(), "SHOW TABLES")} == set(VIEWS)


def test_the_sql_knows_every_status_and_which_are_failures(catalog):
    known = dict(catalog().sql("SELECT status, failed FROM internal.statuses").fetchall())
    assert known == {status.value: status in FAILED for status in Status}


def test_without_spans_every_view_is_there_and_empty(catalog):
    connection = catalog()
    for view in VIEWS:
        rows = ask(connection, f"FROM {view}")
        assert len(rows) == (1 if view == "runs" else 0), view


# --- exactly once ---------------------------------------------------------------------------------------


def test_a_span_written_to_two_parts_shows_once(catalog):
    rows = [span("a", clips=[clip(1, 0.9)])]
    connection = catalog(rows, rows)
    assert len(ask(connection, "FROM spans")) == 1
    assert len(ask(connection, "FROM clips")) == 1
    assert videos(connection, "uri", "face_seconds", "flagged_clips") == [("a", 50.0, 1)]


def test_a_span_written_twice_into_one_part_shows_once(catalog):
    assert videos(catalog([span("a"), span("a")]), "uri", "face_seconds") == [("a", 50.0)]


def test_a_resumed_run_completes_an_interrupted_one(catalog):
    connection = catalog([span("a", 0, 3, score=0.9, verdict="fake")], [span("a", 1, 3, run=2), span("a", 2, 3, run=2)])
    assert videos(connection, "score", "verdict", "pending_spans", "run_id") == [(0.9, "fake", 0, "run-002")]


@pytest.mark.parametrize(
    "change", [{"content_tag": "tag-2"}, {"model_digest": "model-2"}, {"settings_digest": "settings-2"}]
)
def test_a_changed_file_or_setting_supersedes_what_was_known(catalog, change):
    old = [span("a", 0, 2, score=0.9, verdict="fake", clips=[clip(1, 0.9)]), span("a", 1, 2)]
    connection = catalog(old, [span("a", 0, 2, run=2, **change)])
    assert videos(connection, "score", "verdict", "pending_spans", "flagged_clips") == [(0.1, "real", 1, 0)]


def test_other_videos_are_not_superseded(catalog):
    connection = catalog([span("a"), span("b")], [span("a", run=2, content_tag="tag-2")])
    assert videos(connection, "uri", "content_tag") == [("a", "tag-2"), ("b", "tag-1")]


def test_a_different_cut_into_spans_supersedes(catalog):
    connection = catalog([span("a", i, 3, score=0.9) for i in range(3)], [span("a", 0, 1, run=2)])
    assert videos(connection, "score", "face_seconds") == [(0.1, 50.0)]


def test_a_video_without_content_tag_is_one_video(catalog):
    missing = {"status": "missing", "content_tag": None, "error": "gone"}
    connection = catalog([span("a", **missing)], [span("a", run=2, **missing)])
    assert ask(connection, "FROM failures") == [
        {"uri": "a", "status": "missing", "error": "gone", "attempts": 2, "run_id": "run-002"}
    ]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    written=st.lists(
        st.tuples(st.integers(0, 3), st.integers(1, 3), st.sampled_from(["tag-1", "tag-2"])), min_size=1, max_size=12
    )
)
def test_however_often_spans_are_written_each_shows_once_in_its_latest_state(tmp_path_factory, written):
    results = tmp_path_factory.mktemp("results")
    rows = [span("a", index, 4, run=run, content_tag=tag, score=run / 10) for index, run, tag in written]
    for number, row in enumerate(rows):
        write_part(results, [row], f"part-{number}")
    latest = max((row["run_id"], row["scanned_at"], f"part-{n}") for n, row in enumerate(rows))
    winner = next(row for n, row in enumerate(rows) if (row["run_id"], row["scanned_at"], f"part-{n}") == latest)
    expected = {}
    for row in rows:
        known = expected.get(row["span_index"], row)
        if row["content_tag"] == winner["content_tag"] and row["run_id"] >= known["run_id"]:
            expected[row["span_index"]] = row
    connection = open_catalog(str(results))
    found = connection.sql("SELECT span_index, run_id, score FROM spans ORDER BY span_index").fetchall()
    connection.close()
    assert found == [(i, row["run_id"], row["score"]) for i, row in sorted(expected.items())]


# --- videos ---------------------------------------------------------------------------------------------


def test_the_most_suspicious_span_gives_score_and_verdict(catalog):
    rows = [
        span("a", 0, 3, score=0.2, verdict="real", cnn_score=0.9),
        span("a", 1, 3, score=0.8, verdict="fake", cnn_score=0.7),
        span("a", 2, 3, score=0.5, verdict="uncertain", cnn_score=0.5),
    ]
    assert videos(catalog(rows), "score", "verdict", "cnn_score") == [(0.8, "fake", 0.7)]


def test_an_untrained_model_gives_a_score_without_a_verdict(catalog):
    rows = [span("a", 0, 2, score=0.9, verdict=None), span("a", 1, 2, score=0.1, verdict="real")]
    assert videos(catalog(rows), "score", "verdict") == [(0.9, None)]


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        (["ok", "no_face", "too_short"], "ok"),
        (["no_face", "too_short"], "too_short"),
        (["no_face", "no_face"], "no_face"),
        (["ok", "timeout", "ok"], "timeout"),
        (["timeout", "decode_error", "decode_error"], "decode_error"),
        (["unsupported", "crashed"], "crashed"),
        (["timeout", "something_new"], "something_new"),
    ],
)
def test_status_of_a_video_from_those_of_its_spans(catalog, statuses, expected):
    rows = [span("a", i, len(statuses), status=status) for i, status in enumerate(statuses)]
    assert videos(catalog(rows), "status") == [(expected,)]


def test_scores_are_null_unless_ok_but_flagged_clips_stay(catalog):
    rows = [span("a", 0, 2, score=0.9, verdict="fake", clips=[clip(7, 0.95), clip(9, 0.8)]),
            span("a", 1, 2, status="timeout", error="stopped after 600 s")]  # fmt: skip
    connection = catalog(rows)
    assert videos(connection, "score", "verdict", "cnn_score", "blink_score") == [(None, None, None, None)]
    assert videos(connection, "flagged_clips", "top_t", "error") == [(2, 7.0, "stopped after 600 s (1 of 2 spans)")]


def test_the_error_is_the_first_of_the_status_shown(catalog):
    rows = [span("a", 0, 3, status="crashed", error="died"), span("a", 1, 3, status="timeout", error="slow 1"),
            span("a", 2, 3, status="timeout", error="slow 2")]  # fmt: skip
    assert videos(catalog(rows), "status", "error") == [("timeout", "slow 1")]


def test_a_whole_video_that_failed_shows_its_error_as_it_is(catalog):
    assert videos(catalog([span("a", status="unsupported", error="a text file")]), "error") == [("a text file",)]


def test_a_partial_failure_without_a_message_says_how_much_failed(catalog):
    connection = catalog([span("a", 0, 3, status="timeout"), span("a", 1, 3), span("a", 2, 3)])
    assert videos(connection, "error") == [("(1 of 3 spans)",)]


def test_sums_and_means(catalog):
    rows = [
        span("a", 0, 3, blink_count=10, blink_s=40.0, blink_score=0.2, face_s=40.0, micro_irregularity=1.0,
             n_faces=1, lost_s=2.0, analyzed_s=58.0),
        span("a", 1, 3, blink_count=0, blink_s=20.0, blink_score=0.8, face_s=20.0, micro_irregularity=4.0, n_faces=3),
        span("a", 2, 3, blink_count=None, blink_s=None, blink_rate=None, blink_score=None, face_s=5.0,
             micro_irregularity=None),
    ]  # fmt: skip
    connection = catalog(rows)
    assert videos(connection, "blink_count", "blink_rate", "n_faces") == [(10, 10.0, 3)]
    assert videos(connection, "blink_score", "micro_irregularity") == [(0.4, 2.0)]
    assert videos(connection, "face_seconds", "analyzed_seconds", "lost_seconds") == [(65.0, 178.0, 2.0)]


def test_blink_figures_are_null_where_blinks_could_not_be_seen(catalog):
    row = span("a", blink_count=None, blink_s=0.0, blink_rate=None, blink_score=None)
    assert videos(catalog([row]), "blink_count", "blink_rate", "blink_score") == [(None, None, None)]


def test_someone_who_never_blinks_has_rate_zero(catalog):
    assert videos(catalog([span("a", blink_count=0)]), "blink_count", "blink_rate") == [(0, 0.0)]


def test_top_t_is_the_earliest_of_equal_clips(catalog):
    rows = [span("a", 0, 2, clips=[clip(9, 0.9), clip(4, 0.9)]), span("a", 1, 2, clips=[clip(70, 0.9)])]
    assert videos(catalog(rows), "top_t") == [(4.0,)]


def test_two_decoders_are_both_named(catalog):
    rows = [span("a", 0, 2, decoder="pyav"), span("a", 1, 2, decoder="decord")]
    assert videos(catalog(rows), "decoder") == [("decord, pyav",)]


def test_pending_spans_while_a_scan_is_under_way(catalog):
    assert videos(catalog([span("a", 0, 600), span("a", 7, 600)]), "pending_spans") == [(598,)]


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", "two\nlines", 'it\'s "quoted"', "видео 日本 \u202egpj", "\x1b[31m"]
)
def test_hostile_names_are_kept_as_they_are(catalog, name):
    connection = catalog([span(name, clips=[clip(1, 0.9)]), span("other", status="timeout", error=name)])
    assert (name,) in videos(connection, "uri")
    assert ask(connection, "SELECT error FROM failures") == [{"error": name}]
    assert ask(connection, "SELECT uri FROM clips") == [{"uri": name}]


# --- the nested views -----------------------------------------------------------------------------------


def test_nested_rows_come_out_one_by_one(catalog):
    box = {"x": 0.5, "y": 0.25, "w": 0.125, "h": 0.5}
    face = {"face_id": "0-1", "t_start": 1.0, "t_end": 9.0, "face_s": 8.0, "score": 0.7, "cnn_score": 0.6,
            "blink_count": 2, "blink_rate": 15.0, "blink_score": 0.1, "blink_s": 8.0, "blink_t": [2.0, 5.0],
            "blink_d": [0.25, 0.5], "micro_irregularity": 1.5, "signals": [
            {"t": 1.0, "ear": 0.25, "motion": 0.0, "yaw": 8.0}, {"t": 1.5, "ear": 0.5, "motion": 2.0, "yaw": None}
    ]} | box  # fmt: skip
    frame = {"face_id": "0-1", "t": 2.0, "score": 0.5, "ear": 0.25, "blink": True} | box
    picture = {"face_id": "0-1", "t": 2.0, "score": 0.5, "image": b"\xff\xd8crop", "heatmap": None}
    connection = catalog([span("a", faces=[face], frames=[frame, frame], thumbnails=[picture]), span("b")])
    assert ask(connection, "FROM frames") == [{"uri": "a", "run_id": "run-001"} | frame] * 2
    assert ask(connection, "FROM thumbnails") == [{"uri": "a", "run_id": "run-001"} | picture]
    assert ask(connection, "SELECT t, ear, motion, yaw FROM signals ORDER BY t") == [
        {"t": 1.0, "ear": 0.25, "motion": 0.0, "yaw": 8.0}, {"t": 1.5, "ear": 0.5, "motion": 2.0, "yaw": None}
    ]  # fmt: skip
    (found,) = ask(connection, "SELECT blink_times, blink_durations, face_seconds, blink_rate, x, h FROM faces")
    assert found == {"blink_times": [2.0, 5.0], "blink_durations": [0.25, 0.5], "face_seconds": 8.0,
                     "blink_rate": 15.0, "x": 0.5, "h": 0.5}  # fmt: skip


@pytest.mark.parametrize("sql", ["SELECT uri, score FROM videos", "SELECT count(*) FROM frames", "FROM clips"])
def test_pictures_are_not_read_unless_asked_for(catalog, sql):
    plan = catalog([span("a")]).sql(f"EXPLAIN {sql}").fetchall()[0][1]
    assert "thumbnails" not in plan
    assert "worker_s" not in plan


# --- failures and runs ----------------------------------------------------------------------------------


def test_a_retry_that_succeeds_is_no_failure(catalog):
    connection = catalog([span("a", status="timeout", error="slow")], [span("a", run=2)])
    assert ask(connection, "FROM failures") == []
    assert videos(connection, "status", "error") == [("ok", None)]


def test_attempts_count_runs_not_rows(catalog):
    first = [span("a", i, 2, status="timeout") for i in (0, 1)]
    connection = catalog(first, first, [span("a", 0, 2, run=2, status="crashed", error="died")])
    assert ask(connection, "SELECT status, attempts, run_id FROM failures") == [
        {"status": "crashed", "attempts": 2, "run_id": "run-002"}
    ]


def test_attempts_at_an_older_file_do_not_count(catalog):
    connection = catalog([span("a", status="timeout")], [span("a", run=2, content_tag="tag-2", status="timeout")])
    assert ask(connection, "SELECT attempts FROM failures") == [{"attempts": 1}]


def test_videos_without_a_face_are_not_failures(catalog):
    connection = catalog([span("a", status="no_face"), span("b", status="too_short")])
    assert ask(connection, "FROM failures") == []


def test_a_run_under_way_has_no_end(results: Path):
    write_run(results, 1)
    write_run(results, 2, finished_at=None, interrupted=None)
    rows = ask(open_catalog(str(results)), "FROM runs ORDER BY run_id")
    assert [row["finished_at"] is None for row in rows] == [False, True]
    assert rows[0]["settings"] == '{"fps":15,"span_seconds":60}'
    assert rows[0]["video_hours_per_hour"] == 0.25
