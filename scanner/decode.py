"""From a video file to upright RGB frames with presentation times."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import av.stream
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import VideoReformatter

from scanner import clock
from scanner.clock import TimedPacket
from scanner.results import Status
from scanner.thinning import Thinning, grid_slot

ANALYSIS_LONG_SIDE = 1280  # px: a face of 10 % of a 720p frame's width still fills FaceMesh's 192 px input by half
#: FFmpeg's names of the containers that are read; those of sound too, so that a song is told what it lacks. A playlist
#: or a concat script that calls itself a video names other files and addresses, and reading it would read those.
READABLE = (
    "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,mxf,asf,flv,ogg,h264,hevc,av1,obu,ivf,dv,gxf,nut,rm,"
    "mp3,flac,wav,aac"
)
SAFELY = {"format_whitelist": READABLE, "protocol_whitelist": "file"}
MAX_PIXELS = 8192 * 8192  # a frame of that size takes 200 MB as RGB
MAX_DECODE_ERRORS = 10_000  # packets; a file that is rotten throughout must end some time
MAX_DEMUX_RESTARTS = 50
TAIL_TOLERANCE_S = 0.5  # containers round durations up, and audio may outlast the picture by this much
GAP_FRAMES = 1.5  # in a damaged file, a longer pause than so many frame intervals means lost frames
NO_PTS = frozenset({"avi"})  # which FFmpeg guesses there, and wrongly where H.264 has B-frames
#: FFmpeg's names of containers in which a packet is a picture, and never one field of it.
WHOLE_PICTURES = frozenset({"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"})
SEEK_BACKOFF_S = (0.0, 10.0, 60.0)  # how far before a span a seek is tried when it lands behind the start

#: First bytes of the containers that carry video: a file with one of these that won't open is damaged.
_CONTAINER_MAGIC = (
    (4, b"ftyp"),
    (4, b"moov"),
    (4, b"mdat"),
    (4, b"wide"),
    (4, b"free"),
    (0, b"\x1a\x45\xdf\xa3"),  # Matroska, WebM
    (0, b"RIFF"),
    (0, b"FLV"),
    (0, b"OggS"),
    (0, b"\x30\x26\xb2\x75"),  # ASF, WMV
    (0, b"\x00\x00\x01"),  # MPEG program and elementary streams
    (0, b"\x06\x0e\x2b\x34"),  # MXF
    (0, b"G"),  # MPEG-TS sync byte, checked with the next packet's in `_looks_like_video`
)


class DecodeError(Exception):
    """The file yields no frame; `status` says how that is reported."""

    def __init__(self, message: str, status: Status = Status.DECODE_ERROR) -> None:
        super().__init__(message)
        self.status = status

    def __reduce__(self):
        return type(self), (str(self), self.status)


@dataclass(frozen=True)
class VideoInfo:
    """What a container says of its video, as a viewer sees it (upright, square pixels)."""

    duration_s: float  # from the container's start to the end of the picture
    start_s: float  # first picture, after the container's start (a late-starting stream: > 0)
    width: int
    height: int
    fps: float  # average
    codec: str
    rotation: int  # degrees counter-clockwise that make the stored picture upright
    pixel_aspect: float  # width / height of a stored pixel
    container: str  # FFmpeg's name of the format
    tick: Fraction = Fraction(1, 10**6)  # seconds that the stream counts its PTS in
    restarts: bool = False  # its clock starts anew on the way: times are counted on, and seeking leads nowhere

    @property
    def frame_s(self) -> float:
        """Seconds that a frame lasts, on average."""
        return 1 / self.fps if self.fps else 0.04


class Frame(NamedTuple):
    t: float  # presentation time, seconds after the container's start
    rgb: np.ndarray  # (height, width, 3) uint8


@dataclass
class Reading:
    """What became of reading a span: filled in by `read_frames` as it goes."""

    frames: int = 0
    errors: int = 0  # packets that could not be decoded, or have a piece missing
    lost_s: float = 0.0
    _last_t: float | None = field(default=None, repr=False)

    def seen(self, *times: float, interval: float) -> None:
        """Note frames that are there; in a file with errors, a gap over the usual interval counts as lost."""
        for t in times:
            if self.errors and self._last_t is not None and t - self._last_t > GAP_FRAMES * interval:
                self.lost_s += t - self._last_t - interval
            self.frames += 1
            self._last_t = t

    def finish(self, start: float, end: float) -> None:
        """Count what is missing at the end of a span that should hold pictures from `start` to `end`."""
        last = start if self._last_t is None else self._last_t
        if end - last > TAIL_TOLERANCE_S:
            self.lost_s += end - last


def probe(path: Path) -> VideoInfo:
    """Read a video's properties, and make sure that at least one frame decodes.

    Raises DecodeError: UNSUPPORTED for what is no video, DECODE_ERROR for a damaged one, TOO_LARGE for
    pictures beyond MAX_PIXELS.
    """
    if path.stat().st_size == 0:
        raise DecodeError("the file is empty (0 bytes)")
    with _open(path) as container:
        stream = _video_stream(container)
        _check_pixels(stream.codec_context.width, stream.codec_context.height)
        restarts = _restarts(path, container)
        origin = (container.start_time or 0) / av.time_base
        errors = _Errors()
        first = next(_decode_tolerant(stream, _timed(_packets(container, stream, errors), origin), errors), None)
        if first is None:
            raise DecodeError(f"no frame could be decoded{errors.last and f' ({errors.last})'}")
        _check_pixels(first.width, first.height)  # the header may have lied
        shown_at = _shown_at(first, origin, container.format.name in NO_PTS)
        if shown_at is None:
            raise DecodeError(
                "its pictures have no times, as those of a bare stream: `ffmpeg -i VIDEO NEW.mp4` gives them some",
                Status.UNSUPPORTED,
            )
        start = max(0.0, shown_at)
        width, height = first.width, first.height
        aspect = float(stream.sample_aspect_ratio or 1)
        if not 0.1 < aspect < 10:
            aspect = 1.0
        width = round(width * aspect)
        rotation = first.rotation % 360
        if rotation in (90, 270):
            width, height = height, width
        rate = stream.average_rate or stream.guessed_rate
        return VideoInfo(
            duration_s=_duration(path, container, stream, start, restarts),
            start_s=start,
            width=width,
            height=height,
            fps=float(rate) if rate else 0.0,
            codec=stream.codec_context.codec.canonical_name,  # av1, not libdav1d
            rotation=rotation,
            pixel_aspect=aspect,
            container=container.format.name,
            tick=stream.time_base or VideoInfo.tick,
            restarts=restarts,
        )


def read_frames(
    path: Path, info: VideoInfo, t_start: float, t_end: float, fps: float, decoder: str, reading: Reading
) -> Iterator[Frame]:
    """Yield the frames of a span, in order, thinned to about `fps` by presentation time.

    Frames are upright RGB of `analysis_size(info)`. Of the grid with a line every 1/fps seconds, the first
    frame after each line is taken, so variable frame rates keep their true times.
    decoder: "pyav" (skips what can't be decoded) or "decord" (raises DecordGaveUp where it can't).
    """
    if decoder == "decord":
        from scanner.second_opinion import decord_frames  # here, since it needs this module

        frames = decord_frames
    else:
        frames = _pyav_frames
    yield from frames(path, info, t_start, t_end, fps, reading)
    reading.finish(max(t_start, info.start_s), min(t_end, info.duration_s))


def pictures(path: Path, info: VideoInfo) -> Iterator[tuple[float, av.VideoFrame]]:
    """Every picture of a video that can be decoded and has a time: that, as `read_frames` tells it, and it as stored.

    Raises DecodeError.
    """
    with _open(path) as container:
        stream, errors = _video_stream(container), _Errors()
        origin = (container.start_time or 0) / av.time_base
        packets = _timed(_packets(container, stream, errors, info.restarts), origin)
        yield from _shown(_decode_tolerant(stream, packets, errors), origin, info)


def analysis_size(info: VideoInfo) -> tuple[int, int]:
    """(width, height) of analysed frames: the video's own, the long side cut to ANALYSIS_LONG_SIDE."""
    scale = min(1.0, ANALYSIS_LONG_SIDE / max(info.width, info.height))
    return max(2, round(info.width * scale)), max(2, round(info.height * scale))


# --- PyAV -------------------------------------------------------------------------------------------------


@dataclass
class _Errors:
    packets: int = 0  # that were read, decodable or not
    count: int = 0
    corrupt: int = 0  # packets with a piece missing, as the container tells
    last: str = ""

    def note(self, error: Exception) -> None:
        self.count += 1
        self.last = getattr(error, "strerror", None) or str(error)


def _pyav_frames(path, info, t_start, t_end, fps, reading) -> Iterator[Frame]:
    for backoff in (*SEEK_BACKOFF_S, math.inf):
        with _open(path) as container:
            stream = _video_stream(container)
            stream.codec_context.thread_count = 1
            origin = (container.start_time or 0) / av.time_base
            target = -math.inf if info.restarts else t_start - backoff
            if target > info.start_s:
                with contextlib.suppress(FFmpegError):  # some containers can't seek: read from the start
                    container.seek(int((target + origin) * av.time_base), backward=True)
            first = True
            last_slot = None
            errors = _Errors()
            packets = _timed(_packets(container, stream, errors, info.restarts), origin)
            if info.restarts:
                packets = clock.from_keyframe(packets, t_start)
            thinning = Thinning(t_start, fps)
            decoded = _decode_tolerant(stream, packets, errors, thinning if _thins(info) else None)
            for t, picture in _shown(decoded, origin, info):
                if first and t > max(t_start, info.start_s) and target > info.start_s:
                    break  # the seek landed behind the span's start: try again from further back
                first = False
                if t < t_start:
                    continue
                reading.errors = errors.count + errors.corrupt
                reading.seen(*thinning.passed(min(t, t_end)), interval=info.frame_s)
                if t >= t_end:
                    return
                reading.seen(t, interval=info.frame_s)
                slot = grid_slot(t, fps)
                if last_slot is None or slot > last_slot:
                    last_slot = slot
                    yield Frame(t, _upright_rgb(picture, info))
            # Packets but not one picture: the seek landed behind the last keyframe, as in MPEG-TS, which has no index.
            if not (first and errors.packets and target > info.start_s):
                reading.seen(*thinning.passed(t_end), interval=info.frame_s)
                return


def _thins(info: VideoInfo) -> bool:
    """Whether pictures that nobody asks for can be left out: where a packet is one, and says if others refer to it.

    Packets of MPEG-TS may be fields, of which it takes two. What HEVC says of a picture goes for its temporal layer.
    """
    return info.codec == "h264" and info.container in WHOLE_PICTURES


def _decode_tolerant(
    stream, packets: Iterator[TimedPacket], errors: _Errors, thinning: Thinning | None = None
) -> Iterator[av.VideoFrame]:
    """Every frame that can be decoded; packets that can't are counted in `errors` and skipped.

    thinning: leaves out what it calls needless and no other picture refers to, up to the first error: from then on a
    picture may have to stand in for another.
    """
    for t, packet in thinning.ahead(packets) if thinning else packets:
        errors.packets += packet.size > 0  # the last one is empty: it flushes the decoder
        errors.corrupt += packet.is_corrupt
        if thinning:
            needless = t is not None and not errors.count and thinning.leaves_out(t)
            stream.codec_context.skip_frame = "NONREF" if needless else "DEFAULT"
        try:
            yield from packet.decode()
        except (FFmpegError, OSError) as error:
            errors.note(error)


def _shown(decoded: Iterator[av.VideoFrame], origin: float, info: VideoInfo) -> Iterator[tuple[float, av.VideoFrame]]:
    """Pictures that have a time, with it."""
    last_t = -math.inf
    for picture in decoded:
        t = _shown_at(picture, origin, info.container in NO_PTS)
        if t is None:
            continue
        if info.container in NO_PTS and t <= last_t:
            t = last_t + info.frame_s  # the last ones, which no packet let go
        last_t = t
        yield t, picture


def _shown_at(it: av.Packet | av.VideoFrame, origin: float, by_dts: bool = False) -> float | None:
    """Seconds after the container's start; a packet and its picture give the very same.

    by_dts: pictures leave the decoder in order, each with the dts of the packet that let it go: a few frames late, all
    alike, but never out of order.
    """
    ticks = it.dts if by_dts and it.dts is not None else it.pts
    return None if ticks is None or it.time_base is None else float(ticks * it.time_base) - origin


def _timed(packets: Iterator[av.Packet], origin: float) -> Iterator[TimedPacket]:
    return ((_shown_at(packet, origin), packet) for packet in packets)


def _packets(container, stream, errors: _Errors, restarts: bool = False) -> Iterator[av.Packet]:
    """Every packet that can be read; places that can't be are counted in `errors`. restarts: put them on one clock."""
    packets = _readable(container, stream, errors)
    return clock.on_one_clock(packets) if restarts else packets


def _readable(container, stream, errors: _Errors) -> Iterator[av.Packet]:
    resumed = 0
    packets = container.demux(stream)
    while errors.count < MAX_DECODE_ERRORS:
        try:
            yield next(packets)
        except (StopIteration, IndexError):  # the second: PyAV ends with every stream, also those found on the way
            return
        except (FFmpegError, OSError) as error:
            errors.note(error)
            resumed += 1
            if resumed > MAX_DEMUX_RESTARTS:
                return
            packets = container.demux(stream)  # goes on behind the spot that could not be read


#: Kept, because setting one up for every frame costs an eighth of the decoding.
_REFORMATTER = VideoReformatter()


def _upright_rgb(picture: av.VideoFrame, info: VideoInfo) -> np.ndarray:
    width, height = analysis_size(info)
    if info.rotation in (90, 270):
        width, height = height, width
    rgb = _REFORMATTER.reformat(picture, width, height, "rgb24").to_ndarray()
    return np.ascontiguousarray(np.rot90(rgb, info.rotation // 90)) if info.rotation else rgb


# --- containers -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _open(path: Path):
    try:
        container = av.open(str(path), options=SAFELY, metadata_errors="replace")
    except (FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        if _looks_like_video(path):
            raise DecodeError(f"damaged: {reason}") from error
        raise DecodeError(f"not a video that can be read: {reason}", Status.UNSUPPORTED) from error
    try:
        yield container
    finally:
        container.close()


def _check_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        size = f"{width} x {height}"
        raise DecodeError(f"pictures of {size} pixels are over the limit of {MAX_PIXELS:,}", Status.TOO_LARGE)


def _looks_like_video(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(512)
    for offset, magic in _CONTAINER_MAGIC:
        if head[offset : offset + len(magic)] == magic:
            return magic != b"G" or head[188:189] == b"G"
    return False


def _video_stream(container):
    # A cover picture is a video stream with one frame; the real one, if there is any, comes before it.
    streams = [s for s in container.streams.video if not (s.disposition & av.stream.Disposition.attached_pic)]
    if not streams:
        raise DecodeError("there is no video stream in it", Status.UNSUPPORTED)
    if streams[0].codec_context is None:
        raise DecodeError("no decoder is known for its video stream", Status.UNSUPPORTED)
    return streams[0]


def _restarts(path: Path, container) -> bool:
    if container.format.name not in clock.CAN_RESTART:
        return False
    with _open(path) as another:
        return clock.restarts(another, _video_stream(another))


def _duration(path: Path, container, stream, start: float, restarts: bool) -> float:
    """Seconds from the container's start to the end of the picture."""
    late = container.format.name == "matroska,webm" and (container.start_time or 0) >= av.time_base
    if restarts or late:  # some write the length into Matroska, some the last time on its clock
        return _end(path, start, restarts)
    if stream.duration is not None and stream.duration > 0:
        return start + float(stream.duration * stream.time_base)
    if container.duration is not None and container.duration > 0:
        return container.duration / av.time_base
    return _end(path, start, restarts)  # live recordings state no duration


def _end(path: Path, start: float, restarts: bool) -> float:
    """The same, of the packets: the whole file is read."""
    end = start
    with _open(path) as container:
        stream = _video_stream(container)
        origin = (container.start_time or 0) / av.time_base
        frame_s = float(1 / stream.average_rate) if stream.average_rate else 0.0
        for t, packet in _timed(_packets(container, stream, _Errors(), restarts), origin):
            if t is not None:
                end = max(end, t + (float(packet.duration * packet.time_base) if packet.duration else frame_s))
    return round(end, 6)
