"""`deepsweep clips` as typed: from RESULTS to files that play, with sidecars and subtitles."""

from __future__ import annotations

import getpass
import json
import os
import shutil
from pathlib import Path
from typing import Any

import av
import pytest
from click.testing import CliRunner, Result

from scanner.config import ScanConfig
from scanner.cut_command import clips
from scanner.cut_files import Cutter, Order
from scanner.errors import EXIT_NOTHING_TO_SCAN, EXIT_OK, EXIT_SOME_FAILED, EXIT_USAGE, UserError
from scanner.scan import scratch_base
from scanner.stretches import Stretch
from tests.queries.rows import clip, span, write_part, write_run
from tests.s3 import BUCKET
from tests.zoo import ARCHIVE, ZOO


def run(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(clips, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit | UserError):
        raise result.exception
    return result


def error(*arguments: str | Path, code: int = EXIT_USAGE) -> str:
    found = run(*arguments).exception
    assert isinstance(found, UserError)
    assert found.exit_code == code
    return str(found)


def add(archive: Path, name: str, to: str = "") -> Path:
    path = archive / (to or name)
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(ARCHIVE / ZOO[name].path, path)
    return path


def tag(path: Path) -> str:
    info = path.stat()
    return f"{info.st_size}-{info.st_mtime_ns}"


def flagged(path: Path, *flagged_clips: dict[str, Any], score: float = 0.9) -> dict[str, Any]:
    return span(str(path), score=score, verdict="fake", content_tag=tag(path), clips=list(flagged_clips))


def sidecars(out: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(out.glob("*.json"))]


def pictures(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return tmp_path / "archive"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    write_run(folder)
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "cut"


@pytest.fixture
def two_videos(archive: Path, results: Path) -> list[Path]:
    """A video with two flagged stretches, the first of two clips, and a less suspicious one with one."""
    first, second = add(archive, "real_blinks.mp4"), add(archive, "two_faces.mp4")
    rows = [
        flagged(first, clip(5, 0.95), clip(6.2, 0.8), clip(9, 0.7, face="0-2"), clip(1, 0.1)),
        flagged(second, clip(3, 0.6), score=0.6),
    ]
    write_part(results, rows)
    return [first, second]


# --- files ------------------------------------------------------------------------------------------------


def test_flagged_clips_become_files_with_sidecars(two_videos, results, out):
    result = run("--results", results, "--out", out)
    assert result.exit_code == EXIT_OK, result.output
    assert result.stdout.startswith(f"3 clips in {out} (3 copied;")
    first, second, third = sidecars(out)
    assert [(s["uri"], s["t_start"], s["t_end"]) for s in (first, second, third)] == [
        (str(two_videos[0]), 5.0, 7.2),
        (str(two_videos[0]), 9.0, 10.0),
        (str(two_videos[1]), 3.0, 4.0),
    ]
    assert (first["file_t_start"], first["file_t_end"]) == (4.0, pytest.approx(8.2, abs=0.1))
    assert first["changed_since_scan"] is False
    assert [(row["face_id"], row["score"], row["video_score"]) for row in first["rows"]] == [
        ("0-1", 0.95, 0.9),
        ("0-1", 0.8, 0.9),
    ]
    for sidecar in (first, second, third):
        path = out / sidecar["file"]
        assert path.stat().st_size == sidecar["size_bytes"]
        assert pictures(path) == pytest.approx(25 * (sidecar["file_t_end"] - sidecar["file_t_start"]), abs=3)
    assert len(list(out.iterdir())) == 6


def test_again_leaves_finished_files_alone_and_mends_what_is_not(two_videos, results, out):
    run("--results", results, "--out", out)
    stamps = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    broken = next(out.glob("two_faces*.mp4"))
    broken.write_bytes(b"half")
    result = run("--results", results, "--out", out)
    assert "1 copied, 2 there already" in result.stdout
    changed = [path for path, stamp in stamps.items() if path.stat().st_mtime_ns != stamp]
    assert broken in changed
    assert {path.name[:9] for path in changed} == {"two_faces"}
    assert broken.stat().st_size > 4


def test_another_order_replaces_the_files(two_videos, results, out):
    run("--results", results, "--out", out, "--limit", 1)
    before = sidecars(out)[0]
    result = run("--results", results, "--out", out, "--limit", 1, "--pad", 0, "--reencode")
    assert "1 encoded anew" in result.stdout
    (after,) = sidecars(out)
    assert before["file"] == after["file"]
    assert (after["file_t_start"], after["file_t_end"]) == (5.0, pytest.approx(7.2, abs=0.05))
    assert pictures(out / after["file"]) == 55


def test_limit_takes_the_first_of_the_query(two_videos, results, out):
    sql = "SELECT uri, t_start, t_end, score FROM clips WHERE flagged ORDER BY score"
    run(sql, "--results", results, "--out", out, "--limit", 2)
    assert sorted(s["t_start"] for s in sidecars(out)) == [3.0, 9.0]


def test_merge_gap_joins_stretches(two_videos, results, out):
    run("clips", "-p", "uri=*blinks*", "--results", results, "--out", out, "--merge-gap", 3)
    (sidecar,) = sidecars(out)
    assert (sidecar["t_start"], sidecar["t_end"], len(sidecar["rows"])) == (5.0, 10.0, 3)
    assert "face0-1+0-2" in sidecar["file"]


def test_a_video_without_flagged_clips_gives_its_highest_one(archive, results, out):
    write_part(results, [flagged(add(archive, "two_faces.mp4"), clip(1, 0.2), clip(5, 0.4))])
    run("--results", results, "--out", out)
    assert [(s["t_start"], s["rows"][0]["flagged"]) for s in sidecars(out)] == [(5.0, False)]


def test_hostile_names_and_twins_stay_in_the_folder(archive, results, out):
    hostile = ["a/x.mp4", "b/x.mp4", "…\n\x1b[31m..\\;$(rm) .mp4", "-rf.mp4", f"{'ü' * 120}.mp4"]
    paths = [add(archive, "short.mp4", name) for name in hostile]
    write_part(results, [flagged(path, clip(0, 0.9)) for path in paths])
    result = run("--results", results, "--out", out, "--subtitles", "--pad", 0)
    assert result.exit_code == EXIT_OK, result.output
    assert {sidecar["uri"] for sidecar in sidecars(out)} == set(map(str, paths))
    assert len(list(out.iterdir())) == 3 * len(hostile)
    assert "\x1b" not in result.output


def test_any_sql_with_the_three_columns_will_do(two_videos, results, out):
    sql = "SELECT uri, 2 AS t_start, 3 AS t_end, 'NaN'::DOUBLE AS odd, now() AS at, 1.5::DECIMAL(3, 1) AS d FROM videos"
    assert run(sql, "--results", results, "--out", out).exit_code == EXIT_OK
    assert [sidecar["rows"][0]["odd"] for sidecar in sidecars(out)] == [None, None]


# --- subtitles --------------------------------------------------------------------------------------------


def test_subtitles_mark_the_stretches_of_the_whole_video(two_videos, results, out):
    result = run("--results", results, "--out", out, "--subtitles")
    assert "2 subtitle files" in result.stdout
    (path,) = out.glob("real_blinks_*.srt")
    assert path.read_text() == (
        "1\n00:00:05,000 --> 00:00:07,200\nflagged · face 0-1 · score 0.95\n\n"
        "2\n00:00:09,000 --> 00:00:10,000\nflagged · face 0-2 · score 0.70\n"
    )


@pytest.mark.parametrize(
    ("question", "says"),
    [
        ("clips", "flagged · face 0-1 · score 0.95"),
        ("reviewed", "flagged · face 0-1 · score 0.95"),
        ("SELECT uri, t_start, t_end, face_id FROM clips ORDER BY score DESC", "face 0-1"),
    ],
)
def test_subtitles_call_flagged_only_what_the_query_says_is(question, says, two_videos, results, out):
    run(question, "--results", results, "--out", out, "--subtitles", "--limit", 1)
    (path,) = out.glob("*.srt")
    assert path.read_text().splitlines()[2] == says


# --- the user's own queries -------------------------------------------------------------------------------


def test_a_query_of_the_users_own_says_what_to_cut(two_videos, results, out, tmp_path):
    folder = tmp_path / "sweep"
    folder.mkdir()
    (folder / "loudest.sql").write_text(
        "-- Where to look first.\n-- param limit = 1  how many\n"
        "SELECT uri, t_start, t_end, score FROM clips ORDER BY score DESC LIMIT $limit"
    )
    result = run("loudest", "--queries", folder, "--results", results, "--out", out)
    assert result.exit_code == EXIT_OK
    assert "raise -p limit=1" in result.stdout
    assert [sidecar["t_start"] for sidecar in sidecars(out)] == [5.0]
    assert "no query named loudest" in error("loudest", "--results", results, "--out", out)


# --- what goes wrong --------------------------------------------------------------------------------------


def test_videos_that_cannot_be_cut_are_named_and_the_others_go_on(archive, results, out):
    good, text, gone = add(archive, "short.mp4"), add(archive, "text.mp4"), add(archive, "vp9.webm")
    rows = [flagged(path, clip(0, 0.9)) for path in (gone, text, good)]
    write_part(results, rows)
    gone.unlink()
    result = run("--results", results, "--out", out, "--quiet")
    assert result.exit_code == EXIT_SOME_FAILED
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert f"deepsweep: {gone}, 0.00 to 1.00 s: could not be read: No such file or directory" in lines
    assert any(line.startswith(f"deepsweep: {text}, 0.00 to 1.00 s: not a video") for line in lines)
    assert [sidecar["uri"] for sidecar in sidecars(out)] == [str(good)]
    assert not list(out.glob(".*"))


def test_what_is_finished_stays_when_the_video_goes(two_videos, results, out):
    run("--results", results, "--out", out)
    for path in two_videos:
        path.unlink()
    result = run("--results", results, "--out", out)
    assert result.exit_code == EXIT_OK
    assert "3 there already" in result.stdout


def test_a_changed_video_is_cut_with_a_warning(two_videos, results, out):
    os.utime(two_videos[1], (1, 1))
    result = run("--results", results, "--out", out)
    assert result.exit_code == EXIT_OK
    warnings = [line for line in result.stderr.splitlines() if "has changed since it was scanned" in line]
    assert len(warnings) == 1
    assert str(two_videos[1]) in warnings[0]
    assert [sidecar["changed_since_scan"] for sidecar in sidecars(out)] == [False, False, True]


def test_rows_that_name_no_stretch_are_named(two_videos, results, out):
    sql = "SELECT uri, t_start, CASE WHEN score > 0.9 THEN NULL ELSE t_end END AS t_end FROM clips WHERE score > 0.75"
    result = run(sql, "--results", results, "--out", out)
    assert result.exit_code == EXIT_SOME_FAILED
    assert "t_start or t_end is not a number" in result.stderr
    assert len(sidecars(out)) == 1


@pytest.mark.parametrize(
    ("question", "says"),
    [
        ("SELECT uri FROM videos", "gives no t_start and no t_end, but uri."),
        ("SELECT uri, t_start FROM clips", "gives no t_end"),
        ("summary", "gives no uri"),
        ("SELECT uri, 'a' AS t_start, 1 AS t_end FROM clips", "t_start must be seconds"),
        ("SELECT 1 AS uri, 1 AS t_start, 1 AS t_end", "uri must be text"),
        ("flaged", "Did you mean flagged"),
        ("DROP VIEW clips", "only read"),
    ],
)
def test_a_query_that_names_no_stretches_is_a_usage_error(question, says, two_videos, results, out):
    assert says in error(question, "--results", results, "--out", out)
    assert not out.exists()


def test_nothing_flagged_is_nothing_to_cut(archive, results, out):
    write_part(results, [span("/a/v.mp4", clips=[clip(1, 0.1)])])
    assert "nothing to cut" in error("--results", results, "--out", out, code=EXIT_NOTHING_TO_SCAN)
    assert not out.exists()


def test_an_untrained_model_is_named_as_the_reason(archive, results, out):
    write_part(results, [span("/a/v.mp4", model="untrained", clips=[clip(1, 0.9)])])
    assert "untrained model" in error("--results", results, "--out", out, code=EXIT_NOTHING_TO_SCAN)


def test_a_reached_limit_is_told(two_videos, results, out):
    result = run("--results", results, "--out", out, "-p", "limit=1")
    assert "There may be more: raise -p limit=1." in result.stdout


def test_a_login_without_a_name_cuts_too(two_videos, results, out, monkeypatch):
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 4711")

    monkeypatch.setattr(getpass, "getuser", nobody)
    assert run("--results", results, "--out", out, "--limit", 1).exit_code == EXIT_OK
    assert scratch_base(ScanConfig(sources=("a",), out="b")).name == f"deepsweep-scratch-{os.getuid()}"


def test_a_date_that_python_does_not_know_is_one_sentence(two_videos, results, out):
    sql = "SELECT uri, t_start, t_end, DATE '290000-01-01' AS day FROM clips"
    assert "outside the years 1 to 9999" in error(sql, "--results", results, "--out", out)


def test_an_empty_out_is_not_the_current_folder(two_videos, results):
    assert "--out is empty" in error("--results", results, "--out", "")


@pytest.mark.parametrize("seconds", ["nan", "inf"])
def test_padding_is_a_number(seconds, two_videos, results, out):
    assert "give a number" in error("--results", results, "--out", out, "--pad", seconds)


def test_the_out_folder_must_not_be_a_file(two_videos, results, out):
    out.write_text("here first")
    assert "must be a folder" in error("--results", results, "--out", out)


# --- S3 ---------------------------------------------------------------------------------------------------


def test_from_a_bucket_into_a_bucket(s3, results, tmp_path):
    key = "2024/böse name.mp4"
    s3.upload_file(str(ARCHIVE / ZOO["real_blinks.mp4"].path), BUCKET, key)
    etag = s3.head_object(Bucket=BUCKET, Key=key)["ETag"].strip('"')
    uri = f"s3://{BUCKET}/{key}"
    row = {"score": 0.9, "verdict": "fake"}
    lost = span(f"s3://{BUCKET}/2024/gone.mp4", clips=[clip(1, 0.8)], **row)
    write_part(results, [span(uri, content_tag=etag, clips=[clip(5, 0.95)], **row), lost])
    out = f"s3://{BUCKET}/cases/17"
    result = run("--results", results, "--out", out, "--subtitles")
    assert result.exit_code == EXIT_SOME_FAILED
    assert f"s3://{BUCKET}/2024/gone.mp4, 1.00 to 2.00 s: could not be read: it does not exist" in result.stderr

    keys = [entry["Key"] for entry in s3.list_objects_v2(Bucket=BUCKET, Prefix="cases/")["Contents"]]
    (sidecar_key,) = [key for key in keys if key.endswith(".json")]
    assert len([key for key in keys if key.endswith(".srt")]) == 2
    sidecar = json.loads(s3.get_object(Bucket=BUCKET, Key=sidecar_key)["Body"].read())
    assert (sidecar["uri"], sidecar["content_tag"], sidecar["changed_since_scan"]) == (uri, etag, False)
    s3.download_file(BUCKET, f"cases/17/{sidecar['file']}", str(tmp_path / "clip.mp4"))
    assert pictures(tmp_path / "clip.mp4") == 75

    s3.put_object(Bucket=BUCKET, Key=key, Body=(ARCHIVE / ZOO["two_faces.mp4"].path).read_bytes())
    result = run("--results", results, "--out", out)
    assert f"{uri} has changed since it was scanned" in result.stderr
    assert "1 copied" in result.stdout


def test_a_video_of_a_bucket_is_fetched_once_for_clips_asked_for_one_by_one(s3, proxy, tmp_path):
    keys = ["talk.mp4", "two.mp4"]
    for key, name in zip(keys, ("real_blinks.mp4", "two_faces.mp4"), strict=True):
        s3.upload_file(str(ARCHIVE / ZOO[name].path), BUCKET, key)
    with Cutter(Order(str(tmp_path), 0.0, True, {})) as cutter:
        for key, start in (("talk.mp4", 1.0), ("talk.mp4", 3.0), ("two.mp4", 1.0), ("talk.mp4", 5.0)):
            (outcome,) = cutter.cut_video([Stretch(f"s3://{BUCKET}/{key}", start, start + 1.0, ())])
            assert outcome.sidecar, outcome.error
    assert proxy.gets("talk.mp4") == 2  # another one came between
    assert proxy.gets("two.mp4") == 1
