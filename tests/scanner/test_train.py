"""`deepsweep train` on a little prepared data: a model comes out that scores, and a second call goes on or refuses."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from models.golden import check_golden
from models.prepared import read_tracks
from models.registry import load_network, load_spec
from models.scorer import ClipScorer
from models.training.fit import Progress
from models.training.recipe import Recipe, TrackScores
from queries.report.cards import ModelCard, find_card
from scanner import calibration
from scanner.cli import main
from scanner.train import _Screen, train
from tests.models.training.conftest import crop, write_prep

__all__ = ["crop"]  # a fixture

SIZE = 128
SHORT = ["--epochs", "1", "--video-epochs", "0.5", "--folds", "2", "--clips", "4", "--batch-size", "4"]
SHORT += ["--input-size", str(SIZE)]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["train", *arguments], prog_name="deepsweep", catch_exceptions=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, crop) -> tuple[Path, Path, Result]:
    prep = write_prep(tmp_path_factory.mktemp("train") / "prep", crop, videos=12)
    out = prep.parent / "run"
    return prep, out, run(str(prep), "--out", str(out), "--name", "try", "--init", "untrained", *SHORT)


def test_a_model_comes_out_that_scores_and_passes_its_self_test(trained):
    _, out, result = trained
    assert result.exit_code == 0, result.output
    spec = load_spec(out / "model")
    assert spec.trained and spec.label == "try" and spec.input_size == SIZE
    assert 0 <= spec.thresholds["real"] <= spec.thresholds["fake"] <= 1
    assert all(spec.fusion[term] >= 0 for term in ("cnn_top", "cnn_mean", "blink", "micro"))
    assert check_golden(spec).passed
    clips = np.zeros((1, spec.clip_frames, spec.input_size, spec.input_size, 3), np.uint8)
    assert 0 <= ClipScorer(spec, device="cpu").score(clips, np.array([8]))[0][0] <= 1


def test_another_backbone_starts_at_random_and_sees_crops_of_its_own_size(trained, tmp_path):
    prep, _, _ = trained
    least = ["--epochs", "0", "--video-epochs", "0.2", "--folds", "0", "--clips", "2", "--batch-size", "2"]
    result = run(str(prep), "--out", str(tmp_path / "run"), "--backbone", "meso4", *least)
    assert result.exit_code == 0, result.output
    spec = load_spec(tmp_path / "run" / "model")
    assert (spec.architecture.backbone, spec.input_size) == ("meso4", 256)
    assert check_golden(spec).passed
    other = run(str(prep), "--out", str(tmp_path / "other"), "--backbone", "meso4", "--init", "sweep4", *SHORT)
    assert other.exit_code == 2 and "it is a mobilenet_v2_ibn, not a meso4" in other.output


def test_the_figures_are_those_of_sources_that_were_held_out(trained):
    _, out, result = trained
    report = json.loads((out / "held-out" / "report.json").read_text())
    assert {row["uri"] for row in report["judged"]} == {f"videos/{number}" for number in range(12)}
    text = (out / "held-out" / "report.md").read_text()
    assert "CNN only" in text and "blinks only" in text
    assert "fold0: auc" in result.stderr and "fold1: auc" in result.stderr
    rows = list(csv.reader((out / "curves.csv").open()))
    assert rows[0][:2] == ["stage", "step"]


def test_the_models_folder_holds_the_figures_of_the_report(trained):
    _, out, _ = trained
    report = json.loads((out / "held-out" / "report.json").read_text())
    figures = json.loads((out / "model" / "figures.json").read_text())
    videos = figures["videos"]
    for name in ("auc", "ap", "log_loss", "brier", "ece"):
        assert videos[name] == report["videos"]["metrics"][name], name
    unknown = {"value": None, "low": None, "high": None}  # of the bands' rates: two folds leave none to set bands by
    assert videos["fpr"] == videos["tpr"] == unknown
    assert (videos["reals"], videos["fakes"]) == (6, 6)
    assert figures["reliability"] == report["reliability"]
    above = {label: 6 - report["verdicts"][label].get("real", 0) for label in ("real", "fake")}
    assert videos["fpr_above_real"]["value"] == pytest.approx(above["real"] / 6)
    assert videos["tpr_above_real"]["value"] == pytest.approx(above["fake"] / 6)
    assert 0 <= videos["fpr_above_real"]["low"] <= videos["fpr_above_real"]["high"] <= 1


def test_the_figures_are_shown_with_the_model_and_do_not_change_its_digest(trained, tmp_path):
    _, out, _ = trained
    spec = load_spec(out / "model")
    card = find_card("try", spec.digest, [str(out / "model")])
    assert isinstance(card, ModelCard)
    assert card.headline[0][0] == "AUC" and len(card.headline) == 3
    assert card.measured_on == (6, 6) and sum(one.count for one in card.reliability) == 12
    copy = shutil.copytree(out / "model", tmp_path / "copy")
    (copy / "figures.json").unlink()
    assert load_spec(copy).digest == spec.digest


def test_clips_and_copies_are_judged_by_the_fusion_that_their_video_is(trained, tmp_path):
    """One clip a video, and copies that score as the originals: a fusion that had seen some of them would show."""
    prep, out, _ = trained
    spec, rng, held_out = load_spec(out / "model"), np.random.default_rng(3), []
    for number, track in enumerate(track for track in read_tracks(prep) if track.kind == "video"):
        clip = rng.uniform(0.2, 0.8, 1).astype(np.float32)
        held_out.append(TrackScores(replace(track, blink_score=None), number % 3, clip, clip))
    calibration.finish(load_network(spec), held_out, spec, tmp_path, lambda _: None)
    report = json.loads((tmp_path / "held-out" / "report.json").read_text())
    assert report["clips"]["metrics"]["log_loss"]["value"] == report["videos"]["metrics"]["log_loss"]["value"]
    assert report["reencoded"]["changed_verdicts"] == 0
    flagged = json.loads((tmp_path / "model" / "figures.json").read_text())["videos"]["fpr"]
    assert 0 <= flagged["low"] <= flagged["value"] <= flagged["high"] <= 1


def test_figures_of_an_earlier_model_do_not_stay_where_there_are_none(trained, tmp_path):
    folder = shutil.copytree(trained[1] / "model", tmp_path / "model")
    spec = load_spec(folder)
    calibration.finish(load_network(spec), [], spec, tmp_path, lambda _: None)
    assert load_spec(folder).trained and not (folder / "figures.json").exists()


def test_a_second_call_refuses_and_with_resume_finds_everything_done(trained):
    prep, out, _ = trained
    digest = load_spec(out / "model").digest
    again = run(str(prep), "--out", str(out), "--name", "try", "--init", "untrained", *SHORT)
    assert again.exit_code == 2 and "--resume" in again.output
    other = run(str(prep), "--out", str(out), "--init", "untrained", *SHORT, "--seed", "5", "--resume")
    assert other.exit_code == 2 and "other settings" in other.output
    resumed = run(str(prep), "--out", str(out), "--name", "try", "--init", "untrained", *SHORT, "--resume")
    assert resumed.exit_code == 0 and "steps" not in resumed.stderr
    assert load_spec(out / "model").digest == digest


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{empty}", "--out", "{out}"], "holds no prepared data"),
        (["{prep}", "--out", "{out}", "--init", "nowhere"], "There is no model 'nowhere'"),
        (["{prep}", "--out", "{out}", "--init", "{text}"], "not a safetensors file"),
        (["{prep}", "--out", "{out}", "--device", "cuda"], "no CUDA device"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(trained, tmp_path, arguments, words):
    (tmp_path / "weights.safetensors").write_text("not weights")
    places = {"prep": trained[0], "out": tmp_path / "run", "empty": tmp_path, "text": tmp_path / "weights.safetensors"}
    result = run(*[argument.format(**places) for argument in arguments])
    assert result.exit_code == 2
    assert words in result.output and "Traceback" not in result.output


@pytest.mark.parametrize(("first", "accuracy", "warned"), [(1, 0.5, True), (1, 0.6, False), (501, 0.56, False)])
def test_a_network_that_only_guesses_is_told_of_while_there_is_time(tmp_path, capsys, first, accuracy, warned):
    screen = _Screen(tmp_path, quiet=False)
    screen.stage("stills", 1300)
    for step in range(first, 1301):  # not from 1 where it was resumed
        screen.progress("stills", Progress(step, 0.69, accuracy, 1.0))
    screen.close()
    assert ("lower --learning-rate" in capsys.readouterr().err) == warned


def test_the_options_are_the_recipe_by_default():
    defaults = {option.name: option.default for option in train.params}
    assert {field.name: defaults[field.name] for field in fields(Recipe)} == asdict(Recipe())
