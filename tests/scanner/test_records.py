"""A span's row: it fits the schema, says what was found, and leaves NULL what is not known."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from models.registry import load_spec
from models.spec import ModelSpec
from scanner.clips import ClipScores, Thumbnail, clips_of
from scanner.decode import probe
from scanner.records import RunFacts, Span, span_row
from scanner.results import SPAN, Status
from tests.scanner.signals import analysis_of, zoo_path

TRAINED = ModelSpec(
    name="test-1",
    trained=True,
    fusion={"intercept": -0.5, "cnn_top": 0.7, "cnn_mean": 0.2, "blink": 1.0, "micro": 0.5},
    thresholds={"fake": 0.7, "real": 0.3},
    digest="d" * 64,
)
UNTRAINED = load_spec("untrained")
URI = "s3://archive/2024/talk.mp4"


def finished(name: str, probability: float = 0.9, **more) -> Span:
    """A scored span as the pipeline makes it of a clip of the zoo, with a network that always answers the same."""
    signals = analysis_of(name)
    clips = clips_of(signals.faces, 16, 8)
    scores = ClipScores(
        clips,
        np.full(len(clips), probability, np.float32),
        [np.linspace(0, 1, clip.stop - clip.start, dtype=np.float32) for clip in clips],
        [Thumbnail(clips[1].face, clips[1].start + 2, 1, b"JPEG", b"JPEG under a heatmap")] if len(clips) > 1 else [],
    )
    facts = {"info": probe(zoo_path(name)), "t_end": np.inf, "signals": signals, "scores": scores, "worker_s": 1.23456}
    return Span(URI, "tag", 1234, **(facts | more))


def row_of(span: Span, spec: ModelSpec = TRAINED, threshold: float = 0.7) -> dict:
    """The row as it comes back from Parquet's types."""
    row = span_row(span, RunFacts("run-1", spec, "settings", threshold))
    assert row.keys() == set(SPAN.names)
    return pa.Table.from_pylist([row], schema=SPAN).to_pylist()[0]


def test_a_row_says_what_was_scanned_and_how():
    row = row_of(finished("two_faces.mp4", index=2, count=3, t_start=0.0))
    assert (row["uri"], row["content_tag"], row["size_bytes"]) == (URI, "tag", 1234)
    assert (row["span_index"], row["span_count"], row["t_start"], row["t_end"]) == (2, 3, 0.0, 10.0)
    assert (row["width"], row["height"], row["fps"], row["codec"]) == (640, 360, 25.0, "h264")
    assert (row["status"], row["error"], row["decoder"], row["lost_s"]) == ("ok", None, "pyav", 0.0)
    assert (row["model"], row["model_digest"], row["settings_digest"]) == ("test-1", "d" * 64, "settings")
    assert (row["n_faces"], row["analyzed_s"], row["worker_s"]) == (2, pytest.approx(10), 1.235)
    assert row["face_s"] == pytest.approx(10, abs=0.1)


def test_faces_clips_frames_and_thumbnails_belong_together():
    row = row_of(finished("two_faces.mp4", index=2, count=3))
    assert [face["face_id"] for face in row["faces"]] == ["2-0", "2-1"]
    assert [clip["face_id"] for clip in row["clips"]] == ["2-0"] * 4 + ["2-1"] * 4
    assert len(row["frames"]) == 100  # every crop of both faces
    for face in row["faces"]:
        clips = [clip for clip in row["clips"] if clip["face_id"] == face["face_id"]]
        frames = [frame for frame in row["frames"] if frame["face_id"] == face["face_id"]]
        assert len(face["signals"]) == 150
        assert all(abs(moment["yaw"]) < 20 and moment["ear_left"] > 0 for moment in face["signals"])
        assert clips[0]["t_start"] == face["t_start"] and clips[-1]["t_end"] <= face["t_end"]
        assert [frame["t"] for frame in frames] == sorted(frame["t"] for frame in frames)
        for box in (face, *clips, *frames):
            assert all(0 < box[side] < 1 for side in "xywh")
            assert (box["x"] + box["w"] / 2 < 0.5) == (face["face_id"] == "2-0")
    (picture,) = row["thumbnails"]
    assert picture["face_id"] == row["clips"][1]["face_id"]
    assert row["clips"][1]["t_start"] <= picture["t"] <= row["clips"][1]["t_end"]
    assert (picture["image"], picture["heatmap"]) == (b"JPEG", b"JPEG under a heatmap")


def test_blinks_add_up_over_faces_and_mark_their_frames():
    row = row_of(finished("two_faces.mp4"))
    assert [face["blink_count"] for face in row["faces"]] == [3, 4]
    assert row["blink_count"] == 7
    assert row["blink_s"] == pytest.approx(20, abs=0.2)
    assert row["blink_rate"] == pytest.approx(21, rel=0.02)  # a minute, per face
    assert row["blink_score"] == max(face["blink_score"] for face in row["faces"])
    for face in row["faces"]:
        shut = [f["t"] for f in row["frames"] if f["blink"] and f["face_id"] == face["face_id"]]
        assert shut and all(min(abs(t - blink) for blink in face["blink_t"]) < 0.25 for t in shut)
        assert 60 * face["blink_count"] / face["blink_s"] == pytest.approx(face["blink_rate"])


def test_the_worst_face_is_the_videos_score():
    span = finished("two_faces.mp4")
    assert span.scores is not None
    mixed = np.array([0.2] * 4 + [0.98] * 4, np.float32)
    row = row_of(replace(span, scores=replace(span.scores, probabilities=mixed)))
    assert row["faces"][0]["score"] < row["faces"][1]["score"] == row["score"]
    assert row["cnn_score"] == row["faces"][1]["cnn_score"] == pytest.approx(0.98)
    assert row["verdict"] == "fake"


@pytest.mark.parametrize(("probability", "verdict"), [(0.999, "fake"), (0.001, "real"), (0.6, "uncertain")])
def test_verdicts_and_flags_follow_the_thresholds(probability, verdict):
    row = row_of(finished("real_blinks.mp4", probability))
    assert row["verdict"] == verdict
    for clip in row["clips"]:
        assert clip["flagged"] == (clip["score"] >= 0.7) == (verdict == "fake")


def test_a_threshold_of_the_users_own_counts_for_clips_and_verdict():
    row = row_of(finished("real_blinks.mp4", 0.6), threshold=0.1)
    assert row["threshold"] == 0.1
    assert row["verdict"] == "fake" and all(clip["flagged"] for clip in row["clips"])


def test_an_untrained_model_gives_no_score_anywhere():
    row = row_of(finished("two_faces.mp4"), UNTRAINED, threshold=0.0)
    assert (row["model"], row["status"]) == ("untrained", "ok")
    assert row["verdict"] is row["score"] is row["cnn_score"] is None
    assert row["faces"] and row["clips"] and row["frames"] and row["thumbnails"]
    for part in (*row["faces"], *row["clips"]):
        assert part["score"] is part["cnn_score"] is None
    for part in (*row["frames"], *row["thumbnails"]):
        assert part["score"] is None
    assert not any(clip["flagged"] for clip in row["clips"])
    assert row["blink_count"] == 7 and row["micro_irregularity"] is not None  # these are measured all the same


@pytest.mark.parametrize("status", [status for status in Status if status is not Status.OK])
def test_nothing_is_scored_unless_the_status_is_ok(status):
    row = row_of(finished("two_faces.mp4").failed(status, "because"))
    assert (row["status"], row["error"]) == (status.value, "because")
    assert row["verdict"] is row["score"] is row["cnn_score"] is row["blink_count"] is row["n_faces"] is None
    assert row["faces"] == row["clips"] == row["frames"] == row["thumbnails"] == []
    assert row["width"] == 640  # what the header said is known


def test_a_face_that_was_seen_too_briefly_is_listed_without_a_score():
    row = row_of(finished("short.mp4", status=Status.TOO_SHORT, scores=None))
    assert row["status"] == "too_short"
    (face,) = row["faces"]
    assert face["score"] is face["blink_count"] is face["blink_rate"] is face["micro_irregularity"] is None
    assert row["score"] is row["verdict"] is row["blink_count"] is row["micro_irregularity"] is None
    assert face["face_s"] == pytest.approx(0.4, abs=0.1)


def test_a_video_that_was_never_opened_is_a_row_too():
    row = row_of(Span(URI, "tag", None).failed(Status.MISSING, "gone"))
    assert (row["status"], row["error"], row["t_start"], row["size_bytes"]) == ("missing", "gone", 0.0, None)
    assert row["t_end"] is row["duration_s"] is row["width"] is row["decoder"] is None


def test_blink_figures_are_null_where_blinks_could_not_be_judged():
    row = row_of(finished("no_face_stretch.mp4"))  # two stretches of 4 s
    assert len(row["faces"]) == 2
    assert row["blink_count"] is row["blink_rate"] is row["blink_score"] is None
    assert {frame["blink"] for frame in row["frames"]} == {None}
    assert row["score"] is not None


def test_what_is_not_known_is_null_and_never_nan():
    row = row_of(finished("no_face_stretch.mp4"))
    json.dumps(row, default=str, allow_nan=False)
    assert all(face["signals"][0]["motion"] is None for face in row["faces"])  # nothing moves before the first picture
