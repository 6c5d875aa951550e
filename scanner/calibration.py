"""The end of a training: fusion and bands from the scores of held-out sources, the saved model, its figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from models.evaluation import Judged, evaluate, report_json
from models.evaluation_text import report_markdown
from models.figures import draw_figures
from models.golden import write_golden
from models.metrics import auc
from models.network import ClipNet
from models.prepared import FaceTrack
from models.registry import save_model
from models.spec import FUSION_TERMS, ModelSpec
from models.training.calibrate import (
    chosen,
    crossed,
    enough,
    fit_fusion,
    score,
    splits,
    telling_terms,
    thresholds,
)
from models.training.recipe import REENCODED_CRF, TrackScores
from scanner.fusion import evidence, fuse, verdict

TERMS = FUSION_TERMS[1:]  # all but the intercept
CNN, WEAK = ("cnn_top", "cnn_mean"), ("blink", "micro")  # weak evidence must earn its place
ABLATION = {"CNN only": CNN, "blinks only": WEAK[:1], "micro-expressions only": WEAK[1:], "all": TERMS}


@dataclass(frozen=True)
class Calibration:
    """Videos that were held out, each by its most suspicious face."""

    faces: list[TrackScores]
    terms: dict[str, np.ndarray]  # term → (videos,)
    fake: np.ndarray  # (videos,) bool
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
        labels, folds = [face.track.fake for face in faces], [face.fold for face in faces]
        return cls(faces, terms, np.array(labels, bool), np.array(folds, int))


def finish(
    network: ClipNet, held_out: Sequence[TrackScores], spec: ModelSpec, folder: Path, say: Callable[[str], None]
) -> ModelSpec:
    """Calibrate on what was held out, save the model to folder/model, write folder/held-out/."""
    calibration = Calibration.of(held_out)
    if not enough(calibration.fake):
        say("Too few videos were held out to calibrate: scores are the network's own, bands at 0.3 and 0.7.")
        fusion, bands = {**dict.fromkeys(FUSION_TERMS, 0.0), "cnn_mean": 1.0}, {"fake": 0.7, "real": 0.3}
    else:
        terms = telling_terms(calibration.terms, calibration.fake, calibration.folds, CNN, WEAK)
        fusion = fit_fusion(calibration.terms, calibration.fake, terms)
        bands = thresholds(score(calibration.terms, fusion), calibration.fake)
    saved = save_model(folder / "model", network, replace(spec, fusion=fusion, thresholds=bands))
    write_golden(saved)
    _report(calibration, saved, folder / "held-out", say)
    say(f"The model lies in {folder / 'model'}: deepsweep scan ARCHIVE --out RESULTS --model {folder / 'model'}")
    return saved


def held_out_scores(calibration: Calibration) -> np.ndarray:
    """Each video's score as a model of the other folds alone would give it: (videos,), NaN where those are too few.

    Which terms that model looks at is decided by the other folds too.
    """
    scores = np.full(len(calibration.faces), np.nan)
    for inside, others in splits(calibration.fake, calibration.folds):
        known, fake = chosen(calibration.terms, others), calibration.fake[others]
        terms = telling_terms(known, fake, calibration.folds[others], CNN, WEAK)
        scores[inside] = score(chosen(calibration.terms, inside), fit_fusion(known, fake, terms))
    return scores


def _report(calibration: Calibration, spec: ModelSpec, folder: Path, say: Callable[[str], None]) -> None:
    scores = held_out_scores(calibration)
    known = ~np.isnan(scores)
    if not enough(calibration.fake[known]):
        say("Too few sources were held out to give figures.")
        return
    faces = [face for face, one in zip(calibration.faces, known, strict=True) if one]
    values = scores[known]
    report = evaluate(
        [_judged(face, face.clips, value, spec) for face, value in zip(faces, values, strict=True)],
        model=spec.name,
        model_digest=spec.digest,
        thresholds=spec.thresholds,
        copies=[_judged(face, face.reencoded, _fused(face, face.reencoded, spec), spec) for face in faces],
        crf=REENCODED_CRF,
    )
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in draw_figures(report).items():
        (folder / name).write_bytes(picture)
    (folder / "report.json").write_text(report_json(report), encoding="utf-8")
    lines = ["", "## Ablation", "", "| evidence | AUC of videos |", "| --- | --- |"]
    for name, terms in ABLATION.items():
        one = crossed(calibration.terms, calibration.fake, calibration.folds, terms)
        lines.append(f"| {name} | {auc(calibration.fake[known], one[known]):.3f} |")
    lines.append(f"| what is used | {auc(calibration.fake[known], values):.3f} |")
    lines += ["", "Fusion: " + ", ".join(f"{term} {value:.3f}" for term, value in spec.fusion.items()) + "."]
    (folder / "report.md").write_text(report_markdown(report) + "\n".join(lines) + "\n", encoding="utf-8")
    figure = float(auc(calibration.fake[known], values))
    say(f"Sources held out: AUC {figure:.3f} of {len(faces)} videos; see {folder / 'report.md'}")


def _terms(clips: np.ndarray, track: FaceTrack) -> dict[str, float]:
    return evidence(clips, track.blink_score, track.micro_irregularity)


def _fused(face: TrackScores, clips: np.ndarray, spec: ModelSpec) -> float:
    return fuse(clips, face.track.blink_score, face.track.micro_irregularity, spec.fusion)


def _judged(face: TrackScores, clips: np.ndarray, value: float, spec: ModelSpec) -> Judged:
    """A held-out video as an evaluation wants it: `value` is its score, `clips` the network's probabilities."""
    track = face.track
    return Judged(
        uri=track.uri,
        label=track.label,
        method=track.method,
        source=track.source,
        group=track.group,
        status="ok",
        score=float(value),
        cnn_score=float(clips.mean()),
        verdict=verdict(float(value), spec.thresholds["fake"], spec.thresholds["real"]),
        clips=tuple(_fused(face, clip[None], spec) for clip in clips),
        container=track.container,
    )
