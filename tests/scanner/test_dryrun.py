"""`scan --dry-run`: counts and an estimate, without a scan."""

from __future__ import annotations

import json

from click.testing import CliRunner

from scanner.cli import main
from tests.queries.rows import write_run
from tests.zoo import ARCHIVE, ZOO

TALKS = [clip for clip in ZOO.values() if clip.path.startswith("talks/")]
MINUTES = (12 + 12 + 12 + 10) / 60


def dry_run(*arguments: str) -> str:
    result = CliRunner().invoke(main, ["scan", *arguments, "--dry-run"])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_it_says_what_would_be_scanned_and_scans_nothing(tmp_path):
    text = dry_run(str(ARCHIVE / "talks"), "--out", str(tmp_path / "results"))
    assert text.startswith(f"{len(TALKS)} videos to scan, 0.00 GB")
    assert f"about {MINUTES / 60:.2f} hours of video, from the headers of {len(TALKS)} of them" in text
    assert text.rstrip().endswith("nothing was scanned (--dry-run)")
    assert not list((tmp_path / "results").rglob("*.parquet"))


def test_as_json_it_is_one_event_and_broken_files_do_not_stop_it(tmp_path):
    out = dry_run(str(ARCHIVE / "broken"), "--out", str(tmp_path / "results"), "--json")
    event = json.loads(out)
    broken = [clip for clip in ZOO.values() if clip.path.startswith("broken/")]
    assert (event["event"], event["videos"], event["done_before"]) == ("dry_run", len(broken), 0)
    assert event["bytes"] == sum((ARCHIVE / clip.path).stat().st_size for clip in broken)
    assert event["sampled"] == sum(bool(clip.times) for clip in broken)


def test_nothing_to_scan_is_no_division_by_zero(tmp_path):
    results = tmp_path / "results"
    write_run(results)
    (tmp_path / "empty").mkdir()
    text = dry_run(str(tmp_path / "empty"), "--out", str(results))
    assert text.startswith("0 videos to scan")
