"""The parts of `deepsweep inspect`: rows of a plot, curves with pauses, the meter between two processes, the folder."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from queries.text import UNSAFE
from scanner.errors import UserError
from scanner.inspect import MOTION
from scanner.inspect_files import VERDICT, default_folder, writable_folder
from scanner.inspect_plots import broken, ear_curve, lanes, motion_curve, png, score_curve
from scanner.inspect_progress import Meter, WatchedGuard
from scanner.micro import REGIONS

SHAKY = st.floats(-10, 10, width=32)


# --- plots ----------------------------------------------------------------------------------------------------


@st.composite
def tracks(draw: st.DrawFn) -> list[dict[str, Any]]:
    found = []
    for number in range(draw(st.integers(0, 12))):
        start = draw(st.integers(0, 50))
        end = start + draw(st.integers(0, 20))
        found.append({"face_id": f"0-{number}", "t_start": start, "t_end": end, "x": draw(SHAKY), "w": 0.1})
    return found


@given(tracks())
def test_tracks_of_a_row_follow_each_other_and_there_is_no_row_too_many(faces):
    rows = lanes(faces)
    assert sorted(face["face_id"] for row in rows for face in row) == sorted(face["face_id"] for face in faces)
    for row in rows:
        assert all(a["t_end"] < b["t_start"] for a, b in itertools.pairwise(row))
    at_once = max((sum(f["t_start"] <= t <= f["t_end"] for f in faces) for t in range(71)), default=0)
    assert len(rows) == at_once


@given(st.lists(st.floats(0, 100, width=32), unique=True, max_size=30), st.floats(0.01, 5))
def test_a_curve_is_broken_at_each_pause_and_keeps_its_samples(times, gap):
    t = np.sort(np.array(times, np.float64))
    y = np.arange(len(t), dtype=float)
    longer, values = broken(t, y, gap)
    assert values[np.isfinite(values)].tolist() == y.tolist()
    assert len(longer) - len(t) == (np.diff(t) > gap).sum()
    assert (np.diff(longer) >= 0).all()


def a_face(face_id: str, start: float, end: float, score: float | None) -> dict[str, Any]:
    return {
        **{"face_id": face_id, "t_start": start, "t_end": end, "x": 0.4, "w": 0.2, "score": score},
        **{"blink_count": 2, "blink_seconds": end - start, "blink_times": [2.0, 4.0], "blink_durations": [0.2, 0.3]},
    }


def tables(score: float | None = 0.9) -> dict[str, pa.Table]:
    """Two faces at once: what an inspection holds of them."""
    faces = [a_face("0-0", 0.0, 10.0, score), a_face("0-1", 1.0, 9.0, score)]
    moments = [{"face_id": f["face_id"], "t": t} for f in faces for t in np.arange(f["t_start"], f["t_end"], 1 / 15)]
    return {
        "faces": pa.Table.from_pylist(faces),
        "signals": pa.Table.from_pylist([m | {"ear": 0.3} for m in moments]),
        "frames": pa.Table.from_pylist([m | {"score": score} for m in moments]),
        "clips": pa.Table.from_pylist([{"face_id": "0-0", "t_start": 0.0, "t_end": 3.0, "score": score}]),
        "motion": pa.Table.from_pylist([m | dict.fromkeys(REGIONS, 0.1) for m in moments], schema=MOTION),
    }


def figures(of: dict[str, pa.Table]) -> list[Any]:
    bands = {"real": 0.3, "fake": 0.8}
    return [
        ear_curve(of["signals"], of["faces"]),
        score_curve(of["frames"], of["clips"], of["faces"], bands),
        motion_curve(of["motion"], of["faces"]),
    ]


def test_every_axis_says_what_it_shows_and_in_which_unit():
    ear, score, motion = figures(tables())
    for figure, rows, words in ((ear, 2, "height / width"), (score, 2, "0 to 1"), (motion, 4, "eye distances")):
        assert len(figure.axes) == rows
        assert all(words in axes.get_ylabel() for axes in figure.axes)
        assert "seconds" in figure.axes[-1].get_xlabel()
        assert png(figure)[:8] == b"\x89PNG\r\n\x1a\n"


def test_blinks_are_marked_where_they_were():
    (left, _) = figures(tables())[0].axes
    (marks,) = left.collections
    edges = [(path.vertices[:, 0].min(), path.vertices[:, 0].max()) for path in marks.get_paths()]
    assert edges == [pytest.approx((1.9, 2.1)), pytest.approx((3.85, 4.15))]


def test_a_model_without_scores_still_has_all_plots_and_a_video_without_faces_says_so():
    for figure in figures(tables(None)):
        assert png(figure)
    nobody = {name: table.slice(0, 0) for name, table in tables().items()}
    for figure in figures(nobody):
        assert [text.get_text() for text in figure.axes[0].texts] == ["no face was followed in this video"]
        assert png(figure)


# --- the meter ------------------------------------------------------------------------------------------------


def half_way(meter: Meter, gate: str) -> str:
    """What a child does: tell, and wait until someone opens the gate, a named pipe."""
    meter(0.5)
    Path(gate).read_bytes()
    return "done"


def test_a_child_tells_how_far_it_is_while_its_parent_waits(tmp_path: Path):
    gate, meter, shares = tmp_path / "gate", Meter(tmp_path / "meter"), []
    os.mkfifo(gate)

    def look() -> None:
        shares.append(meter.read())
        if shares.count(0.5) == 1:
            gate.write_bytes(b"")

    guard = WatchedGuard(look, (), 1 << 30)
    try:
        assert guard.run(half_way, meter, str(gate), deadline_s=120) == "done"
    finally:
        guard.close()
    assert set(shares) <= {0.0, 0.5} and 0.5 in shares


def test_who_has_waited_enough_gets_away_and_the_child_is_ended(tmp_path: Path):
    gate = tmp_path / "gate"
    os.mkfifo(gate)  # nobody opens it

    def look() -> None:
        raise KeyboardInterrupt

    guard = WatchedGuard(look, (), 1 << 30)
    with pytest.raises(KeyboardInterrupt):
        guard.run(half_way, Meter(tmp_path / "meter"), str(gate), deadline_s=600)
    guard.close()


def test_a_meter_on_a_full_or_broken_disk_stands_still():
    meter = Meter(Path("/dev/null/meter"))
    meter(0.5)
    assert meter.read() == 0.0


# --- the folder -----------------------------------------------------------------------------------------------


@given(st.text(st.characters(exclude_characters="/\0"), min_size=1))
def test_the_default_folder_is_one_plain_name(name):
    folder = default_folder(f"s3://bucket/{name}.mp4")
    assert folder.endswith(".inspect") and "/" not in folder
    assert len(folder.encode()) < 255 and not UNSAFE.search(folder)


def test_the_default_folder_lies_here_and_is_called_like_the_video():
    assert default_folder("/archive/2024/talk one.mp4") == "talk one.inspect"
    assert default_folder("s3://archive/talk.final.mov") == "talk.final.inspect"


def test_an_earlier_inspection_of_the_same_video_may_be_replaced_and_nothing_else(tmp_path: Path):
    out = tmp_path / "talk.inspect"
    with writable_folder(str(out), "/a/talk.mp4", force=False) as folder:
        (folder / VERDICT).write_text(json.dumps({"uri": "/a/talk.mp4"}))
        (folder / "gradcam").mkdir()
        (folder / "gradcam" / "01_face-0-0_1.20s_heat.jpg").write_bytes(b"")
    with writable_folder(str(out), "/a/talk.mp4", force=False):
        pass
    with (
        pytest.raises(UserError, match=r"holds the inspection of /a/talk\.mp4"),
        writable_folder(str(out), "/b/talk.mp4", force=False),
    ):
        pass
    (out / "notes.txt").write_text("mine")
    with (
        pytest.raises(UserError, match=r"holds other files \(notes.txt\)"),
        writable_folder(str(out), "/a/talk.mp4", force=False),
    ):
        pass
    with writable_folder(str(out), "/b/talk.mp4", force=True):
        assert (out / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("out", "sentence"),
    [("s3://bucket/out", "written to this machine"), ("LICENSE", "is a file"), ("LICENSE/out", "--out must be")],
)
def test_a_folder_that_can_t_be_is_refused(out: str, sentence: str):
    with pytest.raises(UserError, match=sentence), writable_folder(out, "/a/talk.mp4", force=False):
        pass


def test_a_folder_that_stays_empty_is_gone_again(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt), writable_folder(str(tmp_path / "new"), "/a/talk.mp4", force=False):
        raise KeyboardInterrupt
    assert not (tmp_path / "new").exists()
