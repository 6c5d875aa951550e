"""Blinks from eye landmarks: the eye aspect ratio, its dips, and how unusual their number is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# FaceMesh indices p1..p6 of Soukupová & Čech 2016, figure 1: outer corner, two on the upper lid, inner
# corner, two on the lower lid. Left and right are the person's own.
EAR_RIGHT = (33, 160, 158, 133, 153, 144)
EAR_LEFT = (263, 387, 385, 362, 380, 373)

MIN_FPS = 10.0  # a blink lasts 100 to 400 ms: below that rate whole blinks fall between two samples
MIN_SECONDS = 8.0  # at 17 blinks a minute two are expected in it; a shorter look says nothing of a rate
MAX_SAMPLE_GAP_S = 0.25  # a longer pause between samples is not time in which eyes were watched
NEAR_EYE_YAW = 20.0  # degrees: beyond it the far eye's lids are hidden by the nose and only guessed
MAX_YAW = 50.0  # beyond it neither eye is measured well
BASELINE_WINDOW_S = 4.0  # long against a blink, short against a change of gaze or pose
BASELINE_QUANTILE = 0.8  # the open eye, also when someone blinks a lot
MIN_DEPTH = 0.25  # of the open eye: squints and glances down stay above, blinks reach 0.5 and more
SINGLE_SAMPLE_DEPTH = 0.35  # a dip seen in one sample alone must be deeper than tracking noise reaches
NOISE_FACTOR = 4.0  # a dip is this many standard deviations of the open eye's own jitter
MAX_DEPTH_THRESHOLD = 0.5
MIN_DURATION_S, MAX_DURATION_S = 0.04, 0.8  # longer closures are closed eyes, not blinks
REOPENED = 0.5  # of the threshold: two dips with less opening between them are one blink

# Spontaneous blinks per minute at rest, in conversation and reading: 17, 26 and 4.5 (Bentivoglio et al.
# 1997, Movement Disorders 12). People differ widely, hence the broad spread.
HUMAN_RATE_MEAN = 17.0
HUMAN_RATE_SD = 10.0


@dataclass(frozen=True)
class Blinks:
    """Blinks of one face. `count`, `rate` and `score` are None when they could not be judged."""

    seconds: float  # in which the eyes could be watched
    times: np.ndarray  # (blinks,) float32: moment of the deepest closure
    durations: np.ndarray  # (blinks,) float32 seconds
    count: int | None
    rate: float | None  # per minute
    score: float | None  # 0 usual for a human, towards 1 unusually few or many


def eye_aspect_ratio(landmarks: np.ndarray, eye: Sequence[int]) -> np.ndarray:
    """Openness of one eye per frame: (|p2-p6| + |p3-p5|) / (2 |p1-p4|), Soukupová & Čech 2016, eq. 1.

    landmarks: (frames, points, 2 or 3) px, NaN where no face was found. With z, distances are taken in
    space, so a head turned sideways does not shorten the eye and feign a wide-open one.
    Returns (frames,) float32, NaN passed through.
    """
    p1, p2, p3, p4, p5, p6 = (landmarks[:, i] for i in eye)
    lids = np.linalg.norm(p2 - p6, axis=1) + np.linalg.norm(p3 - p5, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ear = lids / (2 * np.linalg.norm(p1 - p4, axis=1))
    return np.where(np.isfinite(ear), ear, np.nan).astype(np.float32)


def combine_eyes(left: np.ndarray, right: np.ndarray, yaw: np.ndarray) -> np.ndarray:
    """EAR of both eyes as one: their mean, the nearer eye alone on a turned head, NaN beyond MAX_YAW.

    left, right: (frames,) EAR; yaw: (frames,) degrees, > 0 to the person's left. Returns (frames,) float32.
    """
    # Turned to their left, a person shows the camera their right eye.
    ear = np.where(yaw > NEAR_EYE_YAW, right, np.where(yaw < -NEAR_EYE_YAW, left, (left + right) / 2))
    return np.where(np.abs(yaw) <= MAX_YAW, ear, np.nan).astype(np.float32)


def closure(t: np.ndarray, ear: np.ndarray) -> np.ndarray:
    """How far the eye is shut against this person's own open eye at that time: 0 open, 1 shut.

    t: (frames,) seconds, ascending; ear: (frames,). Returns (frames,) float32, NaN passed through.
    The open eye is a running quantile of the EAR, so it follows the person, the pose and the gaze.
    """
    baseline = np.full(len(ear), np.nan, dtype=np.float32)
    low = np.searchsorted(t, t - BASELINE_WINDOW_S / 2)
    high = np.searchsorted(t, t + BASELINE_WINDOW_S / 2, side="right")
    for i in range(len(t)):
        window = ear[low[i] : high[i]]
        window = window[np.isfinite(window)]
        if len(window):
            baseline[i] = np.quantile(window, BASELINE_QUANTILE)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (1 - ear / baseline).astype(np.float32)


def depth_threshold(depth: np.ndarray) -> float:
    """The closure that counts as a blink for this face: above its own jitter, within sensible bounds."""
    open_eye = depth[np.isfinite(depth) & (depth < MIN_DEPTH)]
    if not len(open_eye):
        return MIN_DEPTH
    deviation = 1.4826 * float(np.median(np.abs(open_eye - np.median(open_eye))))  # MAD, as for a normal
    return float(np.clip(NOISE_FACTOR * deviation, MIN_DEPTH, MAX_DEPTH_THRESHOLD))


def find_blinks(t: np.ndarray, ear: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Moments and durations of blinks, each (blinks,) float32 seconds.

    t: (frames,) seconds, ascending; ear: (frames,), NaN where the eyes were not seen. A blink is a run of
    samples beyond `depth_threshold`; its duration is measured where the closure crosses that threshold.
    """
    depth = closure(t, ear)
    threshold = depth_threshold(depth)
    shut = np.nan_to_num(depth, nan=-1.0) > threshold
    edges = np.flatnonzero(np.diff(np.r_[False, shut, False].astype(np.int8)))
    runs = [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]  # [first, last + 1)
    merged: list[tuple[int, int]] = []
    for first, stop in runs:
        if merged and np.nanmin(depth[merged[-1][1] : first]) > REOPENED * threshold:
            merged[-1] = (merged[-1][0], stop)
        else:
            merged.append((first, stop))
    times, durations = [], []
    for first, stop in merged:
        if stop - first == 1 and depth[first] < SINGLE_SAMPLE_DEPTH:
            continue
        start = _crossing(t, depth, first - 1, first, threshold)
        end = _crossing(t, depth, stop - 1, stop, threshold)
        if start is None or end is None or not MIN_DURATION_S <= end - start <= MAX_DURATION_S:
            continue
        times.append(t[first + int(np.nanargmax(depth[first:stop]))])
        durations.append(end - start)
    return np.array(times, dtype=np.float32), np.array(durations, dtype=np.float32)


def _crossing(t: np.ndarray, depth: np.ndarray, a: int, b: int, threshold: float) -> float | None:
    """When the closure crosses the threshold between samples a and b; None at an end or a gap."""
    if a < 0 or b >= len(t) or not np.isfinite(depth[a]) or not np.isfinite(depth[b]):
        return None
    if t[b] - t[a] > MAX_SAMPLE_GAP_S:
        return None
    return float(t[a] + (t[b] - t[a]) * (threshold - depth[a]) / (depth[b] - depth[a]))


def watched_seconds(t: np.ndarray, ear: np.ndarray) -> float:
    """Seconds in which the eyes were seen in samples dense enough to catch a blink."""
    if len(t) < 2:
        return 0.0
    steps = np.diff(t)
    seen = np.isfinite(ear[1:]) & np.isfinite(ear[:-1]) & (steps <= MAX_SAMPLE_GAP_S)
    return float(steps[seen].sum())


def analyze_blinks(t: np.ndarray, ear: np.ndarray) -> Blinks:
    """Blinks of a face track; figures are None below MIN_FPS samples a second or MIN_SECONDS of watching."""
    seconds = watched_seconds(t, ear)
    samples = int(np.isfinite(ear).sum())
    if seconds < MIN_SECONDS or samples / seconds < MIN_FPS:
        nothing = np.zeros(0, dtype=np.float32)
        return Blinks(seconds, nothing, nothing, None, None, None)
    times, durations = find_blinks(t, ear)
    return Blinks(seconds, times, durations, len(times), 60 * len(times) / seconds, blink_score(len(times), seconds))


def blink_score(count: int, seconds: float) -> float:
    """How unusual so many blinks in so long a time are for a human: 1 minus the two-sided p-value.

    Blinks are taken as Poisson with a rate that varies from person to person as a gamma distribution of
    mean HUMAN_RATE_MEAN and standard deviation HUMAN_RATE_SD, which makes the count negative binomial.
    """
    shape = (HUMAN_RATE_MEAN / HUMAN_RATE_SD) ** 2
    expected = HUMAN_RATE_MEAN * seconds / 60
    if expected <= 0:
        return 0.0
    success = shape / (shape + expected)

    def probability(k: int) -> float:
        log = math.lgamma(k + shape) - math.lgamma(shape) - math.lgamma(k + 1)
        return math.exp(log + shape * math.log(success) + k * math.log1p(-success))

    below = sum(probability(k) for k in range(count))
    here = probability(count)
    return float(np.clip(1 - 2 * min(below + here, 1 - below), 0.0, 1.0))
