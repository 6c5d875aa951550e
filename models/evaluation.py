"""From judged videos to a report: how well a model tells fakes from reals, where it fails, and how sure that is."""

from __future__ import annotations

import json
import math
import os
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from models.baseline import Container, container_features, unseen_scores
from models.metrics import (
    METRICS,
    Bin,
    Metric,
    auc,
    bootstrap,
    bootstrap_rate,
    mean_score,
    rate_metrics,
    reliability,
)

VERDICTS = ("fake", "uncertain", "real")
UNNAMED = "unnamed"  # fakes whose data set does not say how they were made
REPORTED_PACKAGES = ("deepsweep", "torch", "mediapipe", "decord", "av", "numpy", "ray")


@dataclass(frozen=True)
class Judged:
    """A labelled video and what the scan said of it. score is None where it could not be judged."""

    uri: str  # as the report names it
    label: str  # real or fake
    method: str | None
    source: str
    group: str  # the recording
    status: str
    error: str | None = None
    score: float | None = None
    cnn_score: float | None = None
    verdict: str | None = None
    clips: tuple[float, ...] = ()  # score of each
    container: Container = field(default_factory=Container)

    @property
    def fake(self) -> bool:
        return self.label == "fake"


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval; None where there is too little data to give one."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Figures:
    """Every metric over some videos, or over their clips."""

    reals: int
    fakes: int
    recordings: int
    metrics: dict[str, Estimate]


@dataclass(frozen=True)
class Source:
    """What became of one source's videos of one label."""

    source: str
    label: str
    videos: int
    judged: int
    mean_score: Estimate
    verdicts: dict[str, Estimate]  # share of the judged ones


@dataclass(frozen=True)
class Reencoded:
    """The same videos after another pass through an encoder."""

    crf: int
    videos: Figures
    clips: Figures
    real_not_fake: Estimate  # share of the real videos whose copy is not called fake
    changed_verdicts: int
    lost: list[dict[str, Any]]  # judged before, but not as copies


@dataclass(frozen=True)
class Report:
    """All that `evaluate` found. Plain values and dataclasses of them: see report_json."""

    model: str
    model_digest: str
    thresholds: dict[str, float]
    created_at: str
    resamples: int
    seed: int
    made_with: dict[str, Any]
    statuses: dict[str, dict[str, int]]  # label → status → videos
    verdicts: dict[str, dict[str, int]]  # label → verdict → videos
    videos: Figures
    clips: Figures
    methods: dict[str, dict[str, Figures]]  # method → videos, clips: its fakes against all reals
    source_figures: dict[str, dict[str, Figures]]  # source → videos, clips: where it has both labels
    sources: list[Source]
    cnn_auc: Estimate  # of the network alone, before fusion
    metadata_auc: Estimate  # of the container alone
    metadata_left_out: str | None  # what its folds kept apart: source, recording
    reliability: list[Bin]
    not_judged: list[dict[str, Any]]
    judged: list[dict[str, Any]]  # uri, label, method, source, group, score, verdict, metadata_score
    reencoded: Reencoded | None = None


@dataclass(frozen=True)
class _Scored:
    """Items with a score each: videos, or clips. (n,) arrays."""

    fake: np.ndarray
    scores: np.ndarray
    groups: np.ndarray

    def __getitem__(self, mask: np.ndarray) -> _Scored:
        return _Scored(self.fake[mask], self.scores[mask], self.groups[mask])


class _Measure:
    """Estimates with the same resamples throughout."""

    def __init__(self, thresholds: Mapping[str, float], resamples: int, seed: int) -> None:
        self._rates = rate_metrics(thresholds["fake"])
        self._draws = (resamples, seed)

    def estimate(self, metric: Metric, items: _Scored, *, rate: bool = False) -> Estimate:
        value = float(metric(items.fake, items.scores))
        interval = bootstrap_rate if rate else bootstrap
        low, high = interval(metric, items.fake, items.scores, items.groups, *self._draws)
        return Estimate(*(x if math.isfinite(x) else None for x in (value, low, high)))

    def figures(self, items: _Scored) -> Figures:
        fakes = int(items.fake.sum())
        metrics = {name: self.estimate(metric, items) for name, metric in METRICS.items()}
        metrics |= {name: self.estimate(metric, items, rate=True) for name, metric in self._rates.items()}
        return Figures(len(items.fake) - fakes, fakes, len(np.unique(items.groups)), metrics)

    def both(self, videos: Sequence[Judged]) -> dict[str, Figures]:
        return {"videos": self.figures(_videos(videos)), "clips": self.figures(_clips(videos))}

    def share(self, videos: Sequence[Judged], hits: Sequence[bool]) -> Estimate:
        """Share of videos, of one label or both alike, that hit."""
        one_label = np.zeros(len(videos), bool)
        items = _Scored(one_label, np.array(hits, float), np.array([v.group for v in videos]))
        return self.estimate(mean_score, items, rate=True)


def evaluate(
    rows: Sequence[Judged],
    *,
    model: str,
    model_digest: str,
    thresholds: Mapping[str, float],
    resamples: int = 1000,
    seed: int = 0,
    copies: Sequence[Judged] = (),
    crf: int | None = None,
) -> Report:
    """The report on labelled videos.

    thresholds: the model's `fake` and `real`. copies: the judged ones of rows again, after re-encoding at `crf`.
    """
    measure = _Measure(thresholds, resamples, seed)
    judged = [row for row in rows if row.score is not None]
    reals = [row for row in judged if not row.fake]
    fakes = _by(lambda row: row.method or UNNAMED, (row for row in judged if row.fake))
    mixed = {
        source: mine
        for source, mine in _by(lambda row: row.source, judged).items()
        if len({row.label for row in mine}) == 2
    }
    metadata_auc, metadata_left_out, metadata_scores = _metadata(measure, judged)
    videos = _videos(judged)
    overall = measure.both(judged)
    return Report(
        model=model,
        model_digest=model_digest,
        thresholds=dict(thresholds),
        created_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        resamples=resamples,
        seed=seed,
        made_with=circumstances(),
        statuses=_counts(rows, lambda row: row.status),
        verdicts=_counts(judged, lambda row: row.verdict or "none"),
        videos=overall["videos"],
        clips=overall["clips"],
        methods={method: measure.both([*reals, *mine]) for method, mine in fakes.items()},
        source_figures={source: measure.both(mine) for source, mine in mixed.items()},
        sources=[
            _source(measure, source, label, mine)
            for (source, label), mine in _by(lambda row: (row.source, row.label), rows).items()
        ],
        cnn_auc=_cnn_auc(measure, judged),
        metadata_auc=metadata_auc,
        metadata_left_out=metadata_left_out,
        reliability=reliability(videos.fake, videos.scores),
        not_judged=_named(row for row in rows if row.score is None),
        judged=[
            {
                **{key: getattr(row, key) for key in ("uri", "label", "method", "source", "group", "score", "verdict")},
                "metadata_score": score,
            }
            for row, score in zip(judged, metadata_scores, strict=True)
        ],
        reencoded=None if crf is None else _reencoded(measure, crf, judged, copies),
    )


def report_json(report: Report) -> str:
    """The report as JSON; what could not be computed is null."""
    return json.dumps(asdict(report), indent=1, allow_nan=False, ensure_ascii=False)


def circumstances() -> dict[str, Any]:
    """Versions and machine: what a figure that comes out differently next year may be due to."""
    versions = {"python": platform.python_version()}
    for name in REPORTED_PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # run from a checkout, or without an extra
            continue
    return {"cpu": _cpu(), "cores": os.cpu_count(), "system": platform.platform(terse=True), "versions": versions}


# --- parts of the report ------------------------------------------------------------------------------------------


def _source(measure: _Measure, source: str, label: str, rows: Sequence[Judged]) -> Source:
    judged = [row for row in rows if row.score is not None]
    items = _videos(judged)
    return Source(
        source=source,
        label=label,
        videos=len(rows),
        judged=len(judged),
        mean_score=measure.estimate(mean_score, items),
        verdicts={verdict: measure.share(judged, [row.verdict == verdict for row in judged]) for verdict in VERDICTS},
    )


def _cnn_auc(measure: _Measure, judged: Sequence[Judged]) -> Estimate:
    known = [row for row in judged if row.cnn_score is not None]
    return measure.estimate(auc, _scored(known, [row.cnn_score for row in known]))


def _metadata(measure: _Measure, judged: Sequence[Judged]) -> tuple[Estimate, str | None, list[float | None]]:
    """AUC of the container alone, what was left out, and each video's score by it."""
    features = container_features([row.container for row in judged])
    fake = np.array([row.fake for row in judged], bool)
    found = unseen_scores(features, fake, [row.source for row in judged], [row.group for row in judged])
    if found is None:
        return Estimate(None), None, [None] * len(judged)
    scores, left_out = found
    return measure.estimate(auc, _scored(judged, scores)), left_out, [float(s) for s in scores]


def _reencoded(measure: _Measure, crf: int, judged: Sequence[Judged], copies: Sequence[Judged]) -> Reencoded:
    before = {row.uri: row for row in judged}
    after = [row for row in copies if row.score is not None]
    reals = [row for row in after if not row.fake]
    return Reencoded(
        crf=crf,
        **measure.both(after),
        real_not_fake=measure.share(reals, [row.verdict != "fake" for row in reals]),
        changed_verdicts=sum(row.verdict != before[row.uri].verdict for row in after if row.uri in before),
        lost=_named(row for row in copies if row.score is None),
    )


# --- pieces -------------------------------------------------------------------------------------------------------


def _videos(rows: Sequence[Judged]) -> _Scored:
    return _scored(rows, [row.score for row in rows])


def _clips(rows: Sequence[Judged]) -> _Scored:
    """Clips bear the label of their video: in a video that is manipulated in part, some of that is wrong."""
    return _scored([row for row in rows for _ in row.clips], [score for row in rows for score in row.clips])


def _scored(rows: Sequence[Judged], scores: Any) -> _Scored:
    return _Scored(
        np.array([row.fake for row in rows], bool), np.array(scores, np.float64), np.array([row.group for row in rows])
    )


def _by(key: Any, rows: Any) -> dict[Any, list[Judged]]:
    """Rows by their key, in its order."""
    parts: dict[Any, list[Judged]] = {}
    for row in rows:
        parts.setdefault(key(row), []).append(row)
    return dict(sorted(parts.items()))


def _counts(rows: Sequence[Judged], key: Any) -> dict[str, dict[str, int]]:
    return {
        label: dict(sorted(Counter(key(row) for row in rows if row.label == label).items()))
        for label in ("real", "fake")
    }


def _named(rows: Any) -> list[dict[str, Any]]:
    return [{"uri": row.uri, "label": row.label, "status": row.status, "error": row.error} for row in rows]


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
