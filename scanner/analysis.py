"""What the guarded child does with one span: decode it, follow its faces, measure them, keep small crops."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scanner import blink, micro
from scanner.decode import Reading, VideoInfo, analysis_size, probe, read_frames
from scanner.faces import crop_square, fractions, head_pose, landmark_box
from scanner.thinning import grid_slot
from scanner.tracking import LOST_AFTER_S, FaceTracker, Track

MIN_TRACK_S = 0.3  # what is seen for less is a false alarm of the detector


@dataclass(frozen=True)
class Analysis:
    """How spans are analysed: part of what decides a score."""

    fps: float  # frames looked at per second
    clip_fps: float  # face crops kept for the network per second
    crop_size: int  # px
    crop_margin: float  # side of a crop, in longer sides of the landmarks' box


@dataclass(frozen=True)
class FaceSignals:
    """One face of a span, over `frames` sampled moments, with `crops` pictures for the network."""

    t: np.ndarray  # (frames,) float64 seconds of the video
    boxes: np.ndarray  # (frames, 4) float32 x, y, w, h as fractions of the frame
    ear: np.ndarray  # (frames,) float32, as blink.combine_eyes gives it
    eyes: np.ndarray  # (frames, 2) float32 EAR of the left and the right eye
    pose: np.ndarray  # (frames, 3) float32 yaw, pitch, roll in degrees
    motion: np.ndarray  # (frames,) float32 eye distances a second
    region_motion: np.ndarray  # (frames, regions) float32, of micro.REGIONS each alone
    blinks: blink.Blinks
    irregularity: float | None
    crops: np.ndarray  # (crops, size, size, 3) uint8 RGB
    crop_frames: np.ndarray  # (crops,) int64: which of the sampled moments each shows


@dataclass(frozen=True)
class SpanSignals:
    """What a span shows, whoever looks at it next: no frames, only faces."""

    decoder: str
    lost_s: float
    analyzed_s: float
    face_s: float  # seconds with at least one face
    n_faces: int  # most at one moment
    faces: list[FaceSignals]


def probe_video(path: str) -> VideoInfo:
    """`decode.probe` for a child: takes and returns plain values."""
    return probe(Path(path))


def analyze_span(
    path: str,
    info: VideoInfo,
    t_start: float,
    t_end: float,
    settings: Analysis,
    decoder: str,
    tell: Callable[[float], object] | None = None,
) -> SpanSignals:
    """Analyse the span [t_start, t_end) of a video file.

    decoder: "pyav", or "decord", which may raise DecordGaveUp. Deterministic: the same file and settings give the
    same signals. tell: called with the share of the span that is done, 0 to 1.
    """
    tracker = _tracker()
    tracker.finish()  # a span that broke off may have left its faces behind
    reading = Reading()
    crops: dict[int, list[tuple[float, np.ndarray]]] = {}
    looked_at: list[float] = []
    last_slot = None
    end = min(t_end, info.duration_s)
    length = max(1e-3, end - t_start)
    for t, rgb in read_frames(Path(path), info, t_start, t_end, settings.fps, decoder, reading):
        if tell is not None:
            tell(min(1.0, (t - t_start) / length))
        looked_at.append(t)
        seen = tracker.update(t, rgb)
        slot = grid_slot(t, settings.clip_fps)
        if slot != last_slot:
            last_slot = slot
            for track, box in seen:
                with contextlib.suppress(ValueError):  # landmarks of a leaving face can lie outside the frame
                    crop = crop_square(rgb, box, settings.crop_margin, settings.crop_size)
                    crops.setdefault(id(track), []).append((t, crop))
    tracks = [track for track in tracker.finish() if len(track.times) >= MIN_TRACK_S * settings.fps]
    size = analysis_size(info)
    wanted = max(0.0, end - max(t_start, info.start_s))
    return SpanSignals(
        decoder=decoder,
        lost_s=round(reading.lost_s, 3),
        analyzed_s=max(0.0, wanted - reading.lost_s),
        face_s=shown_s(np.unique([t for track in tracks for t in track.times]), np.array(looked_at), end),
        n_faces=_most_at_once(tracks),
        faces=[measure(track, crops.get(id(track), []), size, settings.crop_size) for track in tracks],
    )


@functools.cache
def _tracker() -> FaceTracker:
    return FaceTracker()


def shown_s(moments: np.ndarray, looked_at: np.ndarray, end: float) -> float:
    """Seconds that the frames at some of the moments looked at are on screen.

    moments, looked_at: ascending seconds, (some,) and (all,); end: of what was looked at, seconds. Each frame stands
    until the next one; behind LOST_AFTER_S nobody knows what was there, as where frames are lost.
    """
    if not len(moments):
        return 0.0
    lasting = np.clip(np.diff(looked_at, append=end), 0.0, LOST_AFTER_S)
    return float(lasting[np.searchsorted(looked_at, moments)].sum())


def _most_at_once(tracks: list[Track]) -> int:
    moments = [t for track in tracks for t in track.times]
    return int(np.unique(moments, return_counts=True)[1].max()) if moments else 0


def measure(track: Track, crops: list[tuple[float, np.ndarray]], size: tuple[int, int], crop_size: int) -> FaceSignals:
    """The signals of one track in frames of `size` (width, height) px; crops: (seconds, picture) of some moments."""
    t = np.array(track.times)
    landmarks = np.stack(track.landmarks)
    pose = head_pose(landmarks)
    left = blink.eye_aspect_ratio(landmarks, blink.EAR_LEFT)
    right = blink.eye_aspect_ratio(landmarks, blink.EAR_RIGHT)
    ear = blink.combine_eyes(left, right, pose[:, 0])
    motion = micro.analyze_motion(t, landmarks)
    return FaceSignals(
        t=t,
        boxes=fractions(landmark_box(landmarks), *size),
        ear=ear,
        eyes=np.stack([left, right], axis=1),
        pose=pose,
        motion=motion.speed,
        region_motion=motion.regions,
        blinks=blink.analyze_blinks(t, ear),
        irregularity=motion.irregularity,
        crops=np.stack([c for _, c in crops]) if crops else np.zeros((0, crop_size, crop_size, 3), np.uint8),
        crop_frames=np.searchsorted(t, [moment for moment, _ in crops]),
    )
