"""Whole scans of the sample archive, as a user runs them: real Ray, real children, real Parquet."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from ray.cluster_utils import Cluster

from models.registry import DEFAULT_MODEL
from scanner import scan as scan_module
from scanner.config import ScanConfig
from scanner.errors import EXIT_INTERRUPTED, EXIT_PREFLIGHT, EXIT_SOME_FAILED, UserError
from scanner.progress import Progress
from scanner.records import RunFacts
from scanner.resume import Done
from scanner.scan import Inventory
from scanner.status import State, read_runs
from tests.bench_input import make_model
from tests.queries.rows import span, write_part
from tests.s3 import BUCKET
from tests.scanner.test_webhook import Receiver
from tests.scans import ROOT, SPANS, begin_scan, deepsweep, interrupted_scan, parts_of, rows, videos
from tests.zoo import ARCHIVE, ZOO

pytestmark = pytest.mark.ray

SHIPPED = {name: clip for name, clip in ZOO.items() if clip.shipped}
VIEWS = ("videos", "clips", "frames", "faces", "thumbnails")


def test_every_video_has_one_row_with_the_right_status(scanned):
    found = rows(scanned[0], "videos")
    assert sorted(row["uri"].rsplit("/", 1)[-1] for row in found) == sorted(SHIPPED)
    for row in found:
        name = row["uri"].rsplit("/", 1)[-1]
        assert row["status"] in SHIPPED[name].status, (name, row["status"], row["error"])
        assert (row["error"] is None) == (row["status"] in ("ok", "no_face", "too_short")), name


def test_faces_seconds_and_decoders(scanned):
    found = videos(scanned[0])
    assert found["two_faces.mp4"]["n_faces"] == 2
    assert found["no_face_stretch.mp4"]["face_seconds"] == pytest.approx(8, abs=0.5)
    assert found["rotated_90.mp4"]["width"] > found["rotated_90.mp4"]["height"]
    assert {row["decoder"] for row in found.values() if row["status"] == "ok"} == {"pyav"}
    assert found["real_blinks.mp4"]["lost_seconds"] == 0
    assert found["truncated_faststart.mp4"]["lost_seconds"] == pytest.approx(4, abs=0.5)
    assert 0 < found["bitrot.mp4"]["lost_seconds"] < 1


def test_every_video_that_could_be_judged_has_a_score_and_a_verdict(scanned):
    results = scanned[0]
    for row in rows(results, "videos"):
        judged = row["status"] == "ok"
        assert (row["score"] is not None) == (row["verdict"] is not None) == judged, row["uri"]
        assert not judged or 0 <= row["score"] <= 1
        assert row["model"] == (DEFAULT_MODEL if judged else row["model"])
    for view, columns in {
        "clips": ("score", "cnn_score"),
        "frames": ("score",),
        "thumbnails": ("score", "image", "heatmap"),
    }.items():
        found = rows(results, view)
        assert found and all(row[column] is not None for row in found for column in columns), view


def test_events_tell_the_run(scanned):
    results, events = scanned
    assert [e["event"] for e in events if e["event"] != "span"] == ["started", "finished"]
    assert {Path(e["uri"]).name for e in events if e["event"] == "span"} == set(SHIPPED)
    assert len(rows(results, "spans")) == sum(e["event"] == "span" for e in events) > len(SHIPPED)
    (record,) = (json.loads(path.read_text()) for path in results.glob("runs/*.json"))
    assert record["finished_at"] and sum(record["counts"].values()) == len(SHIPPED) == record["videos"]


def test_the_same_command_again_scans_nothing(scanned):
    results, _ = scanned
    before = sorted(results.rglob("part-*.parquet"))
    again = deepsweep("scan", ARCHIVE, "--out", results, *SPANS)
    assert again.returncode == 0 and "nothing new" in again.stdout, again.stderr
    assert sorted(results.rglob("part-*.parquet")) == before


@pytest.fixture(scope="module")
def ray_address() -> Iterator[str]:
    """A Ray cluster that several scans use, as `--address` does."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    yield cluster.address
    cluster.shutdown()


def test_a_changed_file_a_new_one_and_failures_are_scanned_again(ray_address, tmp_path):
    results, archive = tmp_path / "results", tmp_path / "archive"
    archive.mkdir()
    shutil.copy(ARCHIVE / "street" / "short.mp4", archive / "a.mp4")
    (archive / "b.mp4").write_bytes(b"")
    scan = ("scan", archive, "--out", results, "--address", ray_address)
    assert deepsweep(*scan).returncode == 3
    shutil.copy(ARCHIVE / "street" / "no_face.mp4", archive / "a.mp4")
    shutil.copy(ARCHIVE / "street" / "short.mp4", archive / "c.mp4")
    assert deepsweep(*scan).returncode == 0
    found = videos(results)
    assert {name: row["status"] for name, row in found.items()} == {
        "a.mp4": "no_face",
        "b.mp4": "decode_error",
        "c.mp4": "too_short",
    }
    retried = deepsweep(*scan, "--retry-failed", "--json")
    events = [json.loads(line) for line in retried.stdout.splitlines()]
    assert [Path(e["uri"]).name for e in events if e["event"] == "span"] == ["b.mp4"]
    assert [row["attempts"] for row in rows(results, "failures")] == [2]


def test_an_interrupted_scan_of_a_bucket_goes_on_and_equals_one_of_a_folder(scanned, s3, tmp_path):
    """Ctrl-C, then kill -9 at another moment, then to the end: nothing lost, nothing twice."""
    for path in sorted(p for p in ARCHIVE.rglob("*") if p.is_file()):
        s3.upload_file(str(path), BUCKET, f"tests/archive/{path.relative_to(ARCHIVE)}")
    scan, results = (f"s3://{BUCKET}/tests/archive", *SPANS), tmp_path / "results"
    kept: set[str] = set()
    for how, after, code in ((signal.SIGINT, 2, 130), (signal.SIGKILL, 6, -9)):
        assert interrupted_scan(results, after, how, *scan) == code
        parts = {p.name for p in results.rglob("part-*.parquet")}
        assert kept < parts
        kept = parts
    assert deepsweep("scan", *scan, "--out", results).returncode in (0, 3)
    parts = [p.name for p in results.rglob("part-*.parquet")]
    assert kept <= set(parts) and len(parts) == len(set(parts)), "a finished span was scanned again"
    for view in VIEWS:
        assert rows(results, view) == rows(scanned[0], view), view


def test_two_scans_at_once_into_one_results_show_each_span_once_and_end_as_one_scan(scanned, tmp_path):
    """Two commands with a Ray each; a video that both have to scan is there twice, and nobody sees that."""
    results, both = tmp_path / "results", "talks/real_blinks.mp4"
    names = (("street/short.mp4", "broken/text.mp4", both), ("street/no_face.mp4", "formats/vp9.webm", both))
    includes = [[word for name in some for word in ("--include", name)] for some in names]
    scans = [begin_scan(results, ARCHIVE, *SPANS, *include) for include in includes]
    seen: set[tuple[str, int]] = set()
    try:
        while any(scan.poll() is None for scan in scans):
            shown = [(row["uri"], row["span_index"]) for row in rows(results, "spans")] if parts_of(results) else []
            assert len(shown) == len(set(shown)) and seen <= set(shown)
            seen = set(shown)
            time.sleep(0.2)
    finally:
        for scan in scans:
            scan.kill()
    assert [scan.wait() for scan in scans] == [3, 0]
    written = [row for part in parts_of(results) for row in pq.ParquetFile(part).read(["uri", "run_id"]).to_pylist()]
    assert len({row["run_id"] for row in written if row["uri"].endswith(both)}) == len(scans), "they did not meet"
    assert seen, "the reader came too late"
    for view in VIEWS:
        wanted = [row for row in rows(scanned[0], view) if row["uri"] in {*names[0], *names[1]}]
        assert wanted and rows(results, view) == wanted, view


def test_hostile_videos_become_rows_and_the_others_finish(s3, tmp_path):
    """Real children that hang, segfault and eat memory; a file that is gone; one over the limit of length."""
    results = f"s3://{BUCKET}/results"
    names = ("hang", "crash", "hungry", "pyav_spins", "fine")
    for name in names:
        shutil.copy(ARCHIVE / "formats" / "vp9.webm", tmp_path / f"{name}.webm")
    manifest = tmp_path / "list.txt"
    listed = [*(f"{name}.webm" for name in names), "gone.mp4", str(ARCHIVE / "talks" / "real_blinks.mp4")]
    manifest.write_text("\n".join(listed))
    done = deepsweep(
        *("scan", manifest, "--out", results, "--max-video-seconds", "10"),
        *("--span-timeout", "15", "--memory-limit", "1GB"),
        PYTHONPATH=f"{ROOT / 'tests' / 'faults'}:{ROOT}",
    )
    assert done.returncode == 3, done.stderr
    found = videos(results)
    assert {name: row["status"] for name, row in found.items()} == {
        "hang.webm": "timeout",
        "crash.webm": "crashed",
        "hungry.webm": "too_large",
        "pyav_spins.webm": "ok",
        "fine.webm": "ok",
        "gone.mp4": "missing",
        "real_blinks.mp4": "too_large",
    }
    assert found["pyav_spins.webm"]["decoder"] == "decord"
    assert "--memory-limit (1.0 GiB)" in found["hungry.webm"]["error"]
    answer = deepsweep("query", "summary", "--results", results, "--format", "json")
    assert answer.returncode == 0 and json.loads(answer.stdout)


def test_a_model_that_calls_itself_trained_gives_verdicts_and_heatmaps(ray_address, tmp_path):
    results = tmp_path / "results"
    talks = ("--include", "talks/real_blinks.mp4", "--include", "talks/fake_selfblend.mp4")
    model = make_model(tmp_path / "model")
    options = ("--model", model, "--threshold", "0", "--fail-on-flag", "--address", ray_address)
    done = deepsweep("scan", ARCHIVE, "--out", results, *talks, *options)
    assert done.returncode == 1, done.stderr
    for row in rows(results, "videos"):
        assert row["verdict"] == "fake" and 0 < row["score"] < 1 and row["flagged_clips"] > 0
    assert all(0 <= row["score"] <= 1 for row in rows(results, "frames"))
    pictures = rows(results, "thumbnails")
    assert len(pictures) == 6
    for picture in pictures:
        assert picture["image"][:3] == picture["heatmap"][:3] == b"\xff\xd8\xff"
    # Where nothing speaks for a fake, the heatmap is empty and its overlay the picture itself.
    assert any(picture["image"] != picture["heatmap"] for picture in pictures)


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("scan", "no/such/folder"), 2, "does not exist"),
        (("scan", "tests/scanner"), 5, "nothing to scan"),
        (("scan", "tests/archive", "--out", "LICENSE"), 2, "LICENSE"),
        (("scan", "tests/archive", "--fsp", "3"), 2, "--fps"),
        (("scan", "tests/archive", "--model", "no-such-model"), 2, "no model"),
        (("scan", "gs://bucket/videos"), 2, "gs://"),
        (("scan", "tests/archive", "--address", "127.0.0.1:1"), 4, "no Ray cluster answers"),
        (("scan", "tests/archive", "--gpus", "1.5"), 2, "neither whole nor a share of one"),
        (("scan", "tests/archive", "--gpus", "99"), 4, "--gpus 99 was asked for"),
        (("scan",), 2, "Name what to scan"),
    ],
)
def test_bad_input_is_one_sentence_and_an_exit_code(arguments, code, sentence, tmp_path):
    out = () if "--out" in arguments else ("--out", tmp_path / "results")
    done = deepsweep(*arguments, *(out if arguments[0] == "scan" else ()))
    assert done.returncode == code, done.stderr
    assert sentence in done.stderr and "Traceback" not in done.stderr


def test_a_bucket_without_access_is_one_sentence(s3, tmp_path):
    done = deepsweep("scan", "s3://no-such-bucket/videos", "--out", tmp_path / "results")
    assert done.returncode in (2, 4) and "no-such-bucket" in done.stderr and "Traceback" not in done.stderr


def test_a_dry_run_scans_nothing(tmp_path):
    done = deepsweep("scan", ARCHIVE, "--out", tmp_path / "results", "--dry-run")
    assert done.returncode == 0 and f"{len(SHIPPED)} videos to scan" in done.stdout, done.stderr
    assert not list((tmp_path / "results").rglob("*.parquet"))


# --- how a scan ends ------------------------------------------------------------------------------------


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


def test_a_scan_that_breaks_off_tells_the_webhook_so(ray_address, receiver, tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    (results / "spans").touch()  # a file where the parts would go: the first one can't be written
    video = ARCHIVE / "street" / "short.mp4"
    options = ("--address", ray_address, "--webhook", receiver.url)
    done = deepsweep("scan", video, "--out", results, *options, NO_PROXY="127.0.0.1")
    assert done.returncode == EXIT_PREFLIGHT and "Traceback" not in done.stderr, done.stderr
    assert "the scan broke off" in done.stderr and "can't be written to any more" in done.stderr
    (body,), (path,) = receiver.bodies, results.glob("runs/*.json")
    told, kept = json.loads(body), json.loads(path.read_text())
    assert told["finished_at"] and "can't be written to any more" in told["broke_off"]
    assert all(told[name] == kept[name] for name in ("run_id", "broke_off", "spans", "plan"))


class Ended:
    """A run over two videos whose pipeline has ended, after so many of them are done and on disk."""

    def __init__(self, folder: Path, done: int, **record: object) -> None:
        (folder / "archive").mkdir()
        names = [str(folder / "archive" / name) for name in ("a.mp4", "b.mp4")]
        for name in names:
            Path(name).touch()
        self.results = folder / "results"
        self.config = ScanConfig(sources=(str(folder / "archive"),), out=str(self.results))
        self.facts = RunFacts.of(self.config)
        self.progress, self.inventory = Progress(quiet=True), Inventory(self.config, Done())
        assert len(list(self.inventory.blocks(self.progress))) == 1
        for name in names[:done]:
            self.progress.span(name, 0, "timeout", failed=True, flagged=0, seconds=0.0)
            rows = [span(name, run_id=self.facts.run_id, status="timeout", error="slow")]
            self.part = write_part(self.results, rows, f"part-{Path(name).stem}")
        begun = scan_module._begin_record(self.config, self.facts)
        self.record = {**begun, "finished_at": scan_module._now(), **self.progress.facts(1.0), **record}

    def conclude(self) -> int:
        return scan_module._conclude(self.config, self.facts, self.inventory, self.progress, self.record)

    def kept(self) -> dict:
        return json.loads((self.results / "runs" / f"{self.facts.run_id}.json").read_text())


def test_a_run_of_which_every_video_has_a_row_is_summed_up(tmp_path, capsys):
    run = Ended(tmp_path, done=2)
    assert run.conclude() == EXIT_SOME_FAILED
    said, kept = capsys.readouterr(), run.kept()
    assert said.err == "" and "2 videos (2 timeout)" in said.out
    assert kept["counts"] == {"timeout": 2} and not kept.keys() & {"so_far", "broke_off"}
    assert [told.state for told in read_runs(str(run.results))] == [State.FINISHED]


def test_videos_that_got_no_row_are_told_and_are_no_success(tmp_path, capsys):
    run = Ended(tmp_path, done=1)
    assert run.conclude() == EXIT_PREFLIGHT
    sentence = "1 videos got no row, or not all of theirs: run the same command again"
    assert capsys.readouterr().err == f"deepsweep: {sentence}.\n"
    assert run.kept()["broke_off"] == sentence and run.kept()["counts"] == {"timeout": 1}
    (told,) = read_runs(str(run.results))
    assert (told.state, told.reason) == (State.BROKE_OFF, sentence)


def test_after_an_interrupt_nobody_counts_what_is_missing(tmp_path, capsys):
    run = Ended(tmp_path, done=1, interrupted=True)
    assert run.conclude() == EXIT_INTERRUPTED
    assert capsys.readouterr().err == "" and "broke_off" not in run.kept()


def test_a_run_that_can_not_be_summed_up_has_ended_all_the_same(tmp_path, capsys):
    run = Ended(tmp_path, done=2)
    run.part.write_bytes(run.part.read_bytes()[:1000])
    assert run.conclude() == EXIT_PREFLIGHT
    (line,) = capsys.readouterr().err.splitlines()
    assert "could not be summed up" in line and "part-b.parquet is damaged or cut short" in line
    kept = run.kept()
    assert kept["finished_at"] and kept["so_far"]["videos_done"] == 2 and kept["flagged_clips"] == 0
    (told,) = read_runs(str(run.results))
    assert (told.state, told.videos, told.counts) == (State.FINISHED, 2, {"timeout": 2})


def test_a_summary_that_fails_in_a_way_that_nobody_foresaw_is_a_sentence_too(tmp_path, capsys, monkeypatch):
    def fail(*_: object) -> None:
        raise MemoryError("no\nmore")

    monkeypatch.setattr("scanner.summary.summarize", fail)
    run = Ended(tmp_path, done=2)
    assert run.conclude() == EXIT_PREFLIGHT
    assert capsys.readouterr().err.endswith("could not be summed up: MemoryError: no.\n")
    assert run.kept()["finished_at"]


def test_a_record_that_can_not_be_written_at_the_end_reaches_the_webhook(receiver, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    run = Ended(tmp_path, done=2, plan={})
    (run.results / "runs").touch()
    with (
        pytest.raises(UserError, match="can't be written to any more"),
        scan_module._webhook_told(ScanConfig(webhook=receiver.url), run.record),
    ):
        run.conclude()
    (told,) = map(json.loads, receiver.bodies)
    assert told["run_id"] == run.facts.run_id and "can't be written to any more" in told["broke_off"]


def test_a_scan_that_was_refused_before_it_began_tells_nobody(receiver):
    record: dict = {"finished_at": None, "interrupted": False}
    with pytest.raises(UserError), scan_module._webhook_told(ScanConfig(webhook=receiver.url), record):
        raise UserError("no Ray cluster answers", EXIT_PREFLIGHT)
    assert receiver.bodies == []
