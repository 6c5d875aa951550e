"""Labelled files to face tracks: a real run under Ray, its resume, and what is kept of a face."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mediapipe.python.solutions.face_mesh import FaceMesh

from models.prepared import LANDMARKS, MARGIN, MAX_SIDE, FaceTrack, decode_crop, read_tracks
from scanner import extract, prepstore
from scanner.decode import DecodeError
from scanner.errors import EXIT_NOTHING_TO_SCAN, EXIT_OK, EXIT_SOME_FAILED, UserError
from scanner.extract import PRELOAD, crop_face, extract_image, extract_video, file_rows, read_image
from scanner.faces import landmark_box
from scanner.guard import Guard
from scanner.prepare import list_files, parts_of, run
from scanner.results import Status
from tests.scanner.signals import frames_of, zoo_path
from tests.scans import ROOT, deepsweep

pytestmark = pytest.mark.ray

SECONDS = 2  # of each video: ten crops of a face
RIGHT_EYE, LEFT_EYE, CHIN = 33, 263, 152  # FaceMesh indices
EXIF_ROTATED = 6  # stored lying on its left side: turn it 90 degrees clockwise


def write_photo(path: Path, rgb: np.ndarray, orientation: int = 1) -> Path:
    """A JPEG whose EXIF says how to hold it."""
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0" + bytes([orientation, 0, 0, 0, 0, 0, 0, 0])
    jpeg = cv2.imencode(".jpg", np.ascontiguousarray(rgb[:, :, ::-1]))[1].tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + jpeg[2:])
    return path


def portrait() -> np.ndarray:
    return next(frames_of("real_blinks.mp4"))[1]


def copy(name: str, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(zoo_path(name), to)


def rows_of(prep: Path) -> list[dict[str, Any]]:
    """All rows of PREP without their crops, part by part."""
    columns = ["uri", "content_tag", "status", "error", "label", "source", "group", "face_id", "width", "duration_s"]
    return [row for part in sorted(prep.glob("tracks/*")) for row in pq.ParquetFile(part).read(columns).to_pylist()]


def statuses(prep: Path) -> dict[str, str]:
    return {row["uri"]: row["status"] for row in rows_of(prep)}


def stamps(prep: Path) -> dict[str, int]:
    return {part.name: part.stat().st_mtime_ns for part in prep.glob("tracks/*")}


@dataclass(frozen=True)
class Run:
    """A run under Ray: its DATA and PREP, what it printed, and what an earlier one had left in PREP."""

    data: Path
    prep: Path
    printed: str
    earlier: dict[str, int]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Run:
    base = tmp_path_factory.mktemp("prepare")
    data, prep = base / "mine", base / "prep"
    copy("mpegts.ts", data / "fake/earlier.ts")
    earlier = list(list_files([str(data)]).values())
    guard = Guard(preload=PRELOAD)
    with prepstore.locked(str(prep)):
        rows = [row for file in earlier for row in file_rows(file, guard, SECONDS)]
        prepstore.write_part(prep, prepstore.part_name(earlier), prepstore.part_bytes(rows))
    guard.close()
    left = stamps(prep)
    copy("two_faces.mp4", data / "real/tv/two.mp4")
    copy("no_face.mp4", data / "real/tv/nobody.mp4")
    copy("short.mp4", data / "real/short.mp4")
    copy("fake_selfblend.mp4", data / "fake/tool/blend.mp4")
    copy("truncated.mp4", data / "fake/tool/broken.mp4")
    write_photo(data / "real/photo.jpg", np.rot90(portrait()), EXIF_ROTATED)
    (data / "real/gone.mp4").symlink_to(base / "nowhere.mp4")
    done = deepsweep("prepare", data, "--out", prep, "--max-seconds", str(SECONDS))
    assert done.returncode == EXIT_SOME_FAILED, done.stderr
    assert "Traceback" not in done.stderr and "Warning" not in done.stderr
    return Run(data, prep, done.stdout, left)


@pytest.fixture
def own(prepared, tmp_path) -> tuple[Path, Path]:
    """A copy of DATA and PREP that a test may change."""
    for folder in (prepared.data, prepared.prep):
        shutil.copytree(folder, tmp_path / folder.name, symlinks=True)
    return tmp_path / "mine", tmp_path / "prep"


def test_every_file_has_a_status(prepared):
    assert statuses(prepared.prep) == {
        "mine/fake/earlier.ts": "ok",
        "mine/real/tv/two.mp4": "ok",
        "mine/real/tv/nobody.mp4": "no_face",
        "mine/real/short.mp4": "too_short",
        "mine/real/photo.jpg": "ok",
        "mine/real/gone.mp4": "missing",
        "mine/fake/tool/blend.mp4": "ok",
        "mine/fake/tool/broken.mp4": "decode_error",
    }
    for row in rows_of(prepared.prep):
        assert (row["error"] is None) == (row["status"] in ("ok", "no_face", "too_short"))
    assert "4 real and 3 fake videos, 1 real and 0 fake images of 3 sources; layout: folders" in prepared.printed
    assert "mine/fake/tool/broken.mp4: damaged" in prepared.printed
    assert f"deepsweep train {prepared.prep}" in prepared.printed
    assert "real  3 faces, 21 crops" in prepared.printed


def test_tracks_carry_what_their_folders_say(prepared):
    tracks = {(track.uri, track.face_id): track for track in read_tracks(prepared.prep)}
    assert [uri for uri, _ in tracks] == [
        "mine/fake/earlier.ts",
        "mine/fake/tool/blend.mp4",
        "mine/real/photo.jpg",
        *["mine/real/tv/two.mp4"] * 2,
    ]
    _, blend, photo, left, right = tracks.values()
    assert (blend.label, blend.kind, blend.source, blend.group) == ("fake", "video", "tool", "mine/fake/tool/blend.mp4")
    assert (photo.label, photo.kind, photo.source, len(photo.jpegs)) == ("real", "image", "mine", 1)
    assert left.source == "tv" and np.array_equal(left.t, right.t)
    for track in (blend, left, right):
        assert len(track.t) == len(track.jpegs) == SECONDS * 5
        assert np.diff(track.t) == pytest.approx(0.2, abs=0.05)


def test_landmarks_lie_on_the_face_of_the_crop(prepared):
    with FaceMesh(static_image_mode=True, refine_landmarks=True) as mesh:
        for track in read_tracks(prepared.prep):
            for crop, landmarks in zip(*FaceTrack.frames(track, 0, 3), strict=True):
                assert (landmarks > 0).all() and (landmarks < 1).all()
                box = landmark_box(landmarks)
                assert box[:2] + box[2:] / 2 == pytest.approx([0.5, 0.5], abs=0.02)
                assert box[2:].max() == pytest.approx(1 / MARGIN, abs=0.02)
                found: Any = mesh.process(crop)
                seen = np.array([(p.x, p.y) for p in found.multi_face_landmarks[0].landmark])
                for point in (RIGHT_EYE, LEFT_EYE, CHIN):
                    assert landmarks[point] == pytest.approx(seen[point], abs=0.03)
                assert landmarks[RIGHT_EYE][0] < landmarks[LEFT_EYE][0] and landmarks[CHIN][1] > 0.6  # upright


def test_what_an_earlier_run_left_is_not_prepared_again(prepared):
    assert prepared.earlier.items() <= stamps(prepared.prep).items()
    assert "7 files prepared in" in prepared.printed
    uris = [row["uri"] for row in rows_of(prepared.prep)]
    assert uris.count("mine/fake/earlier.ts") == 1


def test_the_same_command_again_does_nothing(prepared, capsys):
    before = stamps(prepared.prep)
    assert run([str(prepared.data)], str(prepared.prep)) == EXIT_OK
    assert "nothing new: 8 files are done already" in capsys.readouterr().out
    assert stamps(prepared.prep) == before


# --- what is done, and what is done again -----------------------------------------------------------------


def test_only_what_failed_is_tried_again(own):
    data, prep = own
    files = list_files([str(data)])
    todo = prepstore.remaining(prep, files, retry_failed=True)
    assert {file.item.uri for file in todo} == {"mine/fake/tool/broken.mp4", "mine/real/gone.mp4"}
    prepstore.settle(prep, files, todo)
    assert set(statuses(prep)) == set(files) - {file.item.uri for file in todo}
    assert prepstore.remaining(prep, files, retry_failed=False) == todo  # an interruption loses nothing


def test_a_changed_file_leaves_no_old_track_behind(own):
    data, prep = own
    os.utime(data / "real/tv/two.mp4", ns=(1, 1))
    files = list_files([str(data)])
    todo = prepstore.remaining(prep, files, retry_failed=False)
    assert [file.item.uri for file in todo] == ["mine/real/tv/two.mp4"]
    before = prepstore.totals(prep)
    prepstore.settle(prep, files, todo)
    after = prepstore.totals(prep)
    assert before.faces - after.faces == {"real": 2}
    assert "mine/real/tv/two.mp4" not in statuses(prep)
    kept = {"mine/fake/earlier.ts", "mine/fake/tool/blend.mp4", "mine/real/photo.jpg"}
    assert {track.uri for track in read_tracks(prep)} == kept


def test_a_corrected_label_is_corrected_in_what_is_there(own, capsys):
    data, prep = own
    crops = {track.uri: track.jpegs for track in read_tracks(prep)}
    (data / "manifest.csv").write_text(
        "file,label,method,source,group\n"
        "real/tv/two.mp4,fake,lipsync,film,anna\n"
        "fake/tool/blend.mp4,fake,faceswap,tool,\n"
    )
    assert run([str(data)], str(prep)) == EXIT_OK
    assert "nothing new: 2 files are done" in capsys.readouterr().out
    tracks = {track.uri: track for track in read_tracks(prep)}
    two = tracks["mine/real/tv/two.mp4"]
    assert (two.label, two.method, two.source, two.group) == ("fake", "lipsync", "film", "anna")
    assert tracks["mine/fake/tool/blend.mp4"].method == "faceswap"
    assert tracks["mine/real/photo.jpg"].label == "real"  # not in the manifest: as it was
    assert {uri: track.jpegs for uri, track in tracks.items()} == crops


def test_parts_hold_neighbours_of_one_kind(tmp_path):
    for number in range(9):
        write_photo(tmp_path / f"d/real/{number}.jpg", np.zeros((8, 8, 3), np.uint8))
        (tmp_path / f"d/fake/{number}.mp4").parent.mkdir(exist_ok=True)
        (tmp_path / f"d/fake/{number}.mp4").write_bytes(b"x")
    files = list(list_files([str(tmp_path / "d")]).values())
    parts = list(parts_of(files))
    assert [file for part in parts for file in part] == files
    assert [len(part) for part in parts] == [4, 4, 1, 9]
    assert prepstore.part_name(parts[0]) == prepstore.part_name(parts[0][::-1]) != prepstore.part_name(parts[1])


# --- refusals ---------------------------------------------------------------------------------------------


def refused(*data: Path, out: str | Path) -> UserError:
    with pytest.raises(UserError) as error:
        run([str(folder) for folder in data], str(out), quiet=True)
    assert "\n" not in str(error.value)
    return error.value


def test_two_folders_of_one_name_are_refused(tmp_path):
    for folder in ("a", "b"):
        write_photo(tmp_path / folder / "faces/real/x.jpg", np.zeros((8, 8, 3), np.uint8))
    error = refused(tmp_path / "a/faces", tmp_path / "b/faces", out=tmp_path / "prep")
    assert "would both be called faces" in str(error)
    (tmp_path / "others").symlink_to(tmp_path / "b/faces")
    files = list_files([str(tmp_path / "a/faces"), str(tmp_path / "others"), str(tmp_path / "a/../a/faces")])
    assert list(files) == ["faces/real/x.jpg", "others/real/x.jpg"]


def test_nothing_labelled_is_nothing_to_do(tmp_path):
    (tmp_path / "d/real").mkdir(parents=True)
    error = refused(tmp_path / "d", out=tmp_path / "prep")
    assert error.exit_code == EXIT_NOTHING_TO_SCAN
    assert not (tmp_path / "prep").exists()


def test_prepared_data_stay_on_this_machine(prepared):
    assert "local folder" in str(refused(prepared.data, out="s3://bucket/prep"))


def test_two_runs_do_not_write_to_one_folder(own):
    data, prep = own
    with prepstore.locked(str(prep)):
        assert "another `deepsweep prepare`" in str(refused(data, out=prep))


def test_a_damaged_part_is_named(own):
    data, prep = own
    part = next(prep.glob("tracks/*"))
    part.write_bytes(part.read_bytes()[:-100])
    assert part.name in str(refused(data, out=prep))


def test_help_waits_for_no_heavy_import():
    heavy = "{'ray', 'cv2', 'mediapipe', 'pyarrow', 'numpy'}"
    code = f"import scanner.prepare, sys; print(*sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == ""


# --- one file ---------------------------------------------------------------------------------------------


def test_a_photo_is_upright_and_its_face_the_same(tmp_path):
    straight = extract_image(str(write_photo(tmp_path / "a.jpg", portrait())))
    turned = extract_image(str(write_photo(tmp_path / "b.jpg", np.rot90(portrait()), EXIF_ROTATED)))
    assert (turned.width, turned.height) == (straight.width, straight.height) == portrait().shape[1::-1]
    a, b = (np.frombuffer(faces.tracks[0].landmarks, "<f2").astype(float) for faces in (straight, turned))
    assert a == pytest.approx(b, abs=0.02)


def test_a_large_photo_is_looked_at_as_a_video_of_that_size(tmp_path):
    large = cv2.resize(portrait(), None, fx=5, fy=5, interpolation=cv2.INTER_CUBIC)
    faces = extract_image(str(write_photo(tmp_path / "a.jpg", large)))
    assert (faces.width, faces.height) == large.shape[1::-1]
    crop = decode_crop(faces.tracks[0].jpegs[0])
    assert crop.shape == (MAX_SIDE, MAX_SIDE, 3)


def test_only_the_largest_face_of_a_picture_is_taken(tmp_path):
    one = portrait()
    both = np.hstack([cv2.resize(one, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)] * 2)
    picture = np.vstack([one, both[:, : one.shape[1]]])
    faces = extract_image(str(write_photo(tmp_path / "a.jpg", picture)))
    assert len(faces.tracks) == 1
    alone = extract_image(str(write_photo(tmp_path / "b.jpg", one)))
    assert decode_crop(faces.tracks[0].jpegs[0]).shape == decode_crop(alone.tracks[0].jpegs[0]).shape


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (1, 400)])
def test_a_tiny_picture_has_no_face(tmp_path, size):
    cv2.imwrite(str(tmp_path / "a.png"), np.full((*size, 3), 128, np.uint8))
    assert extract_image(str(tmp_path / "a.png")).tracks == []


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_what_is_no_picture_says_so(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DecodeError) as error:
        read_image(tmp_path / "a.png")
    assert error.value.status is Status.DECODE_ERROR


def test_too_many_pixels_are_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(extract, "MAX_PIXELS", 99)
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((10, 10, 3), np.uint8))
    with pytest.raises(DecodeError) as error:
        read_image(tmp_path / "a.png")
    assert error.value.status is Status.TOO_LARGE


def test_both_decoders_give_the_same_tracks():
    path = str(zoo_path("two_faces.mp4"))
    ours, theirs = (extract_video(path, 1.0, decoder) for decoder in ("decord", "pyav"))
    assert [track.face_id for track in ours.tracks] == [track.face_id for track in theirs.tracks] == [0, 1]
    for a, b in zip(ours.tracks, theirs.tracks, strict=True):
        assert a.t == pytest.approx(b.t, abs=1e-5)
        assert a.jpegs == b.jpegs and a.landmarks == b.landmarks


@given(st.integers(0, 10_000), st.floats(3, 700), st.floats(-0.2, 1.2), st.floats(-0.2, 1.2))
def test_a_landmark_points_at_the_same_pixel_in_frame_and_crop(seed, side, x, y):
    """A white dot at a landmark is white in the crop, where the fractions say, whatever rounding did."""
    rng = np.random.default_rng(seed)
    frame = np.zeros((480, 640, 3), np.uint8)
    centre = np.array([x * 640, y * 480])
    landmarks = (centre + rng.uniform(-side / 2, side / 2, (LANDMARKS, 2))).astype(np.float32)
    box = landmark_box(landmarks)
    column, row = np.floor(landmarks[0]).astype(int)
    dot = max(1, round(side / 40))
    cv2.circle(frame, (int(column), int(row)), dot, (255, 255, 255), -1)
    try:
        jpeg, fractions = crop_face(frame, box, landmarks)
    except ValueError:  # outside the frame
        return
    crop = decode_crop(jpeg)
    assert fractions.shape == (LANDMARKS, 2) and (fractions > -0.01).all() and (fractions < 1.01).all()
    assert crop.shape[0] == min(MAX_SIDE, max(2, round(float(max(box[2:]) * MARGIN))))
    if 0 <= column < 640 and 0 <= row < 480:
        at = np.clip((fractions[0] * crop.shape[0]).astype(int), 0, crop.shape[0] - 1)
        around = crop[max(0, at[1] - 1) : at[1] + 2, max(0, at[0] - 1) : at[0] + 2]
        assert around.max() > 100
