"""What a scan tells: the status line, JSON events, silence; and the table at the end."""

from __future__ import annotations

import json

import pytest

from scanner.config import ScanConfig
from scanner.progress import Progress
from scanner.summary import print_summary, summarize
from tests.queries.rows import clip, span, write_part, write_run


def tell(progress: Progress, uri: str, missing: int = 0, *, status: str = "ok", flagged: int = 0) -> None:
    progress.span(uri, missing, status, failed=status != "ok", flagged=flagged, seconds=60.0)


# --- while it runs --------------------------------------------------------------------------------------


def test_a_video_is_done_with_its_last_span_in_whatever_order_they_come():
    progress = Progress(quiet=True)
    progress.videos = 3
    for uri, missing in (("a", 2), ("b", 0), ("a", 2), ("c", 1), ("a", 2)):
        tell(progress, uri, missing)
    assert (progress.videos_done, progress.spans_done) == (2, 5)
    tell(progress, "c", 1)
    assert progress.videos_done == 3
    assert progress.seconds == 360


def test_the_status_line_says_what_is_done_found_and_left():
    progress = Progress(quiet=True)
    assert progress.line().startswith("listing: looking for videos")
    progress.videos = 1200
    assert progress.line().startswith("listing: 1,200 videos to scan")
    tell(progress, "a", flagged=3)
    tell(progress, "b", status="timeout")
    assert "2/1,200+ videos" in progress.line()  # more may be found
    progress.listing = False
    line = progress.line()
    assert "2/1,200 videos" in line and "video-hours per hour" in line
    assert "3 clips flagged" in line and "1 spans failed" in line and line.endswith(" left")


def test_json_events_are_one_a_line_on_stdout_and_nothing_else(capsys):
    with Progress(as_json=True) as progress:
        progress.event("start", run_id="run-1")
        tell(progress, "a", flagged=2)
    out, err = capsys.readouterr()
    assert [json.loads(line) for line in out.splitlines()] == [
        {"event": "start", "run_id": "run-1"},
        {"event": "span", "uri": "a", "status": "ok", "flagged": 2, "seconds": 60.0},
    ]
    assert err == ""


@pytest.mark.parametrize("options", [{}, {"quiet": True}])
def test_text_never_goes_to_stdout(capsys, options):
    with Progress(**options) as progress:
        progress.event("start", run_id="run-1")
        tell(progress, "a")
    assert capsys.readouterr().out == ""


# --- at the end -----------------------------------------------------------------------------------------

RECORD = {"video_hours": 0.5, "wall_s": 90.0, "video_hours_per_hour": 20.0, "model": "builtin-1", "interrupted": False}


def summary_text(results, capsys, **record) -> str:
    print_summary(summarize(str(results), "run-001"), RECORD | record, ScanConfig(out=str(results)))
    return capsys.readouterr().out


@pytest.fixture
def results(tmp_path):
    write_run(tmp_path)
    write_part(
        tmp_path,
        [
            span("/archive/2024/calm.mp4", score=0.1),
            span("/archive/2024/fake.mp4", score=0.93, verdict="fake", clips=[clip(3, 0.95), clip(5, 0.2)]),
            span("/archive/2025/[red]odd\x1b[31m.mp4", status="timeout", error="stopped after 600 s"),
            span("/archive/2025/long.mp4", 0, 2),
            span("/archive/2025/long.mp4", 1, 2),
        ],
    )
    return tmp_path


def test_the_table_ranks_the_videos_of_the_run(results, capsys):
    text = summary_text(results, capsys)
    lines = text.splitlines()
    assert lines[0].split() == ["video", "status", "verdict", "score", "blinks", "micro", "faces"]
    assert lines[1].split()[:4] == ["2024/fake.mp4", "ok", "fake", "0.930"]
    assert lines[4].split()[1:3] == ["timeout", "–"]
    assert lines[5].endswith(".mp4: stopped after 600 s")
    assert sum("long.mp4" in line for line in lines) == 1
    assert "4 videos (3 ok, 1 timeout), 1 clips flagged" in text
    assert "30.0 minutes of video in 90 s" in text
    assert f"deepsweep query summary --results {results}" in " ".join(text.split())


def test_names_from_strangers_cannot_drive_the_terminal(results, capsys):
    text = summary_text(results, capsys)
    assert "\x1b" not in text
    assert "[red]odd" in text  # markup of the table's own language stays text


@pytest.mark.parametrize("others", [(), ("/archive/a.mp4",), ("/archive/closed/b.mp4",)])
def test_a_folder_that_could_not_be_listed_keeps_its_name(tmp_path, capsys, others):
    row = {"status": "missing", "error": "folder could not be read: Permission denied"}
    write_part(tmp_path, [span("/archive/closed/", **row), *map(span, others)])
    assert "\nclosed/: folder could not be read: Permission denied\n" in summary_text(tmp_path, capsys)


def test_an_untrained_model_and_an_interruption_are_said(results, capsys):
    plain = summary_text(results, capsys)
    assert "no video was given" not in plain and "Interrupted" not in plain
    assert "no video was given a verdict" in summary_text(results, capsys, model="untrained")
    assert "The same command goes on from here" in summary_text(results, capsys, interrupted=True)


def test_a_long_run_is_cut_and_another_runs_videos_are_left_out(tmp_path, capsys):
    write_run(tmp_path)
    write_part(tmp_path, [span(f"/a/{i:03}.mp4") for i in range(50)])
    write_part(tmp_path, [span("/a/later.mp4", run=2)], "part-1")
    text = summary_text(tmp_path, capsys)
    assert "… and 30 more" in text and "50 videos (50 ok)" in text and "later" not in text
