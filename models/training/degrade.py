"""What archives do to pictures: other sizes, other codecs, other colours. Genuine and manipulated clips alike."""

from __future__ import annotations

from fractions import Fraction

import av
import cv2
import numpy as np
from av.codec.context import CodecContext
from av.video.codeccontext import VideoCodecContext

#: Encoder, decoder and the range of its quality setting (higher: worse). CRF 17 to 34 runs from a camera's file to a
#: messenger's; MPEG-4 part 2 stands for older archives.
CODECS = {
    "h264": ("libx264", "h264", "crf", 17, 34),
    "hevc": ("libx265", "hevc", "crf", 19, 34),
    "mpeg4": ("mpeg4", "mpeg4", "qscale", 2, 10),
}
CODEC_ODDS = {"h264": 0.4, "mpeg4": 0.04, "hevc": 0.03, "jpeg": 0.25, "none": 0.28}
ENLARGING = (cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_AREA, cv2.INTER_LANCZOS4)


def degrade(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One way through an archive, drawn once for the clip: (T, S, S, 3) uint8 RGB to the same."""
    if rng.random() < 0.25:
        frames = rescale(frames, rng.uniform(0.45, 0.95), int(rng.choice(ENLARGING)))
    if rng.random() < 0.12:
        sigma = rng.uniform(0.3, 1.3)
        frames = np.stack([cv2.GaussianBlur(frame, (0, 0), sigma) for frame in frames])
    if rng.random() < 0.6:
        frames = recolour(frames, rng)
    if rng.random() < 0.05:
        frames = letterbox(frames, rng)
    if rng.random() < 0.05:
        frames = film_screen(frames, rng)
    if rng.random() < 0.15:
        noise = rng.normal(0, rng.uniform(1, 7), frames.shape).astype(np.float32)
        frames = np.clip(frames + noise, 0, 255).astype(np.uint8)
    codec = str(rng.choice(list(CODEC_ODDS), p=list(CODEC_ODDS.values())))
    if codec == "jpeg":
        return jpeg(frames, int(rng.integers(45, 96)))
    if codec == "none":
        return frames
    low, high = CODECS[codec][3:]
    # by its square: half of the clips are in the best quarter, for where nothing is left to see nothing is learnt
    return encode(frames, codec, low + int((high - low + 1) * rng.random() ** 2))


def encode(frames: np.ndarray, codec: str, quality: int) -> np.ndarray:
    """Through a real encoder and back: (T, S, S, 3) uint8 RGB to the same. codec: one of CODECS."""
    encoder, decoder, option, _, _ = CODECS[codec]
    count, height, width = frames.shape[:3]
    even = (width + width % 2, height + height % 2)
    context = CodecContext.create(encoder, "w")
    assert isinstance(context, VideoCodecContext)
    context.width, context.height = even
    context.pix_fmt = "yuv420p"
    context.time_base = Fraction(1, 25)
    context.framerate = Fraction(25)
    context.thread_count = 1
    context.options = {option: str(quality)}
    if encoder == "mpeg4":
        context.qmin = context.qmax = quality
        context.options = {}
    else:
        context.options |= {"preset": "ultrafast" if encoder == "libx265" else "veryfast", "bf": "0"}
    if encoder == "libx265":
        context.options |= {"x265-params": "log-level=none:pools=none:frame-threads=1"}
    reader = CodecContext.create(decoder, "r")
    assert isinstance(reader, VideoCodecContext)
    reader.thread_count = 1
    packets = []
    for i, rgb in enumerate(frames):
        rgb = cv2.copyMakeBorder(rgb, 0, even[1] - height, 0, even[0] - width, cv2.BORDER_REPLICATE)
        # OpenCV's conversions: PyAV sets up a scaler for each frame, which took longer than encoding it
        picture = av.VideoFrame.from_ndarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2YUV_I420), format="yuv420p")
        picture.pts = i
        packets += context.encode(picture)
    packets += context.encode(None)
    shown = [picture for packet in packets for picture in reader.decode(packet)] + reader.decode(None)
    yuv = [picture.to_ndarray() for picture in shown]
    out = [cv2.cvtColor(planes, cv2.COLOR_YUV2RGB_I420)[:height, :width] for planes in yuv]
    if len(out) != count:  # an encoder that drops a frame would shift the labels of those behind it
        raise RuntimeError(f"{codec} gave {len(out)} of {count} frames back")
    return np.stack(out)


def jpeg(frames: np.ndarray, quality: int) -> np.ndarray:
    """Each frame through JPEG: (T, S, S, 3) uint8 to the same."""
    settings = [cv2.IMWRITE_JPEG_QUALITY, quality]
    bgr = [cv2.imencode(".jpg", frame[:, :, ::-1], settings)[1] for frame in frames]
    return np.stack([cv2.imdecode(data, cv2.IMREAD_COLOR)[:, :, ::-1] for data in bgr])


def rescale(frames: np.ndarray, factor: float, interpolation: int) -> np.ndarray:
    """Shrunk by `factor` and enlarged again: (T, S, S, 3) uint8 to the same."""
    size = frames.shape[1]
    small = max(16, round(size * factor))
    shrunk = [cv2.resize(frame, (small, small), interpolation=cv2.INTER_AREA) for frame in frames]
    return np.stack([cv2.resize(frame, (size, size), interpolation=interpolation) for frame in shrunk])


def letterbox(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Bars at two sides, as where a film's shape is not the file's: (T, S, S, 3) uint8 to the same.

    A face near the edge of the picture has such a bar in its crop.
    """
    size = frames.shape[1]
    first, last = np.round(size * rng.uniform(0, 0.14, 2) * (rng.random(2) < 0.7)).astype(int)
    upright = frames if rng.random() < 0.7 else frames.transpose(0, 2, 1, 3)  # bars beside the picture are rarer
    barred = np.full_like(upright, int(rng.choice((0, 16, 255), p=(0.7, 0.2, 0.1))))  # a level of 16 is video's black
    barred[:, first : size - last] = upright[:, first : size - last]
    return np.ascontiguousarray(barred if upright is frames else barred.transpose(0, 2, 1, 3))


def film_screen(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Filmed off a screen: encoded once, seen through the grid of its pixels, a little askew, unevenly bright.

    (T, S, S, 3) uint8 to the same. Where the grid is about as fine as the camera's pixels, moiré appears.
    """
    size = frames.shape[1]
    frames = jpeg(frames, int(rng.integers(60, 96)))
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32) * (size - 1)
    seen = (corners + rng.uniform(-0.025, 0.025, (4, 2)) * size).astype(np.float32)
    matrix = cv2.getPerspectiveTransform(corners, seen)
    down, across = np.mgrid[:size, :size].astype(np.float32)
    angle, pitch, phase = rng.uniform(-0.1, 0.1), rng.uniform(1.6, 4.0), rng.uniform(0, 2 * np.pi, 2)
    columns = np.cos(2 * np.pi * (across * np.cos(angle) + down * np.sin(angle)) / pitch + phase[0])
    rows = np.cos(2 * np.pi * (down * np.cos(angle) - across * np.sin(angle)) / pitch + phase[1])
    slope = rng.uniform(-0.2, 0.2, 2)
    light = 1 + slope[0] * (across / size - 0.5) + slope[1] * (down / size - 0.5)
    light = (light * (1 + rng.uniform(0.01, 0.08) * (columns + rows) / 2))[..., None]
    out = np.empty_like(frames)
    for i, frame in enumerate(frames):
        askew = cv2.warpPerspective(frame, matrix, (size, size), borderMode=cv2.BORDER_REPLICATE)
        out[i] = np.clip(cv2.GaussianBlur(askew, (0, 0), 0.6) * light, 0, 255)
    return out


def recolour(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another exposure, white balance and saturation: (T, S, S, 3) uint8 to the same."""
    gamma = rng.uniform(0.75, 1.35)
    gains = (1 + rng.uniform(-0.08, 0.08, 3)) * rng.uniform(0.85, 1.15)
    ramp = np.arange(256) / 255
    table = np.clip(ramp[:, None] ** gamma * gains * 255, 0, 255).astype(np.uint8)[None]  # (1, 256, 3)
    saturation = 0.0 if rng.random() < 0.04 else rng.uniform(0.7, 1.25)
    out = []
    for frame in frames:
        frame = cv2.LUT(frame, table)
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)[..., None]
        out.append(cv2.addWeighted(frame, saturation, np.repeat(grey, 3, axis=2), 1 - saturation, 0))
    return np.stack(out)
