"""The files of the zoo: pictures encoded with PyAV, and files broken on purpose."""

from __future__ import annotations

import math
import os
import struct
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import av.container
import cv2
import numpy as np

from tests.zoo_face import HEIGHT, WIDTH, Blink, Sitter

SAMPLE_RATE = 48_000
AAC_SAMPLES = 1024  # per frame

os.environ.setdefault("SVT_LOG", "1")  # the AV1 encoder prints its settings otherwise

# Options per encoder: small files; one thread, so that nothing depends on the number of cores.
ENCODERS: dict[str, dict[str, str]] = {
    "libx264": {"crf": "25", "preset": "slow", "threads": "1", "g": "100"},
    "libsvtav1": {"crf": "42", "preset": "8", "svtav1-params": "lp=1"},
    "libvpx-vp9": {"crf": "40", "b": "0", "cpu-used": "5", "threads": "1"},
    "mpeg2video": {"qscale": "6", "flags": "+qscale", "bf": "2"},
    "prores_ks": {"profile": "0"},
}
PIXEL_FORMATS = {"prores_ks": "yuv422p10le"}


def write_video(
    path: Path,
    pictures: Iterable[np.ndarray],
    times: Sequence[Fraction],
    *,
    codec: str = "libx264",
    faststart: bool = False,
    clock_s: int = 0,
    tone_s: float = 0.0,
) -> None:
    """Encode `pictures` ((height, width, 3) uint8 RGB), one at each of `times` (seconds), into `path`.

    The container follows the suffix. faststart: an MP4's index goes in front. clock_s: what the container's
    clock says at 0. tone_s: length of a quiet 440 Hz AAC track that starts at 0, whatever the video does.
    """
    options = {"movflags": "+faststart"} if faststart else {"output_ts_offset": str(clock_s)}
    with av.open(str(path), "w", options=options) as container:
        pictures = iter(pictures)
        first = next(pictures)
        rate = Fraction(len(times) - 1, 1) / (times[-1] - times[0])
        stream = container.add_stream(codec, rate=rate.limit_denominator(1001), options=ENCODERS[codec])
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = PIXEL_FORMATS.get(codec, "yuv420p")
        # mpeg2video and prores carry a frame rate, not a time per frame
        ticks = 1 / rate if codec in ("mpeg2video", "prores_ks") else Fraction(1, 90_000)
        stream.codec_context.time_base = ticks
        packets = list(_tone(container, tone_s)) if tone_s else []
        for time, picture in zip(times, _chain(first, pictures), strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = round(time / ticks), ticks
            packets += stream.encode(frame)
        packets += stream.encode()
        container.start_encoding()
        for packet in sorted(packets, key=lambda p: p.dts * p.time_base):
            container.mux(packet)


def _chain(first: np.ndarray, rest: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    yield first
    yield from rest


def _tone(container: av.container.OutputContainer, seconds: float) -> Iterator[av.Packet]:
    stream = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono", options={"b": "32000"})
    for start in range(0, int(seconds * SAMPLE_RATE), AAC_SAMPLES):
        samples = 0.05 * np.sin(2 * np.pi * 440 * (start + np.arange(AAC_SAMPLES)) / SAMPLE_RATE)
        frame = av.AudioFrame.from_ndarray(samples.astype(np.float32)[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, start, Fraction(1, SAMPLE_RATE)
        yield from stream.encode(frame)
    yield from stream.encode()


def write_tone(path: Path, seconds: float) -> None:
    """A file with an AAC track and nothing to see."""
    with av.open(str(path), "w") as container:
        for packet in _tone(container, seconds):
            container.mux(packet)


def write_header_only(path: Path) -> None:
    """A fragmented MP4 that was closed before its first fragment: it declares an H.264 track."""
    with av.open(str(path), "w", options={"movflags": "frag_keyframe+empty_moov"}) as container:
        stream = container.add_stream("libx264", rate=25, options=ENCODERS["libx264"])
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        container.start_encoding()


def set_rotation(path: Path, clockwise: int) -> None:
    """Make players turn the MP4's video track by `clockwise` (90, 180 or 270) degrees to show it upright.

    PyAV writes no display matrix, so the track header's is overwritten: nine 32-bit fixed-point numbers
    (16.16, the third column 2.30), ISO/IEC 14496-12, 8.3.2.
    """
    cos, sin = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[clockwise]
    data = bytearray(path.read_bytes())
    header = data.index(b"tkhd") + 4
    matrix = header + (52 if data[header] == 1 else 40)  # version 1 has 64-bit times
    one = 1 << 16
    data[matrix : matrix + 36] = struct.pack(">9i", cos * one, sin * one, 0, -sin * one, cos * one, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


def cut(source: Path, path: Path, keep: float) -> None:
    """The first `keep` (a fraction) of `source`'s bytes."""
    data = source.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


def rot(source: Path, path: Path, *, seed: int, refused: int, scarred: int) -> None:
    """`source`, an H.264 MP4, with bytes turned over at seeded places behind the first quarter; no keyframe.

    refused: pictures that no other refers to (nal_ref_idc 0), whose first 8 bytes, the unit's length among
    them, are turned over: decoders refuse the packet. scarred: any pictures, hit by one byte at three
    quarters, which decoders conceal; the scars lie in the lower part and stay until the next keyframe.
    """
    data = bytearray(source.read_bytes())
    with av.open(str(source)) as container:
        sound = [(p.pos, p.size) for p in container.demux(video=0) if p.pos and not p.is_keyframe]
    sound = sound[len(sound) // 4 :]
    lone = [i for i, (pos, _) in enumerate(sound) if data[pos + 4] >> 5 == 0]
    rng = np.random.default_rng(seed)
    lost = rng.choice(lone, refused, replace=False)
    hits = [sound[i][0] + k for i in lost for k in range(8)]
    scars = rng.choice(len(sound), scarred, replace=False)
    hits += [pos + size * 3 // 4 for pos, size in (sound[i] for i in scars)]
    for place in hits:
        data[place] ^= 0xFF
    path.write_bytes(data)


def render_long(path: Path, seconds: float, size: tuple[int, int] = (1920, 1080)) -> None:
    """A long MP4 for memory tests: ten seconds of the portrait, encoded once, repeated to fill `seconds`.

    size: (width, height) in pixels. 25 frames per second, frame k at k/25 s; a keyframe opens each round. The
    ten seconds run forward and back again, so that the head does not jump where they meet.
    """
    sitter = Sitter((Blink(1.5, 0.24), Blink(3.5, 0.2)))
    there = [cv2.resize(sitter.picture(k / 25), size, interpolation=cv2.INTER_LINEAR) for k in range(125)]
    with tempfile.TemporaryDirectory() as scratch:
        loop = Path(scratch) / "loop.mp4"
        write_video(loop, there + there[::-1], [Fraction(k, 25) for k in range(250)])
        with av.open(str(loop)) as source, av.open(str(path), "w") as target:
            packets = [(p.pts, p.dts, p.is_keyframe, bytes(p)) for p in source.demux(video=0) if p.size]
            stream = target.add_stream_from_template(source.streams.video[0])
            ticks = source.streams.video[0].time_base or Fraction(1, 90_000)
            for start in range(0, math.ceil(seconds), 10):
                for pts, dts, is_keyframe, data in packets:
                    packet = av.Packet(data)
                    packet.pts, packet.dts = pts + int(start / ticks), dts + int(start / ticks)
                    packet.time_base, packet.is_keyframe, packet.stream = ticks, is_keyframe, stream
                    packet.duration = int(Fraction(1, 25) / ticks)
                    target.mux(packet)
