"""`deepsweep evaluate`: labelled videos in, a report that counts each of them out."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from scanner.decode import probe
from scanner.errors import EXIT_SOME_FAILED, UserError
from scanner.evaluate import evaluate
from scanner.reencode import make_copies, reencode
from scanner.results import Status
from tests.scans import deepsweep, rows
from tests.zoo import ARCHIVE, ZOO

pytestmark = pytest.mark.ray

REAL = ('it\'s "ünïcode" ; name.mp4', "rotated_90.mp4", "text.mp4")
FAKE = "fake_selfblend.mp4"


def _place(name: str, folder: Path, new: str | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(ARCHIVE / ZOO[name].path, folder / (new or name))


def _refusal(*arguments: str | Path) -> str:
    with pytest.raises(UserError) as refused:
        CliRunner().invoke(evaluate, [str(a) for a in arguments], standalone_mode=False, catch_exceptions=False)
    return str(refused.value)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """(FOLDER, DATA, what was printed) of an evaluation of three real files, one of them text, and a fake one."""
    where = tmp_path_factory.mktemp("evaluate")
    data, out = where / "my data", where / "report"
    for name in REAL:
        _place(name, data / "real")
    _place(FAKE, data / "fake" / "blends")
    done = deepsweep("evaluate", data, "--out", out, "--reencode", "35")
    assert done.returncode == EXIT_SOME_FAILED, done.stderr  # text.mp4
    return out, data, done.stdout


def test_every_video_is_in_the_report(evaluated):
    report = json.loads((evaluated[0] / "report.json").read_text(encoding="utf-8"))
    judged = {video["uri"]: video for video in report["judged"]}
    assert judged.keys() == {
        *(f"my data/real/{name}" for name in REAL[:2]),
        f"my data/fake/blends/{FAKE}",
    }
    assert report["not_judged"][0]["uri"] == "my data/real/text.mp4"
    assert report["not_judged"][0]["status"] == "unsupported"
    assert report["statuses"] == {"real": {"ok": 2, "unsupported": 1}, "fake": {"ok": 1}}
    assert (report["videos"]["reals"], report["videos"]["fakes"]) == (2, 1)


def test_scores_are_those_of_the_scan(evaluated):
    out = evaluated[0]
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    scanned = {row["uri"].rsplit("/", 1)[-1]: row for row in rows(out / "results", "videos")}
    for video in report["judged"]:
        row = scanned[video["uri"].rsplit("/", 1)[-1]]
        assert (video["score"], video["verdict"]) == (row["score"], row["verdict"])
    clips = [row for row in rows(out / "results", "clips") if row["score"] is not None]
    assert report["clips"]["reals"] + report["clips"]["fakes"] == len(clips)


def test_copies_were_judged_and_are_gone(evaluated):
    out = evaluated[0]
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    again = report["reencoded"]
    assert (again["crf"], again["videos"]["reals"], again["videos"]["fakes"], again["lost"]) == (35, 2, 1, [])
    assert not (out / "copies-crf35").exists()
    assert len(rows(out / "results-crf35", "videos")) == 3


def test_what_is_written_and_printed(evaluated):
    out, _, printed = evaluated
    page = (out / "report.md").read_text(encoding="utf-8")
    for title in ("Overall", "By method", "By source", "Videos that could not be judged", "After re-encoding"):
        assert f"## {title}" in page
    assert "text.mp4 (real): unsupported" in page
    for name in ("roc.png", "reliability.png", "scores.png"):
        assert cv2.imread(str(out / name)) is not None
        assert f"({name})" in page
    assert "AUC" in printed and "file metadata alone" in printed and str(out / "report.md") in printed
    assert "1 video could not be judged" in printed


def test_the_same_command_again_scans_nothing(evaluated):
    out, data, _ = evaluated
    before = (out / "report.json").read_text(encoding="utf-8")
    done = deepsweep("evaluate", data, "--out", out, "--reencode", "35", "--quiet")
    assert done.returncode == EXIT_SOME_FAILED and done.stdout == ""
    assert len(list((out / "results" / "runs").iterdir())) == 1
    assert len(list((out / "results-crf35" / "runs").iterdir())) == 1
    after = json.loads((out / "report.json").read_text(encoding="utf-8"))
    after["created_at"] = json.loads(before)["created_at"]
    assert after == json.loads(before)


# --- refusals: before anything is scanned -------------------------------------------------------------------------


def test_an_untrained_model_is_refused(tmp_path):
    _place(FAKE, tmp_path / "data" / "fake")
    assert "gives no scores" in _refusal(tmp_path / "data", "--model", "untrained", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_one_label_is_refused(tmp_path):
    _place(FAKE, tmp_path / "data" / "fake")
    text = _refusal(tmp_path / "data", "--out", tmp_path / "out")
    assert "none is real" in text


def test_two_videos_of_one_name_are_refused(tmp_path):
    for part in ("a", "b"):
        _place(FAKE, tmp_path / part / "data" / "fake")
        _place(REAL[0], tmp_path / part / "data" / "real", f"{part}.mp4")
    text = _refusal(tmp_path / "a" / "data", tmp_path / "b" / "data", "--out", tmp_path / "out")
    assert f"data/fake/{FAKE}" in text


def test_results_on_s3_are_refused(tmp_path):
    _place(FAKE, tmp_path / "data" / "fake")
    _place(REAL[0], tmp_path / "data" / "real")
    assert "on this machine" in _refusal(tmp_path / "data", "--out", "s3://bucket/report")


# --- copies -------------------------------------------------------------------------------------------------------


def _times(path: Path) -> list[float]:
    with av.open(str(path)) as container:
        return [float(frame.time) for frame in container.decode(video=0) if frame.time is not None]


def test_a_copy_is_upright_and_smaller(tmp_path):
    original = ARCHIVE / ZOO["rotated_90.mp4"].path
    reencode(str(original), str(tmp_path / "copy.mp4"), 35)
    before, after = probe(original), probe(tmp_path / "copy.mp4")
    assert (after.width, after.height, after.rotation) == (before.width, before.height, 0)
    assert (tmp_path / "copy.mp4").stat().st_size < original.stat().st_size
    assert [p.name for p in tmp_path.iterdir()] == ["copy.mp4"]


def test_a_copy_keeps_the_times_of_a_variable_rate(tmp_path):
    original = ARCHIVE / ZOO["variable_fps.mp4"].path
    reencode(str(original), str(tmp_path / "copy.mp4"), 40)
    np.testing.assert_allclose(_times(tmp_path / "copy.mp4"), _times(original), atol=1e-3)


def test_a_lower_crf_is_closer_to_the_original(tmp_path):
    original = ARCHIVE / ZOO[REAL[0]].path

    def loss(crf: int) -> float:
        copy = tmp_path / f"{crf}.mp4"
        reencode(str(original), str(copy), crf)
        with av.open(str(original)) as one, av.open(str(copy)) as other:
            pairs = zip(one.decode(video=0), other.decode(video=0), strict=True)
            return float(np.mean([np.abs(a.to_ndarray() - b.to_ndarray().astype(float)).mean() for a, b in pairs]))

    assert loss(10) < loss(45)


def test_damaged_videos_are_copied_or_named(tmp_path):
    paths = {name: str(ARCHIVE / ZOO[name].path) for name in ("bitrot.mp4", "text.mp4", "truncated.mp4")}
    copies = {path: (tmp_path / f"{name}.copy.mp4", 10.0) for name, path in paths.items()}
    lost = make_copies(copies, 35)
    assert lost.keys() == {paths["text.mp4"], paths["truncated.mp4"]}
    assert lost[paths["text.mp4"]][0] is Status.UNSUPPORTED
    assert [p.name for p in tmp_path.iterdir()] == ["bitrot.mp4.copy.mp4"]
    assert len(_times(tmp_path / "bitrot.mp4.copy.mp4")) >= ZOO["bitrot.mp4"].readable - 10


# --- what is scanned ----------------------------------------------------------------------------------------------


def test_limit_takes_both_labels_alike(tmp_path):
    from scanner.evaluate import _videos_of

    for number in range(20):
        _place("text.mp4", tmp_path / "data" / "real", f"{number}.mp4")
        if number < 5:
            _place("text.mp4", tmp_path / "data" / "fake", f"{number}.mp4")

    def chosen(limit: int, seed: int = 0) -> list[tuple[str, str]]:
        return [(i.truth.label, i.truth.uri) for i in _videos_of([str(tmp_path / "data")], None, limit, seed)]

    for limit, fakes in ((2, 1), (7, 3), (10, 5), (16, 5), (99, 5)):
        labels = [label for label, _ in chosen(limit)]
        assert (labels.count("fake"), len(labels)) == (fakes, min(limit, 25))
    assert chosen(8) == chosen(8) != chosen(8, seed=1)


def test_a_video_that_is_called_both_is_refused(tmp_path):
    from scanner.evaluate import _videos_of

    _place(FAKE, tmp_path / "data" / "fake")
    for name, label in (("one.csv", "real"), ("two.csv", "fake")):
        (tmp_path / "data" / name).write_text(f"file,label\nfake/{FAKE},{label}\n")
    with pytest.raises(UserError, match="real in one place and fake in another"):
        _videos_of([str(tmp_path / "data" / name) for name in ("one.csv", "two.csv")], None, None, 0)


def test_pictures_and_a_folder_given_twice_count_once(tmp_path):
    from scanner.evaluate import _videos_of

    data = tmp_path / "data"
    _place("text.mp4", data / "real")
    _place("text.mp4", data / "real", "still.jpg")
    _place("text.mp4", data / "fake")
    with (data / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["file", "label", "group"], ["real/text.mp4", "real", "a"], ["fake/text.mp4", "fake", "a"]]
        )
    for layout in (None, "folders"):
        assert len(_videos_of([str(data), str(data)], layout, None, 0)) == 2
