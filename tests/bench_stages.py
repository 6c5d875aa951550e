"""Each stage of a scan alone, one after another in one process, over the same videos.

    python -m tests.bench_stages MODEL VIDEO...

Prints {stage: {"video_s", "wall_s", "cpu_s"}} as JSON. The videos are read to their end: of a longer one decord would
go on reading ahead, at the expense of the stage that is measured next.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import pickle
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from models.gradcam import overlay
from models.registry import load_spec
from models.scorer import ClipScorer
from scanner import analysis
from scanner.analysis import Analysis, analyze_span
from scanner.clips import ClipScores, Thumbnail, clips_of, jpeg, pad
from scanner.config import ScanConfig
from scanner.decode import Reading, probe, read_frames
from scanner.records import RunFacts, Span, span_row
from scanner.results import new_run_id, write_part
from scanner.tracking import FaceTracker


class Stages:
    """Adds up what each stage takes."""

    def __init__(self) -> None:
        self.totals: dict[str, dict[str, float]] = {}

    @contextlib.contextmanager
    def time(self, stage: str, video_s: float) -> Iterator[None]:
        wall, cpu = time.perf_counter(), _cpu_s()
        yield
        total = self.totals.setdefault(stage, {"video_s": 0.0, "wall_s": 0.0, "cpu_s": 0.0})
        total["video_s"] += video_s
        total["wall_s"] += time.perf_counter() - wall
        total["cpu_s"] += _cpu_s() - cpu


def measure(stages: Stages, path: Path, scorer: ClipScorer, facts: RunFacts) -> None:
    """Take a video of a few seconds through every stage: its frames are kept, 40 MB a second at 720p."""
    config, spec = ScanConfig(), scorer.spec
    info = probe(path)
    seconds = info.duration_s
    settings = Analysis(config.fps, spec.clip_fps, spec.input_size, spec.crop_margin)
    for decoder in ("pyav", "decord"):
        with stages.time(f"decoding, {decoder}", seconds):
            for _ in read_frames(path, info, 0, math.inf, config.fps, decoder, Reading()):
                pass
    frames = list(read_frames(path, info, 0, math.inf, config.fps, "pyav", Reading()))
    tracker = _tracker()
    with stages.time("faces: detector and FaceMesh", seconds):
        for t, rgb in frames:
            tracker.update(t, rgb)
        tracks = tracker.finish()
    with stages.time("signals: blinks and motion", seconds):
        for track in tracks:
            analysis.measure(track, [], (info.width, info.height), spec.input_size)
    del frames
    # decord's thread decodes beside the analysis, and more than is asked for: the two differ in CPU time as well.
    with stages.time("analysis: decoding to crops, decord", seconds):
        analyze_span(str(path), info, 0, math.inf, settings, "decord")
    with stages.time("analysis: decoding to crops, pyav", seconds):
        signals = analyze_span(str(path), info, 0, math.inf, settings, "pyav")
    span = Span(str(path), "-", path.stat().st_size, info=info, t_end=seconds, signals=signals)
    with stages.time("passing spans on: pickle", seconds):
        pickle.loads(pickle.dumps(span, protocol=5))
    refs = clips_of(signals.faces, spec.clip_frames, spec.min_clip_frames)
    if not refs:
        raise SystemExit(f"no clip in {path.name}: nothing to score")
    with stages.time("scoring: CNN-LSTM, one core", seconds):
        padded, lengths = pad([signals.faces[r.face].crops[r.start : r.stop] for r in refs], spec.clip_frames)
        probabilities, answers, pooled = scorer.score_and_pool(padded, lengths)
    thumbnails = []
    explained = list(enumerate(refs))[: config.thumbnails]
    their_share = config.span_seconds * len(explained) / config.thumbnails  # of full spans, as an archive has them
    with stages.time(f"explaining: Grad-CAM, {config.thumbnails} a span", their_share):
        for number, ref in explained:
            frame, heat = scorer.explain(padded[number], int(lengths[number]), pooled[number])
            pictures = jpeg(padded[number][frame]), jpeg(overlay(padded[number][frame], heat))
            thumbnails.append(Thumbnail(ref.face, ref.start + frame, number, *pictures))
    shown = [a[:n] for a, n in zip(answers, lengths, strict=True)]
    with stages.time("sink: rows to Parquet", seconds), tempfile.TemporaryDirectory() as results:
        scored = Span(**{**span.__dict__, "scores": ClipScores(refs, probabilities, shown, thumbnails)})
        write_part(results, facts.run_id, [span_row(scored, facts)])


@functools.cache
def _tracker() -> FaceTracker:
    # One for all videos, as in a scan: making it loads MediaPipe's models.
    return FaceTracker()


def main(model: str, paths: list[Path]) -> dict[str, dict[str, float]]:
    spec = load_spec(model)
    scorer = ClipScorer(spec, device="cpu", threads=1)
    facts = RunFacts(new_run_id(), spec, "-", 0.5)
    measure(Stages(), paths[0], scorer, facts)  # what loads on first use is start-up
    stages = Stages()
    for path in paths:
        measure(stages, path, scorer, facts)
    return stages.totals


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], [Path(p) for p in sys.argv[2:]])))
