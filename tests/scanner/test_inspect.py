"""One video looked at in this process: the numbers of a scan, no Ray, and a sentence or a status for what is wrong."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scanner.config import ScanConfig
from scanner.errors import EXIT_PREFLIGHT, EXIT_USAGE, UserError
from scanner.inspect import VIEWS, Inspection, find_video, inspect_video
from scanner.results import Status
from tests.s3 import BUCKET
from tests.scanner.signals import zoo_path
from tests.scans import CIRCUMSTANCES, ROOT, SPAN_S, rows
from tests.zoo import ZOO

#: Two spans with two faces; what decord gives up on; nothing to see; nothing to read.
COMPARED = ("two_faces.mp4", "bitrot.mp4", "no_face.mp4", "text.mp4")


@functools.cache
def inspected(name: str) -> Inspection:
    return inspect_video(str(zoo_path(name)), ScanConfig(span_seconds=SPAN_S))


def told(found: Inspection, view: str) -> list[dict[str, Any]]:
    """A table's rows as tests.scans.rows gives those of a scan."""
    listed = [{k: v for k, v in row.items() if k not in CIRCUMSTANCES} for row in getattr(found, view).to_pylist()]
    for row in listed:
        row["uri"] = row["uri"].split("/archive/")[-1]
    return sorted(listed, key=repr)


# --- the numbers of a scan ------------------------------------------------------------------------------------


@pytest.mark.ray
@pytest.mark.parametrize("view", VIEWS)
def test_every_view_holds_what_a_scan_writes(scanned: tuple[Path, list], view: str):
    of_scan = {name: [row for row in rows(scanned[0], view) if row["uri"].endswith(name)] for name in COMPARED}
    assert any(of_scan.values())
    for name, expected in of_scan.items():
        assert told(inspected(name), view) == expected, name


@pytest.mark.parametrize("name", ["real_blinks.mp4", "fake_selfblend.mp4", "two_faces.mp4", "variable_fps.mp4"])
def test_blinks_equal_the_truth(name: str):
    found = inspect_video(str(zoo_path(name)), ScanConfig())  # in one span, for a face must be seen for eight seconds
    assert found.video["blink_count"] == sum(len(face) for face in ZOO[name].blinks)


def test_the_verdict_holds_the_row_of_videos_and_is_plain_json():
    found = inspected("two_faces.mp4")
    verdict = json.loads(json.dumps(found.verdict(), allow_nan=False))
    for name, value in found.video.items():
        assert name == "scanned_at" or verdict[name] == value, name
    assert verdict["settings"] == {"fps": 15.0, "clip_frames": 16, "span_seconds": SPAN_S}
    assert len(verdict["faces"]) == 4 and verdict["n_faces"] == 2
    assert 0 < verdict["thresholds"]["real"] < verdict["thresholds"]["fake"] < 1


def test_moments_are_the_highest_clips_and_the_pictures_come_in_that_order():
    found = inspected("two_faces.mp4")
    scores = [clip["score"] for clip in found.moments(3)]
    assert scores == sorted((clip["score"] for clip in found.clips.to_pylist()), reverse=True)[:3]
    pictures = found.thumbnails["score"].to_pylist()
    assert pictures == sorted(pictures, reverse=True)


def test_motion_of_each_region_follows_the_samples_of_its_face():
    found = inspected("two_faces.mp4")
    moments = found.signals.sort_by([("face_id", "ascending"), ("t", "ascending")])
    motion = found.motion.sort_by([("face_id", "ascending"), ("t", "ascending")])
    assert motion["face_id"] == moments["face_id"]
    assert motion["t"].to_pylist() == pytest.approx(moments["t"].to_pylist(), abs=1e-5)
    for row, moment in zip(motion.to_pylist(), moments["motion"].to_pylist(), strict=True):
        parts = [row[region] for region in ("brows", "eyes", "cheeks", "mouth")]
        if moment is None:
            assert parts == [None] * 4
        else:
            assert min(parts) - 1e-6 <= moment <= max(parts) + 1e-6  # the mean over all points lies between theirs


def test_a_threshold_of_ones_own_decides_the_verdict():
    source = str(zoo_path("vp9.webm"))
    found = inspect_video(source, ScanConfig(threshold=0.0))
    assert (found.video["verdict"], found.thresholds) == ("fake", {"fake": 0.0, "real": 0.0})
    assert found.video["flagged_clips"] == found.clips.num_rows > 0


# --- how it goes about it -------------------------------------------------------------------------------------


def test_progress_rises_to_the_end_in_the_callers_thread():
    shares: list[tuple[str, float]] = []
    inspect_video(str(zoo_path("short.mp4")), ScanConfig(), lambda what, share: shares.append((what, share)))
    assert [share for _, share in shares] == sorted(share for _, share in shares)
    assert shares[0][1] == 0.0 and shares[-1] == ("Done", 1.0)


def test_a_caller_who_has_enough_ends_it():
    class Enough(Exception):
        pass

    def stop(what: str, share: float) -> None:
        if what == "Following faces":
            raise Enough

    with pytest.raises(Enough):
        inspect_video(str(zoo_path("real_blinks.mp4")), ScanConfig(), stop)


def test_ray_is_never_loaded_and_a_video_that_crashes_its_reader_is_a_status(tmp_path: Path):
    """A process of its own: Ray may be loaded here, and the trap must be there when the child starts."""
    shutil.copy(zoo_path("vp9.webm"), tmp_path / "crash.webm")
    script = f"""
import json, sys
from scanner.config import ScanConfig
from scanner.inspect import inspect_video
found = inspect_video({str(tmp_path / "crash.webm")!r}, ScanConfig())
print(json.dumps([found.status, found.failed, found.video["error"], "ray" in sys.modules]))
"""
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'tests' / 'faults'}:{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=240, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["crashed", True, "the process died (SIGSEGV)", False]


def test_limits_of_a_scan_hold_here_too():
    source = str(zoo_path("real_blinks.mp4"))
    for limit in (ScanConfig(max_video_size=1000), ScanConfig(max_video_seconds=5)):
        assert inspect_video(source, limit).status is Status.TOO_LARGE


def test_an_object_of_a_bucket(s3: Any, tmp_path: Path):
    s3.upload_file(str(zoo_path("short.mp4")), BUCKET, "2024/short.mp4")
    found = inspect_video(f"s3://{BUCKET}/2024/short.mp4", ScanConfig(scratch=str(tmp_path)))
    assert (found.status, found.video["uri"]) == (Status.TOO_SHORT, f"s3://{BUCKET}/2024/short.mp4")
    assert list(tmp_path.iterdir()) == []  # the download is gone


# --- what is no single video ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("tests/archive", "is a folder: name one video of it, or look at all with `deepsweep scan"),
        ("tests/archive/talks/*.mp4", "is a pattern, not one video"),
        ("tests/archive/talks/gone.mp4", "does not exist"),
        ("", "is empty"),
        ("https://example.org/talk.mp4", "https:// is not supported"),
    ],
)
def test_what_is_no_video_is_refused_in_a_sentence(source: str, sentence: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=r"\w") as refusal:
        inspect_video(source, ScanConfig())
    assert sentence in str(refusal.value) and refusal.value.exit_code == EXIT_USAGE


def test_a_manifest_is_refused_though_it_lists_one_video_only(tmp_path: Path):
    listing = tmp_path / "videos.txt"
    listing.write_text(f"{zoo_path('short.mp4')}\n")
    with pytest.raises(UserError, match="is a list of videos"):
        find_video(str(listing))


def test_a_prefix_of_a_bucket_is_refused_though_it_holds_one_video_only(s3: Any):
    s3.put_object(Bucket=BUCKET, Key="2024/talk.mp4", Body=b"x")
    for source in (f"s3://{BUCKET}/2024", f"s3://{BUCKET}/2024/", f"s3://{BUCKET}/2024/ta", f"s3://{BUCKET}"):
        with pytest.raises(UserError, match="is not one video"):
            find_video(source)
    assert find_video(f"s3://{BUCKET}/2024/talk.mp4").size_bytes == 1


def test_a_name_with_the_signs_of_a_pattern_is_a_name(tmp_path: Path):
    path = tmp_path / "talk [1]*.mp4"
    shutil.copy(zoo_path("short.mp4"), path)
    assert find_video(str(path)).uri == str(path)


def test_a_model_that_is_not_there_is_refused_before_anything_is_read():
    with pytest.raises(UserError, match="There is no model 'nobody'"):
        inspect_video(str(zoo_path(COMPARED[0])), ScanConfig(model="nobody"))


def test_a_scratch_disk_that_can_t_be_written_to_is_told(s3: Any):
    s3.upload_file(str(zoo_path("short.mp4")), BUCKET, "short.mp4")
    with pytest.raises(UserError, match=r"/dev/null/scratch.* can't take videos") as refusal:
        inspect_video(f"s3://{BUCKET}/short.mp4", ScanConfig(scratch="/dev/null/scratch"))
    assert refusal.value.exit_code == EXIT_PREFLIGHT  # that says nothing of the video, which is not `missing`


def test_no_room_for_its_own_files_ends_it_in_a_sentence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tempfile.tempdir", "/dev/null")
    with pytest.raises(UserError, match="the inspection broke off: Not a directory") as refusal:
        inspect_video(str(zoo_path("short.mp4")), ScanConfig(scratch="/tmp/unused"))
    assert refusal.value.exit_code == EXIT_PREFLIGHT


def test_every_shipped_status_but_ok_has_advice():
    from scanner.inspect_card import ADVICE

    assert set(ADVICE) == set(Status) - {Status.OK}
    assert {status for clip in ZOO.values() for status in clip.status} <= set(ADVICE) | {Status.OK}
