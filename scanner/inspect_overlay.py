"""A copy of a video with what was found drawn into it: boxes of faces, their scores, where the network looked."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np
from av.error import FFmpegError

from models.figures import FAKE, NEUTRAL, REAL
from scanner.cut_encode import MP4_SOUND, encode
from scanner.cutting import open_source
from scanner.decode import DecodeError, VideoInfo
from scanner.faces import square_around
from scanner.fusion import verdict
from scanner.guard import Guard, GuardFailure
from scanner.reencode import DEADLINE_PER_SECOND, DEADLINE_S

HEAT_SIDE = 24  # px of a stored heatmap: one of a 192 px crop has 12 x 12 cells
OPACITY = 0.7  # of the hottest spot of a face that is surely fake
HEAT_HOLD_S = 0.5  # crops come five a second: a heatmap stays until the next, but not longer than this
BOX_HOLD_S = 0.1  # a box stays so long behind the last sample of a face
GAP_S = 0.25  # samples further apart are not interpolated between
TEXT_LUMA, SHADE_LUMA, NO_CHROMA = 235, 24, 128
FONT = cv2.FONT_HERSHEY_SIMPLEX  # knows ASCII only


@dataclass(frozen=True)
class DrawnFace:
    """One face track, and what is known of it over time."""

    face_id: str
    t: np.ndarray  # (samples,) float64 seconds of the video
    boxes: np.ndarray  # (samples, 4) float32 x, y, w, h as fractions of the frame
    scored_t: np.ndarray  # (scored,) float64: moments that the network saw
    scores: np.ndarray  # (scored,) float32: of the clip that each is in; NaN where it has none
    heat: np.ndarray  # (scored, HEAT_SIDE, HEAT_SIDE) uint8, over the crop


@dataclass(frozen=True)
class Caption:
    """What stands under the picture throughout."""

    model: str
    score: float | None
    verdict: str | None
    thresholds: Mapping[str, float]

    def text(self, t: float) -> str:
        minutes, seconds = divmod(t, 60)
        found = "no score" if self.score is None else f"{self.verdict} {self.score:.3f}"
        return f"{self.model}: {found}  {int(minutes)}:{seconds:04.1f}"


def write_overlay(
    guard: Guard,
    path: Path,
    target: str,
    info: VideoInfo,
    faces: Sequence[DrawnFace],
    caption: Caption,
    margin: float,
    tell: Callable[[float], object],
) -> str | None:
    """Draw `draw_overlay` in a guarded child, and put it in place whole. Returns a sentence where that fails."""
    part = f"{target}.part"
    try:
        arguments = (str(path), part, info, faces, caption, margin, tell)
        guard.run(draw_overlay, *arguments, deadline_s=DEADLINE_S + DEADLINE_PER_SECOND * info.duration_s)
        Path(part).replace(target)
    except (GuardFailure, DecodeError) as error:
        return str(error)
    except OSError as error:
        return error.strerror or str(error)
    finally:
        with suppress(OSError):
            Path(part).unlink(missing_ok=True)
    return None


def draw_overlay(
    path: str,
    target: str,
    info: VideoInfo,
    faces: Sequence[DrawnFace],
    caption: Caption,
    margin: float,
    tell: Callable[[float], object],
) -> None:
    """Write the video to `target` (MP4: H.264, yuv420p), upright, each picture at its own time, with its sound.

    margin: side of a crop in longer sides of its box. tell: called with the share that is done.
    Raises DecodeError or OSError.
    """

    def paint(picture: av.VideoFrame, t: float) -> av.VideoFrame:
        tell(min(1.0, t / max(info.duration_s, 1e-3)))
        return painted(picture, t, faces, caption, margin)

    try:
        for kept in (MP4_SOUND, frozenset()):
            try:
                with open_source(path) as source:
                    encode(source, info, target, 0.0, math.inf, zero=0.0, paint=paint, kept_sound=kept)
                return
            except (FFmpegError, ValueError):  # sound whose packets don't fit into MP4 is encoded anew
                if not kept:
                    raise
    except FFmpegError as error:  # many are OSErrors, too; none of them survives the way to another process
        raise DecodeError(error.strerror or str(error)) from None
    except ValueError as error:
        raise DecodeError(str(error)) from None


def painted(
    picture: av.VideoFrame, t: float, faces: Sequence[DrawnFace], caption: Caption, margin: float
) -> av.VideoFrame:
    """A yuv420p picture of the moment t with everything drawn into it."""
    planes = _Planes(picture)
    for face in faces:
        box = box_at(face, t)
        if box is None:
            continue
        pixels = box * np.tile([planes.width, planes.height], 2)
        moment = scored_at(face, t)
        score = None if moment is None or math.isnan(face.scores[moment]) else float(face.scores[moment])
        if moment is not None and score is not None:
            planes.heat(square_around(pixels, margin), face.heat[moment], OPACITY * score)
        planes.box(pixels, _colour(score, caption.thresholds))
        planes.label(f"{face.face_id}  {'no score' if score is None else f'{score:.2f}'}", pixels)
    planes.caption(caption.text(t))
    return planes.picture()


def box_at(face: DrawnFace, t: float) -> np.ndarray | None:
    """Where the face is at t: (4,) fractions of the frame, between samples in a straight line; None where it isn't."""
    after = int(np.searchsorted(face.t, t, side="right"))
    if after == 0:
        return None
    before = after - 1
    if after < len(face.t) and face.t[after] - face.t[before] <= GAP_S:
        share = (t - face.t[before]) / (face.t[after] - face.t[before])
        return (1 - share) * face.boxes[before] + share * face.boxes[after]
    return face.boxes[before] if t - face.t[before] <= BOX_HOLD_S else None


def scored_at(face: DrawnFace, t: float) -> int | None:
    """Number of the last moment up to t that the network saw, unless that is too long ago."""
    last = int(np.searchsorted(face.scored_t, t + 1e-6, side="right")) - 1
    return last if last >= 0 and t - face.scored_t[last] <= HEAT_HOLD_S else None


def _colour(score: float | None, thresholds: Mapping[str, float]) -> np.ndarray:
    if score is None:
        return _COLOURS["uncertain"]
    return _COLOURS[verdict(score, thresholds["fake"], thresholds["real"])]


def _yuv(rgb: np.ndarray) -> np.ndarray:
    """(..., 3) RGB in 0..1 -> (..., 3) Y, Cb, Cr of video levels, ITU-R BT.601 with 8 bits."""
    matrix = np.array([[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]])
    return rgb @ matrix.T + np.array([16.0, 128.0, 128.0])


def _of_hex(text: str) -> np.ndarray:
    return _yuv(np.array([int(text[i : i + 2], 16) for i in (1, 3, 5)]) / 255)


_COLOURS = {"fake": _of_hex(FAKE), "real": _of_hex(REAL), "uncertain": _of_hex(NEUTRAL)}
#: Inferno, as in the heatmaps of thumbnails: (256, 3) float64 Y, Cb, Cr.
_INFERNO = _yuv(
    cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], cv2.COLORMAP_INFERNO)[:, 0, ::-1].astype(float) / 255
)


class _Planes:
    """A picture to draw on as it is stored, in luma and two planes of chroma: what is not drawn on stays as it was."""

    def __init__(self, picture: av.VideoFrame) -> None:
        self.width, self.height = picture.width, picture.height
        self._canvas = np.ascontiguousarray(picture.to_ndarray(format="yuv420p"), np.uint8)
        flat, luma = self._canvas.reshape(-1), self.width * self.height
        half = self.height // 2, self.width // 2
        self._planes = [
            flat[:luma].reshape(self.height, self.width),
            flat[luma : luma + luma // 4].reshape(half),
            flat[luma + luma // 4 :].reshape(half),
        ]
        self._text_scale = float(np.clip(self.height / 1200, 0.35, 1.5))
        self._line = 2 * max(1, round(self.height / 480))  # px, even: the planes of chroma get half of it

    def picture(self) -> av.VideoFrame:
        return av.VideoFrame.from_ndarray(self._canvas, format="yuv420p")

    def heat(self, square: np.ndarray, heat: np.ndarray, opacity: float) -> None:
        """Lay a heatmap (n, n) uint8 over a square (x, y, w, h px) that may stick out of the picture."""
        x, y, side = (2 * round(float(value) / 2) for value in square[:3])  # even, so that chroma falls in line
        left, top = max(0, x), max(0, y)
        right, bottom = min(self.width, x + side), min(self.height, y + side)
        if right <= left or bottom <= top:
            return
        values = cv2.resize(heat, (side, side), interpolation=cv2.INTER_LINEAR)
        values = values[top - y : bottom - y, left - x : right - x]
        for plane, colours in enumerate(_INFERNO.T):
            step = 2 if plane else 1
            here = values[::step, ::step]
            part = self._planes[plane][top // step : bottom // step, left // step : right // step]
            alpha = opacity / 255 * here[: part.shape[0], : part.shape[1]]
            part[:] = np.round(part * (1 - alpha) + colours[here[: part.shape[0], : part.shape[1]]] * alpha)

    def box(self, box: np.ndarray, colour: np.ndarray) -> None:
        x, y, w, h = (float(value) for value in box)
        for plane, value in enumerate(colour):
            step = 2 if plane else 1
            low, high = (round(x / step), round(y / step)), (round((x + w) / step), round((y + h) / step))
            cv2.rectangle(self._planes[plane], low, high, (float(value),), self._line // step)

    def label(self, text: str, box: np.ndarray) -> None:
        """A line of text above a box, or under it where there is no room."""
        _, height = self._text_size(text)
        x, top, bottom = float(box[0]), float(box[1]) - height - self._line, float(box[1] + box[3]) + self._line
        self._text(text, x, top if top >= 0 else bottom)

    def caption(self, text: str) -> None:
        self._text(text, 0, self.height - self._text_size(text)[1])

    def _text_size(self, text: str) -> tuple[int, int]:
        (width, height), below = cv2.getTextSize(text, FONT, self._text_scale, self._thickness)
        return width + 2 * self._line, height + below + self._line

    @property
    def _thickness(self) -> int:
        return max(1, round(1.7 * self._text_scale))

    def _text(self, text: str, x: float, y: float) -> None:
        """Light on a dark ground, moved into the picture."""
        width, height = self._text_size(text)
        left = 2 * round(min(max(0.0, x), max(0, self.width - width)) / 2)
        top = 2 * round(min(max(0.0, y), max(0, self.height - height)) / 2)
        for plane, value in enumerate((SHADE_LUMA, NO_CHROMA, NO_CHROMA)):
            step = 2 if plane else 1
            self._planes[plane][top // step : (top + height) // step, left // step : (left + width) // step] = value
        _, below = cv2.getTextSize(text, FONT, self._text_scale, self._thickness)
        foot = (left + self._line, top + height - below - self._line // 2)
        cv2.putText(self._planes[0], text, foot, FONT, self._text_scale, (TEXT_LUMA,), self._thickness, cv2.LINE_AA)
