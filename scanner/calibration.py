"""The end of a training: fusion and bands from the scores of held-out sources, the saved model, its figures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from models.evaluation import Estimate, Judged, Report, evaluate, report_json
from models.evaluation_text import report_markdown, show
from models.figures import draw_figures
from models.golden import write_golden
from models.metrics import auc, bootstrap_rate, rate_metrics
from models.network import ClipNet
from models.prepared import FaceTrack
from models.registry import save_model
from models.spec import FUSION_TERMS, ModelSpec
from models.training.calibrate import (
    GENUINE,
    bands_of_crossed,
    crossed,
    enough,
    fit_fusion,
    fusions_of_others,
    margins,
    score,
    thresholds,
)
from models.training.recipe import REENCODED_CRF, TrackScores
from scanner.fusion import evidence, fuse, verdict

TERMS = FUSION_TERMS[1:]  # all but the intercept
FIGURES = "figures.json"  # beside model.json, and no part of its digest: `deepsweep report` shows it
ABLATION = {
    "CNN only": ("cnn_top", "cnn_mean"),
    "blinks only": ("blink",),
    "micro-expressions only": ("micro",),
    "all": TERMS,
}


@dataclass(frozen=True)
class Calibration:
    """Videos that were held out, each by its most suspicious face."""

    faces: list[TrackScores]
    terms: dict[str, np.ndarray]  # term → (videos,)
    methods: np.ndarray  # (videos,) str: GENUINE, or how they were manipulated
    folds: np.ndarray  # (videos,) int: where they were held out

    @classmethod
    def of(cls, held_out: Sequence[TrackScores]) -> Calibration:
        """From all faces; those without a clip say nothing."""
        best: dict[str, TrackScores] = {}
        for face in held_out:
            if len(face.clips):
                other = best.get(face.track.uri)
                if other is None or face.clips.mean() > other.clips.mean():
                    best[face.track.uri] = face
        faces = list(best.values())
        rows = [_terms(face.clips, face.track) for face in faces]
        terms = {term: np.array([row[term] for row in rows]) for term in TERMS}
        methods = [(face.track.method or "fake") if face.track.fake else GENUINE for face in faces]
        return cls(faces, terms, np.array(methods, str), np.array([face.fold for face in faces], int))

    @property
    def fake(self) -> np.ndarray:
        """(videos,) bool."""
        return self.methods != GENUINE


def finish(
    network: ClipNet, held_out: Sequence[TrackScores], spec: ModelSpec, folder: Path, say: Callable[[str], None]
) -> ModelSpec:
    """Calibrate on what was held out, save the model with its figures to folder/model, write folder/held-out/."""
    calibration = Calibration.of(held_out)
    if not enough(calibration.fake):
        say("Too few videos were held out to calibrate: scores are the network's own, bands at 0.3 and 0.7.")
        fusion, bands = {**dict.fromkeys(FUSION_TERMS, 0.0), "cnn_mean": 1.0}, {"fake": 0.7, "real": 0.3}
    else:
        fusion = fit_fusion(calibration.terms, calibration.methods, TERMS)
        bands = bands_of_crossed(calibration.terms, calibration.methods, calibration.folds, TERMS)
        bands = bands or thresholds(score(calibration.terms, fusion), calibration.fake)
    saved = save_model(folder / "model", network, replace(spec, fusion=fusion, thresholds=bands))
    write_golden(saved)
    _report(calibration, saved, folder, say)
    say(f"The model lies in {folder / 'model'}: deepsweep scan ARCHIVE --out RESULTS --model {folder / 'model'}")
    return saved


def figures_json(report: Report, flagged: Mapping[str, Estimate]) -> str:
    """What a model's folder says of it: of report.json the figures of whole videos, with the rates at both bands.

    flagged: tpr and fpr of `fake`, from bands that other folds set. Of `real` they count what scores above it, and so
    is not passed as genuine.
    """
    whole = json.loads(report_json(report))
    counts = {name: whole["videos"][name] for name in ("reals", "fakes", "recordings")}
    rates = {**flagged, **_rates_above_real(report)}
    figures = {
        **{name: whole[name] for name in ("model_digest", "created_at", "thresholds")},
        "videos": counts | whole["videos"]["metrics"] | {name: asdict(rate) for name, rate in rates.items()},
        "reliability": whole["reliability"],
    }
    return json.dumps(figures, indent=1, allow_nan=False)


def _rates_above_real(report: Report) -> dict[str, Estimate]:
    fake = np.array([video["label"] == "fake" for video in report.judged], bool)
    scores = np.array([video["score"] for video in report.judged], np.float64)
    groups = [video["group"] for video in report.judged]
    rates = _rates(fake, scores, groups, math.nextafter(report.thresholds["real"], 1))
    return {f"{name}_above_real": rate for name, rate in rates.items()}


def _rates(fake: np.ndarray, scores: np.ndarray, groups: Sequence[str], threshold: float) -> dict[str, Estimate]:
    """tpr and fpr with their intervals; without a value where a score is NaN."""
    rates = {}
    for name, metric in rate_metrics(threshold).items():
        found = [math.nan] * 3
        if not np.isnan(scores).any():
            found = [float(metric(fake, scores)), *bootstrap_rate(metric, fake, scores, groups)]
        known = [value if math.isfinite(value) else None for value in found]
        rates[name] = Estimate(*known)
    return rates


def _report(calibration: Calibration, spec: ModelSpec, run: Path, say: Callable[[str], None]) -> None:
    fusions = {
        name: fusions_of_others(calibration.terms, calibration.methods, calibration.folds, terms)
        for name, terms in ABLATION.items()
    }
    held_out = {name: crossed(calibration.terms, calibration.folds, of) for name, of in fusions.items()}
    known = ~np.isnan(held_out["all"])
    if not enough(calibration.fake[known]):
        say("Too few sources were held out to give figures.")
        (run / "model" / FIGURES).unlink(missing_ok=True)  # an earlier model's
        return
    folder = run / "held-out"
    faces = [face for face, one in zip(calibration.faces, known, strict=True) if one]
    others = fusions["all"]
    report = evaluate(
        [_judged(face, face.clips, others[face.fold], spec) for face in faces],
        model=spec.name,
        model_digest=spec.digest,
        thresholds=spec.thresholds,
        copies=[_judged(face, face.reencoded, others[face.fold], spec) for face in faces],
        crf=REENCODED_CRF,
    )
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in draw_figures(report).items():
        (folder / name).write_bytes(picture)
    (folder / "report.json").write_text(report_json(report), encoding="utf-8")
    passed = margins(calibration.terms, calibration.methods, calibration.folds, TERMS)
    groups = [face.track.group for face in calibration.faces]
    flagged = _rates(calibration.fake, passed, groups, threshold=0.0)
    (run / "model" / FIGURES).write_text(figures_json(report, flagged), encoding="utf-8")
    lines = ["", "## Ablation", "", "| evidence | AUC of videos |", "| --- | --- |"]
    lines += [f"| {name} | {auc(calibration.fake[known], one[known]):.3f} |" for name, one in held_out.items()]
    lines += ["", "Fusion: " + ", ".join(f"{term} {value:.3f}" for term, value in spec.fusion.items()) + "."]
    lines += [
        "",
        "The bands were set on these scores. By bands, and fusions, that other folds alone set: "
        + "; ".join(f"{name.upper()} of `fake` {show(rate)}" for name, rate in flagged.items())
        + ".",
    ]
    (folder / "report.md").write_text(report_markdown(report) + "\n".join(lines) + "\n", encoding="utf-8")
    figure = float(auc(calibration.fake[known], held_out["all"][known]))
    say(f"Sources held out: AUC {figure:.3f} of {len(faces)} videos; see {folder / 'report.md'}")


def _terms(clips: np.ndarray, track: FaceTrack) -> dict[str, float]:
    return evidence(clips, track.blink_score, track.micro_irregularity)


def _judged(face: TrackScores, clips: np.ndarray, fusion: Mapping[str, float], spec: ModelSpec) -> Judged:
    """A held-out video as an evaluation wants it. clips: the network's probabilities. fusion: of the other folds."""
    track = face.track

    def fused(some: np.ndarray) -> float:
        return fuse(some, track.blink_score, track.micro_irregularity, fusion)

    value = fused(clips)
    return Judged(
        uri=track.uri,
        label=track.label,
        method=track.method,
        source=track.source,
        group=track.group,
        status="ok",
        score=value,
        cnn_score=float(clips.mean()),
        verdict=verdict(value, spec.thresholds["fake"], spec.thresholds["real"]),
        clips=tuple(fused(clip[None]) for clip in clips),
        container=track.container,
    )
