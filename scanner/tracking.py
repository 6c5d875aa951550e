"""MediaPipe at work: finds faces with the full-range detector, follows each with its own FaceMesh."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from scanner.faces import iou, is_cut, landmark_box, square_around, thumbnail

LANDMARKS = 478
MAX_FACES = 6  # followed at once; a crowd's further faces are found when one of these is gone
FULL_RANGE = 1  # MediaPipe's name for the detector that sees faces up to 5 m away
DETECTION_CONFIDENCE = 0.5
SEARCH_EVERY_S = 0.33  # while no face is followed
LOOK_ROUND_EVERY_S = 1.0  # while some are: for new ones, and to confirm the old
UNCONFIRMED_S = 5.0  # FaceMesh can cling to a face-like background that no detector would call a face
LOST_AFTER_S = 0.5
SAME_FACE_IOU = 0.3
REGION_SCALE = 2.0  # FaceMesh wants the face with room around it
REGION_DRIFT = 0.12  # of the region's side: beyond that the region follows the face
REGION_ZOOM = 1.25


@dataclass(eq=False)  # one track is never another, and arrays don't compare
class Track:
    """One face followed through a span."""

    times: list[float] = field(default_factory=list)
    landmarks: list[np.ndarray] = field(default_factory=list)  # each (478, 3) float32 px of the frame


@dataclass(eq=False)
class _Following:
    track: Track
    mesh: Any  # mediapipe.solutions.face_mesh.FaceMesh
    box: np.ndarray  # (4,) px
    region: np.ndarray  # (4,) px, what FaceMesh is shown
    seen: float
    confirmed: float


class FaceTracker:
    """Follows the faces of one span frame by frame; `finish` returns the tracks and readies it for the next.

    The same frames give the same tracks: every FaceMesh starts afresh with its track.
    """

    def __init__(self) -> None:
        self._solutions = _solutions()
        self._detector = self._solutions.face_detection.FaceDetection(
            model_selection=FULL_RANGE, min_detection_confidence=DETECTION_CONFIDENCE
        )
        self._idle_meshes: list = []
        self._begin()

    def _begin(self) -> None:
        self._following: list[_Following] = []
        self._ended: list[Track] = []
        self._last_thumbnail: np.ndarray | None = None
        self._last_search = -np.inf

    def update(self, t: float, rgb: np.ndarray) -> list[tuple[Track, np.ndarray]]:
        """Take the next frame ((height, width, 3) uint8); return the faces in it as (track, box px)."""
        small = thumbnail(rgb)
        if self._last_thumbnail is not None and is_cut(self._last_thumbnail, small):
            self._end_all()
            self._last_search = -np.inf
        self._last_thumbnail = small
        for face in list(self._following):
            self._follow(face, t, rgb)
        self._drop_doubles()
        wait = LOOK_ROUND_EVERY_S if self._following else SEARCH_EVERY_S
        if t - self._last_search >= wait:
            self._last_search = t
            self._search(t, rgb)
        return [(f.track, f.box) for f in self._following if f.seen == t]

    def finish(self) -> list[Track]:
        """End the span: its tracks in order of appearance."""
        self._end_all()
        tracks = sorted(self._ended, key=lambda track: (track.times[0], track.landmarks[0][0, 0]))
        self._begin()
        return tracks

    def _follow(self, face: _Following, t: float, rgb: np.ndarray) -> None:
        landmarks = _run_mesh(face.mesh, rgb, face.region)
        if landmarks is not None:
            face.box = landmark_box(landmarks)
            face.region = _steady_region(face.region, face.box)
            face.seen = t
            face.track.times.append(t)
            face.track.landmarks.append(landmarks)
        elif t - face.seen > LOST_AFTER_S:
            self._end(face)
        if t - face.confirmed > UNCONFIRMED_S and face in self._following:
            self._end(face)

    def _search(self, t: float, rgb: np.ndarray) -> None:
        for box in _detect(self._detector, rgb):
            known = max(self._following, key=lambda f: iou(f.box, box), default=None)
            if known is not None and iou(known.box, box) > SAME_FACE_IOU:
                known.confirmed = t
            elif len(self._following) < MAX_FACES:
                self._start(t, rgb, box)

    def _start(self, t: float, rgb: np.ndarray, box: np.ndarray) -> None:
        mesh = self._idle_meshes.pop() if self._idle_meshes else self._new_mesh()
        region = square_around(box, REGION_SCALE)
        landmarks = _run_mesh(mesh, rgb, region)
        if landmarks is None or iou(landmark_box(landmarks), box) < SAME_FACE_IOU:
            self._retire(mesh)
            return
        found = landmark_box(landmarks)
        track = Track([t], [landmarks])
        self._following.append(_Following(track, mesh, found, _steady_region(region, found), t, t))

    def _drop_doubles(self) -> None:
        for i, older in enumerate(list(self._following)):
            for younger in self._following[i + 1 :]:
                if older in self._following and iou(older.box, younger.box) > 2 * SAME_FACE_IOU:
                    self._end(younger)

    def _end(self, face: _Following) -> None:
        self._following.remove(face)
        self._ended.append(face.track)
        self._retire(face.mesh)

    def _end_all(self) -> None:
        for face in list(self._following):
            self._end(face)

    def _new_mesh(self) -> Any:
        return self._solutions.face_mesh.FaceMesh(static_image_mode=False, max_num_faces=1, refine_landmarks=True)

    def _retire(self, mesh) -> None:
        mesh.reset()
        self._idle_meshes.append(mesh)


def _solutions() -> Any:
    # Imported where it is used: two seconds and 150 MB that only analysing children need to spend.
    os.environ.setdefault("GLOG_minloglevel", "2")  # MediaPipe's C++ notes on every graph are no news
    import mediapipe

    return mediapipe.solutions


def _detect(detector, rgb: np.ndarray) -> list[np.ndarray]:
    """Boxes (4,) px of the faces in a frame, the largest first."""
    height, width = rgb.shape[:2]
    found = []
    for detection in detector.process(rgb).detections or ():
        box = detection.location_data.relative_bounding_box
        found.append(
            np.array([box.xmin * width, box.ymin * height, box.width * width, box.height * height], np.float32)
        )
    return sorted(found, key=lambda box: -float(box[2] * box[3]))


def _run_mesh(mesh, rgb: np.ndarray, region: np.ndarray) -> np.ndarray | None:
    """Landmarks (478, 3) float32 in px of the frame, or None; `region` (4,) px is where to look."""
    x0, y0 = max(0, int(region[0])), max(0, int(region[1]))
    x1, y1 = int(region[0] + region[2]), int(region[1] + region[3])
    part = np.ascontiguousarray(rgb[y0 : max(y0, y1), x0 : max(x0, x1)])
    if min(part.shape[:2]) < 2:
        return None
    faces = mesh.process(part).multi_face_landmarks
    if not faces:
        return None
    flat = np.fromiter((v for p in faces[0].landmark for v in (p.x, p.y, p.z)), np.float32, LANDMARKS * 3)
    height, width = part.shape[:2]
    return flat.reshape(LANDMARKS, 3) * np.array([width, height, width], np.float32) + np.array([x0, y0, 0], np.float32)


def _steady_region(region: np.ndarray, box: np.ndarray) -> np.ndarray:
    """The region to look at next: unchanged until the face has moved or grown noticeably.

    FaceMesh remembers where in its picture the face was; a picture that moves with every frame would
    carry its own jitter into the landmarks.
    """
    wanted = square_around(box, REGION_SCALE)
    drift = np.abs((wanted[:2] + wanted[2:] / 2) - (region[:2] + region[2:] / 2)).max() / region[2]
    zoom = wanted[2] / region[2]
    return wanted if drift > REGION_DRIFT or not 1 / REGION_ZOOM < zoom < REGION_ZOOM else region
