"""The pictures of the zoo: a public-domain portrait that moves, speaks and blinks at known times.

Everything is computed from `skimage.data.astronaut()` (NASA, public domain) by warping, so that the same time
gives the same picture on every machine. Coordinates named "still" are pixels of that 512 x 512 portrait; the
frame shows a part of it, enlarged. Pictures are (height, width, 3) uint8 RGB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import cv2
import numpy as np

WIDTH, HEIGHT = 640, 360
ZOOM = 1.6  # the face is 92 still pixels wide: 147 px in the frame

# Eye contours (still pixels, corner to corner), measured once on the portrait with MediaPipe FaceMesh
# 0.10.21, refine_landmarks=True: indices 33 246 161 160 159 158 157 173 133 above, 33 7 163 144 145 153 154
# 155 133 below, and their mirror images. Kept as numbers so that rendering does not need MediaPipe.
# Per eye: x and y of the upper contour, x and y of the lower one.
EYES = (
    (
        (195.3, 196.2, 197.4, 199.5, 203.1, 206.7, 210.3, 212.8, 214.0),
        (100.9, 100.1, 99.3, 98.3, 97.8, 98.4, 100.2, 102.5, 104.0),
        (195.3, 196.5, 198.0, 200.2, 203.7, 207.2, 210.6, 212.9, 214.0),
        (100.9, 102.2, 103.2, 104.1, 104.6, 104.6, 104.3, 104.2, 104.0),
    ),
    (
        (236.7, 238.1, 241.0, 244.8, 248.7, 252.3, 254.4, 255.4, 256.2),
        (105.0, 103.8, 101.7, 100.3, 100.0, 100.8, 102.2, 103.2, 104.1),
        (236.7, 237.8, 240.0, 243.4, 246.9, 250.4, 252.9, 254.6, 256.2),
        (105.0, 105.4, 105.6, 106.3, 106.8, 106.8, 106.2, 105.4, 104.1),
    ),
)
EYE_WINDOWS = ((184, 222), (228, 266))  # still columns that an eyelid can touch
EYE_ROWS = (84, 116)
LID_HEIGHT = 7.5  # still pixels between brow and lid edge: the skin that stretches when the eye closes
LASHES = 2.5  # of which the last ones are lashes, which travel without stretching
LID_EDGE = 0.6  # the edge lies this much under FaceMesh's upper contour

# FaceMesh's face oval (every second point, without the hair above the brows), still pixels
FACE_HULL = tuple(
    zip(
        (183, 193, 226, 259, 268, 271, 271, 268, 265, 256, 244, 231, 213, 201, 190, 182, 179, 179),
        (87, 80, 78, 80, 90, 107, 116, 135, 145, 160, 170, 177, 176, 169, 157, 142, 121, 103),
        strict=True,
    )
)
NECK = (226.0, 180.0)  # what the head turns about
BROWS = ((202.0, 89.0), (250.0, 91.0))
LOWER_LIP = (223.5, 157.0)

CLOSING_S = 0.10  # a lid falls faster than it rises (Caffier et al. 2003: about 60 ms down, 100-200 ms up)
OPENING_S = 0.16


@dataclass(frozen=True)
class Blink:
    """One blink. t: middle of the stretch in which the lid covers half of the open eye or more."""

    t: float  # seconds
    duration: float  # seconds of that stretch; at least (CLOSING_S + OPENING_S) / 2 = 0.13


def closure(t: float, blinks: Sequence[Blink]) -> float:
    """How far the lids are down at `t`, 0 (open) to 1 (closed): raised-cosine ramps around a closed hold."""
    down = 0.0
    for blink in blinks:
        half_closed = t - (blink.t - blink.duration / 2)
        falling = np.clip(half_closed / CLOSING_S + 0.5, 0, 1)
        rising = np.clip((half_closed - blink.duration) / OPENING_S + 0.5, 0, 1)
        down = max(down, 0.5 * (np.cos(np.pi * rising) - np.cos(np.pi * falling)))
    return float(down)


def wander(t: float, slow_hz: float, seed: int) -> float:
    """A smooth, never repeating motion between -1 and 1: three sines whose frequencies share no period."""
    phases = np.random.default_rng(seed).uniform(0, 2 * np.pi, 3)
    ratios, weights = np.array([1.0, 1.618, 2.718]), np.array([0.55, 0.3, 0.15])
    return float(weights @ np.sin(2 * np.pi * slow_hz * ratios * t + phases))


@cache
def portrait() -> np.ndarray:
    """The still: (512, 512, 3) uint8 RGB."""
    from skimage.data import astronaut

    return astronaut()


@dataclass(frozen=True)
class Sitter:
    """The portrait as a person before a still camera, `width` x HEIGHT pixels.

    blinks: when the lids fall. seed: how the head, brows and mouth move. left: still column at its edge.
    """

    blinks: tuple[Blink, ...] = ()
    seed: int = 1
    width: int = WIDTH
    left: float = 25.0

    @cached_property
    def _grid(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Still x and y of each frame pixel, and its share of the head's motion: 1 in the face, 0 far off."""
        x, y = np.meshgrid(np.arange(self.width), np.arange(HEIGHT))
        x = (x / ZOOM + self.left).astype(np.float32)
        y = (y / ZOOM).astype(np.float32)
        distance = np.hypot((x - 226) / 88, (y - 105) / 92)
        follow = np.clip((1.5 - distance) / 0.7, 0, 1)
        return x, y, follow * follow * (3 - 2 * follow)

    def head(self, t: float) -> np.ndarray:
        """Where the head is: (2, 3) float64 affine from the portrait's still to the moved still."""
        roll = np.deg2rad(2.5 * wander(t, 0.17, self.seed + 1))
        scale = 1 + 0.02 * wander(t, 0.11, self.seed + 2)
        turn = scale * np.array([[np.cos(roll), -np.sin(roll)], [np.sin(roll), np.cos(roll)]])
        shift = np.array([5 * wander(t, 0.13, self.seed + 3), 2.5 * wander(t, 0.19, self.seed + 4)])
        neck = np.array(NECK)
        return np.column_stack([turn, neck - turn @ neck + shift])

    def face_outline(self, t: float) -> np.ndarray:
        """The face's outline in frame pixels: (points, 2) float32."""
        moved = cv2.transform(np.float32([FACE_HULL]), self.head(t))[0]  # type: ignore[arg-type]  # cv2's stubs
        return ((moved - [self.left, 0]) * ZOOM).astype(np.float32)

    def picture(self, t: float) -> np.ndarray:
        """The frame at `t` seconds: (HEIGHT, width, 3) uint8 RGB."""
        x, y = self._still_position(t)
        frame = cv2.remap(portrait(), x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
        down = closure(t, self.blinks)
        if down > 0:
            for eye, columns in zip(EYES, EYE_WINDOWS, strict=True):
                self._lower_lid(frame, x, y, eye, columns, down)
        return frame

    def _still_position(self, t: float) -> tuple[np.ndarray, np.ndarray]:
        """Which still pixel each frame pixel shows, lids apart: two (HEIGHT, width) float32 maps."""
        x0, y0, follow = self._grid
        (xx, xy, x1), (yx, yy, y1) = cv2.invertAffineTransform(self.head(t)).astype(np.float32)
        x = x0 + follow * (xx * x0 + xy * y0 + x1 - x0)
        y = y0 + follow * (yx * x0 + yy * y0 + y1 - y0)
        speech = 1.2 * wander(t, 1.3, self.seed + 5) * (0.5 + 0.5 * wander(t, 0.3, self.seed + 6))
        _push_down(x, y, LOWER_LIP, (17, 9), speech)
        raised = -0.7 * max(0.0, wander(t, 0.23, self.seed + 7))
        for brow in BROWS:
            _push_down(x, y, brow, (13, 3.5), raised)
        return x, y

    def _lower_lid(
        self,
        frame: np.ndarray,
        x: np.ndarray,
        y: np.ndarray,
        eye: tuple[tuple[float, ...], ...],
        columns: tuple[int, int],
        down: float,
    ) -> None:
        """Draw one upper lid over `frame`: the skin above stretches, the lashes travel unstretched."""
        reach = 12  # still pixels the head may carry the eye away
        rows = slice(max(0, int((EYE_ROWS[0] - reach) * ZOOM)), int((EYE_ROWS[1] + reach) * ZOOM))
        cols = slice(max(0, int((columns[0] - reach - self.left) * ZOOM)), int((columns[1] + reach - self.left) * ZOOM))
        x, y = x[rows, cols], y[rows, cols]
        upper = np.interp(x, eye[0], eye[1]) + LID_EDGE
        travel = down * np.maximum(0, np.interp(x, eye[2], eye[3]) + 0.6 - np.interp(x, eye[0], eye[1]))
        edge, top = upper + travel, upper - LID_HEIGHT
        stretched = top + (y - top) * (LID_HEIGHT - LASHES) / (LID_HEIGHT - LASHES + travel)
        from_y = np.where(edge - y < LASHES, y - travel, stretched)
        from_y = np.where(y < top, y, from_y).astype(np.float32)
        lid = cv2.remap(portrait(), x, from_y, cv2.INTER_CUBIC)
        opacity = 1 / (1 + np.exp(np.clip((y - edge) / 0.25, -40, 40)))
        opacity = np.where(travel > 0.05, opacity, 0)[..., None]
        frame[rows, cols] = np.rint(opacity * lid + (1 - opacity) * frame[rows, cols]).astype(np.uint8)


def _push_down(
    x: np.ndarray, y: np.ndarray, centre: tuple[float, float], spread: tuple[float, float], by: float
) -> None:
    """Move the surroundings of a still point down by `by` still pixels (in place, fading as a Gaussian)."""
    fade = np.exp(-0.5 * (((x - centre[0]) / spread[0]) ** 2 + ((y - centre[1]) / spread[1]) ** 2))
    y -= by * fade


# --- a fake ---------------------------------------------------------------------------------------


def self_blend(frame: np.ndarray, outline: np.ndarray, t: float, seed: int) -> np.ndarray:
    """`frame` with its face replaced by a slightly transformed copy of itself, as face swaps leave it.

    The recipe of self-blended images (Shiohara & Yamasaki, CVPR 2022, section 3): colour shift, loss of
    resolution and sharpening, an affine of a few pixels, blended in through a feathered convex hull.
    Placement and colour jitter from frame to frame, as in swaps made picture by picture.
    outline: (points, 2) float32, frame pixels.
    """
    x0, y0 = np.maximum(outline.min(axis=0).astype(int) - 24, 0)
    x1, y1 = outline.max(axis=0).astype(int) + 24
    face = frame[y0:y1, x0:x1]
    outline = outline - [x0, y0]
    height, width = face.shape[:2]
    rng = np.random.default_rng([seed, round(t * 1000)])

    tint = np.array([1.06, 0.99, 0.90]) * (1 + 0.012 * rng.standard_normal(3))
    copy = np.clip(face * tint + [4, 0, -4], 0, 255).astype(np.float32)
    coarse = cv2.resize(copy, (width * 2 // 5, height * 2 // 5), interpolation=cv2.INTER_AREA)
    coarse = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    copy = 1.6 * coarse - 0.6 * cv2.GaussianBlur(coarse, (0, 0), 2.0)

    centre = outline.mean(axis=0)
    place = cv2.getRotationMatrix2D(centre.tolist(), 1.2, 1.025 + 0.004 * rng.standard_normal())
    place[:, 2] += [2.5, -1.5] + 0.35 * rng.standard_normal(2)
    copy = cv2.warpAffine(copy, place, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)

    mask = np.zeros((height, width), np.float32)
    inner = centre + 0.93 * (outline - centre)
    cv2.fillConvexPoly(mask, cv2.convexHull(np.rint(inner).astype(np.int32)), (1.0,))
    mask = cv2.GaussianBlur(mask, (0, 0), 3.5)[..., None]
    blended = frame.copy()
    blended[y0:y1, x0:x1] = np.rint(np.clip(mask * copy + (1 - mask) * face, 0, 255)).astype(np.uint8)
    return blended


# --- without a face -------------------------------------------------------------------------------


def backdrop(t: float) -> np.ndarray:
    """A slowly moving pattern of soft stripes without a face: (HEIGHT, WIDTH, 3) uint8 RGB."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    waves = [
        np.sin(x / 90 + y / 300 + 0.5 * t),
        np.sin(x / 70 - y / 60 - 0.8 * t),
        np.sin((x + y) / 25 + 0.3 * t),
    ]
    red = 120 + 50 * waves[0] + 12 * waves[2]
    green = 125 + 35 * waves[1] + 12 * waves[2]
    blue = 130 + 40 * waves[0] * waves[1]
    return np.rint(np.stack([red, green, blue], axis=-1)).astype(np.uint8)


# --- the number in the corner ---------------------------------------------------------------------

SQUARES_PER_WIDTH = 80  # a square is 1/80 of the frame's width: 8 px of 640
START = (1, 0, 1)  # white, black, white
NUMBER_BITS = 12  # then the number, highest bit first
CHECK_BITS = 3  # then the count of its ones, modulo 8


def stamp_frame_number(frame: np.ndarray, number: int) -> None:
    """Draw `number` (0 to 4095) into the top left corner of `frame`, in place: squares, white for 1."""
    square = frame.shape[1] // SQUARES_PER_WIDTH
    bits = (*START, *_bits(number, NUMBER_BITS), *_bits(number.bit_count() % 8, CHECK_BITS))
    for i, bit in enumerate(bits):
        frame[:square, i * square : (i + 1) * square] = 235 if bit else 16


def read_frame_number(rgb: np.ndarray) -> int | None:
    """The number stamped on an upright (height, width, 3) uint8 picture of any size; None if unreadable."""
    square = rgb.shape[1] / SQUARES_PER_WIDTH
    edge = max(1, round(square / 2))
    bits = []
    for i in range(len(START) + NUMBER_BITS + CHECK_BITS):
        top, left = int((square - edge) / 2), int(i * square + (square - edge) / 2)
        bits.append(int(rgb[top : top + edge, left : left + edge].mean() > 127))
    number = int("".join(map(str, bits[len(START) : -CHECK_BITS])), 2)
    check = int("".join(map(str, bits[-CHECK_BITS:])), 2)
    return number if tuple(bits[: len(START)]) == START and check == number.bit_count() % 8 else None


def _bits(number: int, count: int) -> list[int]:
    return [number >> i & 1 for i in reversed(range(count))]
