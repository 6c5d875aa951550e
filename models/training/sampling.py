"""What the network is shown: pairs of a genuine and a manipulated clip, drawn so that only the manipulation differs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from models.prepared import MARGIN, FaceTrack
from models.spec import ModelSpec
from models.training.degrade import degrade
from models.training.fakes import Face, Fake, animate, lip_sync, re_render, self_blend, swap

#: Kinds of pseudo-fakes and how often each is made; "labelled" pairs come from real deepfakes.
PSEUDO_ODDS = {"self_blend": 0.54, "swap": 0.16, "lip_sync": 0.12, "animate": 0.09, "re_render": 0.09}
#: Sides in px at which a crop is manipulated and degraded before it is resized for the network: faces in archives
#: are small and large, and a blending edge looks different at each size.
WORK_SIDES = (128, 288)
CENTRE_JITTER = 0.05  # of the crop's side
MARGIN_JITTER = 0.12
TURN_JITTER = 6.0  # degrees
LABELLED_VIDEO_ODDS = 0.85  # of a labelled fake from a video: edited photographs are a sideline
SAME_GROUP_ODDS = 0.5  # of drawing the genuine clip from the recording that a labelled fake was made of


@dataclass(frozen=True)
class Drawn:
    """A clip for the network, with the truth of each frame."""

    frames: np.ndarray  # (T, S, S, 3) uint8 RGB
    touched: np.ndarray  # (T,) bool


@dataclass(frozen=True)
class Geometry:
    """How the network wants its crops: as in its model.json."""

    input_size: int = ModelSpec.input_size
    crop_margin: float = ModelSpec.crop_margin


class Sampler:
    """Draws pairs (genuine, manipulated). The same `(seed, index)` gives the same pair on every machine.

    tracks: genuine ones to make pseudo-fakes of, and labelled fakes. length: frames of a clip; tracks of stills, and
    those shorter than it, are used where it is 1 only. labelled: share of pairs with a labelled fake. video: share
    of genuine faces that come from videos where there are both.
    """

    def __init__(
        self,
        tracks: Sequence[FaceTrack],
        geometry: Geometry,
        length: int = 1,
        labelled: float = 0.0,
        video: float = 0.5,
        seed: int = 0,
        degrading: bool = True,
    ) -> None:
        fits = [track for track in tracks if len(track.jpegs) >= length]
        self.geometry, self.length, self.labelled, self.seed = geometry, length, labelled, seed
        self.degrading = degrading
        real = [track for track in fits if not track.fake]
        self.real = {kind: _Pool([track for track in real if track.kind == kind]) for kind in _KINDS}
        fake = [track for track in fits if track.fake]
        self.fake = {kind: _Pool([t for t in fake if t.kind == kind]) for kind in _KINDS}
        self.by_group: dict[str, list[FaceTrack]] = {}
        for track in real:
            self.by_group.setdefault(track.group, []).append(track)
        self.video = video if self.real["image"] and self.real["video"] else float(bool(self.real["video"]))
        if not real:
            raise ValueError("no genuine face to train on")
        if not fake:
            self.labelled = 0.0

    def pair(self, index: int) -> tuple[Drawn, Drawn]:
        """Pair number `index`: a genuine clip, and a manipulated one."""
        rng = np.random.default_rng([self.seed, index])
        return self._labelled(rng) if rng.random() < self.labelled else self._pseudo(rng)

    def _labelled(self, rng: np.random.Generator) -> tuple[Drawn, Drawn]:
        pools = self.fake["video"], self.fake["image"]
        first, second = pools if rng.random() < LABELLED_VIDEO_ODDS else pools[::-1]
        fake = (first or second).draw(rng)
        twins = [track for track in self.by_group.get(fake.group, ()) if track.kind == fake.kind]
        if twins and rng.random() < SAME_GROUP_ODDS:
            real = twins[int(rng.integers(len(twins)))]
        else:
            real = (self.real[fake.kind] or self._pool(rng)).draw(rng)
        genuine, manipulated = self._face(real, rng), self._face(fake, rng)
        return (
            self._finish(genuine.frames, np.zeros(self.length, bool), rng, rng),
            self._finish(manipulated.frames, np.ones(self.length, bool), rng, rng),
        )

    def _pseudo(self, rng: np.random.Generator) -> tuple[Drawn, Drawn]:
        track = self._pool(rng).draw(rng)
        face = self._face(track, rng)
        fake = self._manipulate(face, track, rng)
        # Both go through the same archive, so that nothing but the manipulation tells them apart.
        way = int(rng.integers(2**63))
        return (
            self._finish(face.frames, np.zeros(self.length, bool), np.random.default_rng(way), rng),
            self._finish(fake.frames, fake.touched, np.random.default_rng(way), rng),
        )

    def _manipulate(self, face: Face, track: FaceTrack, rng: np.random.Generator) -> Fake:
        kind = str(rng.choice(list(PSEUDO_ODDS), p=list(PSEUDO_ODDS.values())))
        if kind == "swap":
            other = self._other(track, rng)
            return swap(face, self._face(other, rng, side=len(face.frames[0])), rng)
        makers: dict[str, Callable[[Face, np.random.Generator], Fake]] = {
            "self_blend": self_blend,
            "lip_sync": lip_sync,
            "animate": animate,
            "re_render": re_render,
        }
        return makers[kind](face, rng)

    def _other(self, track: FaceTrack, rng: np.random.Generator) -> FaceTrack:
        """Another face to swap in; of several, the one that looks in the same direction."""
        candidates = [self.real[track.kind].draw(rng) for _ in range(4)]
        return min(candidates, key=lambda other: abs(_turn(other) - _turn(track)) + 10 * (other.group == track.group))

    def _pool(self, rng: np.random.Generator) -> _Pool:
        return self.real["video" if rng.random() < self.video else "image"]

    def _face(self, track: FaceTrack, rng: np.random.Generator, side: int | None = None) -> Face:
        """A stretch of a track, cut out around the face with some jitter of place, scale and angle."""
        start = int(rng.integers(len(track.jpegs) - self.length + 1))
        pictures, fractions = track.frames(start, start + self.length)
        margin = self.geometry.crop_margin * (1 + rng.uniform(-MARGIN_JITTER, MARGIN_JITTER))
        if side is None:
            native = max(len(picture) for picture in pictures) * margin / MARGIN
            side = int(min(rng.integers(WORK_SIDES[0], WORK_SIDES[1] + 1), max(WORK_SIDES[0], native)))
        shift = rng.uniform(-CENTRE_JITTER, CENTRE_JITTER, 2)
        angle = np.radians(rng.uniform(-TURN_JITTER, TURN_JITTER) * (rng.random() < 0.3))
        frames = np.empty((self.length, side, side, 3), np.uint8)
        landmarks = np.empty((self.length, *fractions.shape[1:]), np.float32)
        for i, picture in enumerate(pictures):
            frames[i], matrix = _cut(picture, margin / MARGIN, shift, angle, side)
            landmarks[i] = (fractions[i] * len(picture)) @ matrix[:, :2].T + matrix[:, 2]
        if rng.random() < 0.5:  # mirrored, landmarks and all: masks don't ask which eye is which
            frames = np.ascontiguousarray(frames[:, :, ::-1])
            landmarks[..., 0] = side - 1 - landmarks[..., 0]
        return Face(frames, landmarks)

    def _finish(self, frames, touched, way: np.random.Generator, rng: np.random.Generator) -> Drawn:
        if self.degrading:
            frames = degrade(frames, way)
        return Drawn(resize(frames, self.geometry.input_size), touched)


def whole_track(track: FaceTrack, geometry: Geometry) -> np.ndarray:
    """All crops of a track exactly as a scan would cut them: (crops, S, S, 3) uint8 RGB."""
    inner = geometry.crop_margin / MARGIN
    still, none = np.zeros(2), 0.0
    pictures, _ = track.frames(0, len(track.jpegs))
    cuts = [_cut(p, inner, still, none, max(2, round(len(p) * inner)))[0][None] for p in pictures]
    return np.concatenate([resize(cut, geometry.input_size) for cut in cuts])


def sampled_track(track: FaceTrack, geometry: Geometry, count: int) -> np.ndarray:
    """Up to `count` crops of a track, evenly spread over it, as whole_track gives them."""
    crops = whole_track(track, geometry)
    return crops[np.unique(np.linspace(0, len(crops) - 1, count).astype(int))]


def resize(frames: np.ndarray, side: int) -> np.ndarray:
    """(T, S, S, 3) uint8 to (T, side, side, 3), by the scan's own choice of filter (see scanner.faces.crop_square)."""
    method = cv2.INTER_AREA if frames.shape[1] > side else cv2.INTER_LINEAR
    return np.stack([cv2.resize(frame, (side, side), interpolation=method) for frame in frames])


class _Pool:
    """Tracks to draw from. Sources count by the square root of their size, so that large ones don't rule.

    Within one, every group has the same chance.
    """

    def __init__(self, tracks: list[FaceTrack]) -> None:
        self.buckets: dict[str, dict[str, list[FaceTrack]]] = {}
        for track in tracks:
            self.buckets.setdefault(f"{track.method} {track.source}", {}).setdefault(track.group, []).append(track)
        self.names = sorted(self.buckets)
        sizes = np.sqrt([len(self.buckets[name]) for name in self.names])
        self.odds = sizes / sizes.sum() if len(sizes) else sizes

    def __bool__(self) -> bool:
        return bool(self.names)

    def draw(self, rng: np.random.Generator) -> FaceTrack:
        groups = self.buckets[self.names[int(rng.choice(len(self.names), p=self.odds))]]
        tracks = (
            groups[sorted(groups)[int(rng.integers(len(groups)))]] if len(groups) > 1 else next(iter(groups.values()))
        )
        return tracks[int(rng.integers(len(tracks)))]


_KINDS = ("image", "video")


def _turn(track: FaceTrack) -> float:
    """How far a face is turned: the nose's place between the cheeks, -1 to 1."""
    points = track.landmarks[0].astype(np.float32)
    left, right, nose = points[234, 0], points[454, 0], points[1, 0]
    return float(2 * (nose - left) / (right - left + 1e-6) - 1)


def _cut(
    picture: np.ndarray, inner: float, shift: np.ndarray, angle: float, side: int
) -> tuple[np.ndarray, np.ndarray]:
    """The middle square of `inner` times a stored crop, shifted and turned, and the (2, 3) matrix to it."""
    full = len(picture)
    scale = side / (full * inner)
    rotation = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    middle = np.array([full / 2, full / 2]) + shift * full * inner
    matrix = np.concatenate([rotation, (np.array([side / 2, side / 2]) - rotation @ middle)[:, None]], axis=1)
    if scale < 0.9:  # warpAffine does not average: without this a shrunken face would alias
        small = max(2, round(full * scale))
        picture = cv2.resize(picture, (small, small), interpolation=cv2.INTER_AREA)
        moved = matrix.copy()
        moved[:, :2] *= full / small
        return cv2.warpAffine(picture, moved, (side, side), borderMode=cv2.BORDER_REPLICATE), matrix
    return cv2.warpAffine(picture, matrix, (side, side), borderMode=cv2.BORDER_REPLICATE), matrix
