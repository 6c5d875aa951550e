"""Reports on made-up verdicts whose truth is known."""

from __future__ import annotations

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.baseline import Container, container_features, fit_logistic, unseen_scores
from models.evaluation import Judged, Report, evaluate, report_json
from models.evaluation_text import report_markdown
from models.figures import draw_figures

THRESHOLDS = {"fake": 0.8, "real": 0.3}
SOURCES = 6


def _verdict(score: float) -> str:
    return "fake" if score >= THRESHOLDS["fake"] else "real" if score <= THRESHOLDS["real"] else "uncertain"


def _video(number: int, label: str, score: float | None, **more) -> Judged:
    facts = {
        "uri": f"data/{label}/{number}.mp4",
        "label": label,
        "method": "swap" if label == "fake" else None,
        "source": f"{label}{number % SOURCES}",
        "group": f"{label}{number}",
        "status": "no_face" if score is None else "ok",
    }
    if score is not None:
        facts |= {
            "score": score,
            "cnn_score": score,
            "verdict": _verdict(score),
            "clips": (score, max(0.0, score - 0.1)),
        }
    return Judged(**{**facts, **more})


def _report(rows: list[Judged], **more) -> Report:
    settings = {"model": "m", "model_digest": "abc", "thresholds": THRESHOLDS, "resamples": 200}
    return evaluate(rows, **{**settings, **more})


@pytest.fixture(scope="module")
def rows() -> list[Judged]:
    """Swaps that are found, lip movements that are not, and two videos that could not be judged."""
    rng = np.random.default_rng(5)
    reals = [_video(i, "real", float(rng.uniform(0, 0.35))) for i in range(40)]
    swaps = [_video(i, "fake", float(rng.uniform(0.6, 1))) for i in range(20)]
    lips = [_video(i, "fake", float(rng.uniform(0, 0.35)), method="lips") for i in range(20, 40)]
    lost = [_video(98, "real", None), _video(99, "fake", None, status="timeout", error="no answer within 600 s")]
    return [*reals, *swaps, *lips, *lost]


@pytest.fixture(scope="module")
def report(rows) -> Report:
    return _report(rows)


def test_overall_and_by_method(report):
    assert (report.videos.reals, report.videos.fakes, report.videos.recordings) == (40, 40, 80)
    assert (report.clips.reals, report.clips.fakes) == (80, 80)
    swaps, lips = (report.methods[name]["videos"] for name in ("swap", "lips"))
    assert (swaps.reals, swaps.fakes) == (40, 20)
    assert swaps.metrics["auc"].value == 1
    low, high = lips.metrics["auc"].low, lips.metrics["auc"].high
    assert low is not None and high is not None and low < 0.5 < high
    both = report.videos.metrics["auc"].value
    assert both == pytest.approx((1 + lips.metrics["auc"].value) / 2)
    assert report.videos.metrics["tpr_at_fpr_1%"].value is None  # 40 reals cannot show 1 %


def test_rates_are_those_of_the_verdicts(report, rows):
    fakes = [row for row in rows if row.label == "fake" and row.score is not None]
    assert report.videos.metrics["tpr"].value == pytest.approx(np.mean([row.verdict == "fake" for row in fakes]))
    fpr = report.videos.metrics["fpr"]
    assert (fpr.value, fpr.low) == (0, 0)
    assert fpr.high == pytest.approx(1 - 0.025 ** (1 / 40))  # none of 40 is not never
    assert report.verdicts["fake"]["fake"] == sum(row.verdict == "fake" for row in fakes)


def test_videos_that_could_not_be_judged_are_counted_and_named(report):
    assert report.statuses == {"real": {"no_face": 1, "ok": 40}, "fake": {"ok": 40, "timeout": 1}}
    assert [video["status"] for video in report.not_judged] == ["no_face", "timeout"]
    page = report_markdown(report)
    assert "data/fake/99.mp4 (fake): timeout, no answer within 600 s" in page
    assert "data/real/98.mp4 (real): no_face" in page


def test_sources(report, rows):
    assert {(s.source, s.label) for s in report.sources} == {(row.source, row.label) for row in rows}
    assert sum(source.videos for source in report.sources) == 82
    assert sum(source.judged for source in report.sources) == 80
    assert report.source_figures == {}  # no source has both labels
    mine = [row for row in rows if row.source == "real0"]
    (source,) = (s for s in report.sources if s.source == "real0")
    assert source.mean_score.value == pytest.approx(np.mean([row.score for row in mine]))
    assert source.verdicts["real"].value == pytest.approx(np.mean([row.verdict == "real" for row in mine]))


def test_a_source_with_both_labels_has_its_own_figures(rows):
    mixed = [replace(row, source="studio") if row.source in ("real0", "fake0") else row for row in rows]
    figures = _report(mixed).source_figures
    assert list(figures) == ["studio"]
    assert (figures["studio"]["videos"].reals, figures["studio"]["videos"].fakes) == (7, 7)


def test_json_is_strict_and_complete(report):
    def refuse(constant):
        raise AssertionError(constant)

    data = json.loads(report_json(report), parse_constant=refuse)
    assert data["videos"]["metrics"]["auc"]["value"] == report.videos.metrics["auc"].value
    assert data["videos"]["metrics"]["tpr_at_fpr_1%"]["value"] is None
    assert len(data["judged"]) == 80
    assert data["made_with"]["versions"]["torch"] and data["made_with"]["cores"] >= 1
    assert data["model_digest"] == "abc"


def test_markdown_has_the_figures(report):
    page = report_markdown(report)
    auc = report.videos.metrics["auc"]
    assert f"| AUC | {auc.value:.3f} [{auc.low:.3f}, {auc.high:.3f}] |" in page
    assert "| TPR at FPR 1 % | – | – |" in page
    widths = {line.count("|") for line in page.split("## By method")[1].split("Clips:")[0].splitlines() if "|" in line}
    assert len(widths) == 1


def test_names_of_strangers_stay_text(rows):
    name = 'a|b<script>alert(1)</script>\x1b[31m[x](https://evil).mp4"'
    page = report_markdown(_report([replace(rows[0], uri=name, source=name, score=0.99, verdict="fake"), *rows[1:]]))
    assert "<script>" not in page.replace("\\<", "")
    assert "\x1b" not in page and "](https" not in page
    assert "a\\|b" in page


def test_nothing_judged_is_a_report_too():
    report = _report([_video(0, "real", None), _video(1, "fake", None)])
    assert report.videos.metrics["auc"].value is None
    assert len(report.not_judged) == 2
    assert "data/real/0.mp4" in report_markdown(report)
    json.loads(report_json(report))
    assert len(draw_figures(report)) == 3


def test_figures_are_pictures(report):
    for name, data in draw_figures(report).items():
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        assert name.endswith(".png") and picture is not None and picture.std() > 5, name


def test_copies(rows):
    judged = [row for row in rows if row.score is not None]
    copies = [replace(row, score=0.9, verdict="fake") if row.label == "real" else row for row in judged[:-1]]
    copies[0] = judged[0]
    copies.append(replace(judged[-1], score=None, verdict=None, clips=(), status="crashed", error="re-encoding: died"))
    again = _report(rows, copies=copies, crf=35).reencoded
    assert again is not None
    assert again.real_not_fake.value == pytest.approx(1 / 40)
    assert again.changed_verdicts == 39
    assert [video["status"] for video in again.lost] == ["crashed"]
    assert again.videos.fakes == 39
    assert "CRF 35" in report_markdown(_report(rows, copies=copies, crf=35))


# --- what the container gives away --------------------------------------------------------------------------------


def _metadata_auc(rows: list[Judged]) -> float:
    value = _report(rows, resamples=0).metadata_auc.value
    assert value is not None
    return value


def _in_container(rows: list[Judged], container) -> list[Judged]:
    return [replace(row, container=container(row, i)) for i, row in enumerate(rows)]


def test_a_container_that_differs_by_label_is_found_out(rows):
    told = _in_container(rows, lambda row, i: Container(1000 + i, 10, 640, 360, 25 if row.fake else 30, "h264"))
    assert _metadata_auc(told) > 0.99


def test_a_container_that_differs_by_source_only_says_nothing(rows):
    own = _in_container(rows, lambda row, i: Container(1000, 10, 640, 360, 25, codec=row.source))
    assert _metadata_auc(own) == pytest.approx(0.5, abs=0.15)
    alike = _in_container(rows, lambda row, i: Container(1000, 10, 640, 360, 25, "h264"))
    assert _metadata_auc(alike) == pytest.approx(0.5, abs=0.15)


def test_what_is_not_known_of_a_container_is_no_obstacle(rows):
    assert 0 <= _metadata_auc(_in_container(rows, lambda row, i: Container())) <= 1
    half = _in_container(rows, lambda row, i: Container(fps=(25 if row.fake else 30) if i % 2 else None))
    assert _metadata_auc(half) > 0.6


def test_one_source_is_split_by_recording(rows):
    single = [replace(row, source="all") for row in rows]
    assert _report(single, resamples=0).metadata_left_out == "recording"
    assert _report(rows, resamples=0).metadata_left_out == "source"


def test_one_recording_cannot_be_split():
    features = container_features([Container(fps=25), Container(fps=30)])
    assert unseen_scores(features, np.array([True, False]), ["a", "a"], ["g", "g"]) is None


@given(st.integers(0, 1000))
def test_the_fit_is_a_minimum(seed):
    rng = np.random.default_rng(seed)
    design = np.hstack([np.ones((30, 1)), rng.normal(size=(30, 3))])
    labels = rng.uniform(size=30) < 0.3
    labels[:2] = True, False
    weight = np.where(labels, 15 / labels.sum(), 15 / (~labels).sum())

    def loss(coefficients: np.ndarray) -> float:
        sign = np.where(labels, 1, -1)
        return float(weight @ np.logaddexp(0, -sign * (design @ coefficients)) + 0.5 * (coefficients[1:] ** 2).sum())

    best = fit_logistic(design, labels, l2=1.0)
    for _ in range(5):
        assert loss(best) <= loss(best + rng.normal(scale=0.01, size=4))
