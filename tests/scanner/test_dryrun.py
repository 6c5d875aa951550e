"""`scan --dry-run`: counts, estimates with their basis, the plan, without a scan."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from cluster import preflight
from scanner import headers, storage
from scanner.cli import main
from scanner.config import ScanConfig
from scanner.decode import probe
from scanner.dryrun import MEASURED_FROM_S, SAMPLE, measured_speed, student, total_seconds
from scanner.errors import EXIT_PREFLIGHT, UserError
from scanner.headers import Duration
from scanner.records import RunFacts
from scanner.sources import Video, iter_videos
from tests.queries.rows import write_run
from tests.s3 import BUCKET
from tests.zoo import ARCHIVE, ZOO

TALKS = [clip for clip in ZOO.values() if clip.path.startswith("talks/")]
MINUTES = (12 + 12 + 12 + 10) / 60


def dry_run(*arguments: str | Path, code: int = 0) -> str:
    result = CliRunner().invoke(main, ["scan", *map(str, arguments), "--dry-run"])
    assert result.exit_code == code, result.output
    return result.output


def test_it_says_what_would_be_scanned_and_scans_nothing(tmp_path):
    text = dry_run(ARCHIVE / "talks", "--out", tmp_path / "results", "--price-per-hour", "4.5")
    assert text.startswith(f"{len(TALKS)} videos to scan, 0.00 GB")
    assert f"about {MINUTES / 60:.2f} hours of video, from the headers of {len(TALKS)} of them\n" in text
    assert "on this machine, with " in text and " analysing actors, " in text
    assert "going by the documented figure" in text
    assert "costs about 0.0" in text and "at 4.5 an hour" in text
    assert text.rstrip().endswith("nothing was scanned (--dry-run)")
    assert not list((tmp_path / "results").rglob("*.parquet"))


def test_as_json_it_is_one_event_and_broken_files_do_not_stop_it(tmp_path):
    event = json.loads(dry_run(ARCHIVE / "broken", "--out", tmp_path / "results", "--json"))
    broken = [clip for clip in ZOO.values() if clip.path.startswith("broken/")]
    assert (event["event"], event["videos"], event["done_before"]) == ("dry_run", len(broken), 0)
    assert event["bytes"] == sum((ARCHIVE / clip.path).stat().st_size for clip in broken)
    assert event["sampled"] == len(broken) and event["broken"] == sum(not clip.times for clip in broken)
    assert event["plan"]["analyzers"] >= 1 and event["plan"]["device"] in ("cpu", "cuda")
    assert event["hours"]["low"] == event["hours"]["value"] == event["hours"]["high"], "every header was read"
    assert event["cost"] is None, "nobody named a price"


def test_nothing_to_scan_is_no_division_by_zero(tmp_path):
    results = tmp_path / "results"
    write_run(results)
    (tmp_path / "empty").mkdir()
    text = dry_run(tmp_path / "empty", "--out", results)
    assert text.startswith("0 videos to scan")


def test_what_the_scan_would_refuse_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "missing_codecs", lambda: ("h264",))
    said = dry_run(ARCHIVE / "talks", "--out", tmp_path / "results", code=EXIT_PREFLIGHT)
    assert "this machine: PyAV can't decode h264" in said and "pip install" in said


def test_a_bucket_is_probed_without_fetching_it(s3, tmp_path):
    for clip in TALKS:
        s3.upload_file(str(ARCHIVE / clip.path), BUCKET, f"talks/{Path(clip.path).name}")
    event = json.loads(dry_run(f"s3://{BUCKET}/talks", "--out", tmp_path / "results", "--json"))
    assert event["sampled"] == len(TALKS) and event["broken"] == 0
    assert event["hours"]["value"] == pytest.approx(MINUTES / 60, rel=0.01)


@pytest.mark.parametrize("name", ["talks/real_blinks.mp4", "formats/vp9.webm", "formats/mpegts.ts", "formats/av1.mp4"])
def test_the_two_ends_of_a_video_tell_its_duration(name, monkeypatch):
    path = ARCHIVE / name
    fetched = []

    class Bucket:
        def get_object(self, **request: str) -> dict:
            first, last = map(int, request["Range"].removeprefix("bytes=").split("-"))
            data = path.read_bytes()[first : last + 1]
            fetched.append(len(data))
            return {"Body": io.BytesIO(data)}

    monkeypatch.setattr(storage, "s3_client", Bucket)
    size = path.stat().st_size
    with headers._ends(Video(f"s3://b/{name}", "tag", size), size // 3) as stand_in:
        assert stand_in.stat().st_size == size and sum(fetched) < 0.7 * size
        assert probe(stand_in).duration_s == probe(path).duration_s
    assert not stand_in.exists()


def test_a_header_whose_body_breaks_off_is_asked_for_again(proxy, s3):
    path = ARCHIVE / TALKS[0].path
    s3.upload_file(str(path), BUCKET, "a.mp4")
    proxy.faults.extend(["truncate", "reset"])
    (found,) = headers.durations(list(iter_videos([f"s3://{BUCKET}"])), memory_limit=1 << 30)
    assert found == Duration(path.stat().st_size, probe(path).duration_s) and not proxy.faults


# --- estimates ------------------------------------------------------------------------------------------

samples = st.lists(st.builds(Duration, st.integers(1, 1 << 40), st.floats(0, 1e5)), min_size=3, max_size=SAMPLE)


@given(samples, st.integers(0, 10_000))
def test_the_interval_holds_the_estimate_and_never_less_than_what_was_seen(sample, others):
    seen = sum(one.seconds for one in sample)
    size = sum(one.size_bytes for one in sample)
    found = total_seconds(sample, len(sample) + others, size * (1 + others))
    assert found is not None and found.low is not None and found.high is not None
    assert found.low <= found.value * (1 + 1e-9) and found.value <= found.high * (1 + 1e-9)
    assert found.low >= seen * (1 - 1e-9)
    if not others:
        assert found.low == found.high == pytest.approx(seen)


@given(st.integers(1, 1 << 30), st.floats(0.1, 1e4), st.integers(21, 10_000))
def test_where_all_are_alike_the_interval_is_a_point(size, seconds, videos):
    found = total_seconds([Duration(size, seconds)] * SAMPLE, videos, size * videos)
    assert found is not None and found.value == pytest.approx(seconds * videos)
    assert found.high == pytest.approx(found.low)


def test_a_sample_that_tells_nothing_gives_no_figure():
    assert total_seconds([], 5, 100) is None
    assert total_seconds([Duration(0, 0.0)], 5, 100) is None
    one = total_seconds([Duration(10, 5.0)], 4, 40)
    assert one is not None and (one.value, one.low, one.high) == (20.0, None, None)


@pytest.mark.parametrize(("freedom", "t"), [(2, 4.303), (4, 2.776), (9, 2.262), (19, 2.093)])
def test_quantiles_are_those_of_the_tables(freedom, t):
    assert student(freedom) == pytest.approx(t, rel=0.04)
    assert math.isclose(student(19), 2.093, abs_tol=0.001)


@pytest.fixture(scope="module")
def facts() -> RunFacts:
    return RunFacts.of(ScanConfig(sources=("x",)))


def measured(results: Path, facts: RunFacts, run: int, **values: object) -> None:
    same = {"model_digest": facts.spec.digest, "settings_digest": facts.settings_digest}
    plan = {"analyzers": 10, "device": "cpu"}
    write_run(results, run, **{**same, "plan": plan, "wall_s": 7200.0, "video_hours": 40.0, **values})


def test_a_run_of_ones_own_is_the_basis_where_there_is_one(tmp_path, facts):
    assert measured_speed(str(tmp_path), facts, "cpu") is None
    write_run(tmp_path, 1)  # of a version that did not note its plan
    measured(tmp_path, facts, 2)
    measured(tmp_path, facts, 3, wall_s=MEASURED_FROM_S / 2)
    measured(tmp_path, facts, 4, settings_digest="other settings")
    measured(tmp_path, facts, 5, plan={"analyzers": 10, "device": "cuda"})
    (tmp_path / "runs" / "run-006.json").write_text("{")
    speed = measured_speed(str(tmp_path), facts, "cpu")
    assert speed is not None and speed.per_analyzer == pytest.approx(40 * 3600 / 7200 / 10)
    assert speed.basis == f"run run-002 in {tmp_path}: 40.0 hours in 2.0 hours with 10 analysing actors"


def test_records_of_a_bucket_that_refuses_are_one_sentence(proxy, s3, facts):
    s3.put_object(Bucket=BUCKET, Key="night/runs/run-001.json", Body=b"{}")
    proxy.listing_fault = "403 AccessDenied"
    proxy.faults.append("403 AccessDenied")
    for permission in ("s3:ListBucket", "s3:GetObject"):
        with pytest.raises(UserError, match=f"AccessDenied. deepsweep needs {permission} on {BUCKET}") as caught:
            measured_speed(f"s3://{BUCKET}/night", facts, "cpu")
        assert caught.value.exit_code == EXIT_PREFLIGHT
        proxy.listing_fault = ""
    assert measured_speed(f"s3://{BUCKET}/night", facts, "cpu") is None
