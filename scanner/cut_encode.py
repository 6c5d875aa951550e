"""A stretch of an open video, decoded and encoded anew, picture and sound together."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Set
from fractions import Fraction
from typing import Any, NamedTuple

import av
from av.error import FFmpegError
from av.filter import Graph

from scanner.decode import MAX_DECODE_ERRORS, MAX_DEMUX_RESTARTS, DecodeError, VideoInfo
from scanner.reencode import TICKS

EDGE_S = 1e-3  # times of rows are rounded, a frame's are not
MAX_REORDER = 16  # pictures: H.264's limit, level 5.1 and below
ENCODER = {"crf": "18", "preset": "veryfast"}  # hardly any loss: what is judged must look as it did
AAC_RATES = frozenset({96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350})
READ_ON_S = 5.0  # sound and picture of one moment may lie so far apart in a file
#: Sound that MP4 carries and players of MP4 play: its packets may stay as they are.
MP4_SOUND = frozenset({"aac", "mp3", "ac3", "eac3", "alac", "opus"})

Paint = Callable[[av.VideoFrame, float], av.VideoFrame]  # an upright yuv420p picture and its time, in seconds


class Source(NamedTuple):
    """An open video, and the streams of it that are cut."""

    container: Any
    video: Any
    audio: list[Any]
    origin: Fraction  # seconds on the container's clock at which the video's time is 0


def packets(source: Source, streams: Iterable[Any]) -> Iterator[av.Packet]:
    """Every packet that can be read; goes on behind a spot that can't."""
    streams = list(streams)
    for _ in range(MAX_DEMUX_RESTARTS):
        try:
            yield from source.container.demux(streams)
            return
        except (FFmpegError, OSError):
            continue


def encode(
    source: Source,
    info: VideoInfo,
    target: str,
    t_start: float,
    t_end: float,
    *,
    zero: float | None = None,
    paint: Paint | None = None,
    kept_sound: Set[str] = frozenset(),
) -> tuple[float, float]:
    """Encode a stretch of a video in H.264 and AAC, and write it to `target` (MP4).

    source: read from here on, a keyframe before t_start at the latest. Upright, square pixels, times kept; what can't
    be decoded is passed over. zero: the second of the video that the file begins at, by default its first picture's.
    paint: what is done to each picture. kept_sound: codecs of sound that is copied, see MP4_SOUND.
    Returns (start, end) of what the file holds, in seconds of the video. Raises DecodeError or FFmpegError; where
    sound is copied that doesn't fit together, ValueError too.
    """
    with av.open(target, "w", format="mp4", options={"movflags": "+faststart"}) as out:
        tracks: dict[int, _Sound | _SameSound] = {
            s.index: _SameSound(out, s) if s.codec_context.name in kept_sound else _Sound(out, s)
            for s in source.audio
            if s.codec_context is not None
        }
        picture = _Picture(out, info, t_start, zero, paint)
        errors = 0
        for packet in packets(source, [source.video, *(s for s in source.audio if s.index in tracks)]):
            track = tracks.get(packet.stream.index, picture)
            try:
                frames = [packet] if isinstance(track, _SameSound) else packet.decode()
            except (FFmpegError, OSError):
                errors += 1
                if errors > MAX_DECODE_ERRORS:
                    break
                continue
            for frame in frames:
                at = _seconds(frame)
                if at is not None:
                    track.take(frame, at - float(source.origin), t_end)
            if picture.zero is not None:
                for sound in tracks.values():
                    sound.write(picture.zero)
            if picture.latest > t_end + READ_ON_S or all(t.latest >= t_end for t in (picture, *tracks.values())):
                break
        picture.flush(t_end)
        if picture.zero is None or not picture.begun:
            raise DecodeError(f"no picture from {t_start:.2f} to {t_end:.2f} s could be decoded")
        for sound in tracks.values():
            sound.finish(picture.zero)
        return picture.zero, picture.finish(t_end)


def _seconds(item: av.Packet | av.VideoFrame | av.AudioFrame) -> float | None:
    """When a packet or a frame is shown, on the container's clock."""
    return None if item.pts is None or item.time_base is None else float(item.pts * item.time_base)


class _Picture:
    """The video track of a stretch that is encoded: begins with the picture that is on screen at t_start."""

    def __init__(self, out: Any, info: VideoInfo, t_start: float, zero: float | None, paint: Paint | None) -> None:
        self.out, self.t_start, self.paint = out, t_start, paint
        self.zero = zero  # seconds of the video at which the file begins
        self.latest = -math.inf
        self._interval = 1 / info.fps if info.fps else 0.04
        # Where times are guessed, those of neighbours are mixed up: pictures come in order, so times are put in order.
        self._reorder = MAX_REORDER if info.container == "avi" else 0
        self._frames: deque[av.VideoFrame] = deque()
        self._times: list[float] = []
        self._before: av.VideoFrame | None = None
        self._last = -1  # ticks
        self._turn = _Turn(info)
        rate = Fraction(info.fps or 25).limit_denominator(1001)
        self._stream = out.add_stream("libx264", rate=rate, options=ENCODER)
        self._stream.width, self._stream.height = _even(info.width), _even(info.height)
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = TICKS

    @property
    def begun(self) -> bool:
        """Whether a picture was written."""
        return self._last >= 0

    def take(self, frame: Any, t: float, t_end: float) -> None:
        self.latest = max(self.latest, t)
        self._frames.append(frame)
        heapq.heappush(self._times, t)
        if len(self._frames) > self._reorder:
            self._place(self._frames.popleft(), heapq.heappop(self._times), t_end)

    def flush(self, t_end: float) -> None:
        """Nothing more will come."""
        while self._frames:
            self._place(self._frames.popleft(), heapq.heappop(self._times), t_end)

    def _place(self, frame: av.VideoFrame, t: float, t_end: float) -> None:
        if t < self.t_start - EDGE_S:
            self._before = frame
        elif t < t_end:
            if self.zero is None and self._before is not None and t > self.t_start + EDGE_S:
                self._write(self._before, self.t_start)
            self._write(frame, t)

    def _write(self, frame: av.VideoFrame, t: float) -> None:
        self.zero = t if self.zero is None else self.zero
        ticks = round((t - self.zero) / TICKS)
        if ticks > self._last:
            upright = self._turn(frame)
            if self.paint is not None:
                upright = self.paint(upright, t)
            upright.pts, upright.time_base, self._last = ticks, TICKS, ticks
            self.out.mux(self._stream.encode(upright))

    def finish(self, t_end: float) -> float:
        """Write what the encoder still holds; where the picture ends, in seconds of the video."""
        self.out.mux(self._stream.encode())
        assert self.zero is not None
        return min(t_end, self.zero + float(self._last * TICKS) + self._interval)


class _Turn:
    """Pictures as a viewer sees them: upright, square pixels, 8 bits, all of one size."""

    def __init__(self, info: VideoInfo) -> None:
        self.width, self.height = _even(info.width), _even(info.height)
        if info.rotation in (90, 270):
            self.width, self.height = self.height, self.width
        filters = {90: ["transpose=cclock"], 180: ["hflip", "vflip"], 270: ["transpose=clock"]}.get(info.rotation, [])
        self._graph = self._build(filters) if filters else None

    def _build(self, filters: list[str]) -> Graph:
        graph = Graph()
        pixels = av.VideoFormat("yuv420p", self.width, self.height)
        source = graph.add_buffer(width=self.width, height=self.height, format=pixels, time_base=TICKS)
        turns = [graph.add(*text.split("=")) for text in filters]
        graph.link_nodes(source, *turns, graph.add("buffersink")).configure()
        return graph

    def __call__(self, frame: av.VideoFrame) -> av.VideoFrame:
        frame = frame.reformat(self.width, self.height, "yuv420p")
        if self._graph is None:
            return frame
        frame.pts, frame.time_base = None, TICKS
        self._graph.vpush(frame)
        return self._graph.vpull()


class _Sound:
    """One audio track of a stretch that is encoded; waits until it is known when the picture begins."""

    def __init__(self, out: Any, template: Any) -> None:
        self.out = out
        self.latest = -math.inf
        rate = template.rate if template.rate in AAC_RATES else 48_000
        layout = "mono" if template.channels == 1 else "stereo"
        self._stream = out.add_stream("aac", rate=rate, layout=layout)
        self._waiting: list[tuple[float, Any]] = []
        self._next = 0.0  # seconds of the file

    def take(self, frame: Any, t: float, t_end: float) -> None:
        self.latest = max(self.latest, t)
        if t < t_end:
            self._waiting.append((t, frame))

    def write(self, zero: float) -> None:
        """Encode what has come of the file, which begins at `zero` seconds of the video."""
        for t, frame in self._waiting:
            if t - zero >= self._next - EDGE_S:
                self._next = t - zero + frame.samples / frame.sample_rate
                frame.time_base = Fraction(1, frame.sample_rate)
                frame.pts = max(0, round((t - zero) * frame.sample_rate))
                self.out.mux(self._stream.encode(frame))
        self._waiting.clear()

    def finish(self, zero: float) -> None:
        self.write(zero)
        if self._next:  # an encoder that never saw a frame can't be flushed
            self.out.mux(self._stream.encode())


class _SameSound:
    """One audio track whose packets are kept as they are."""

    def __init__(self, out: Any, template: Any) -> None:
        self.out = out
        self.latest = -math.inf
        self._stream = out.add_stream_from_template(template, opaque=True)
        self._waiting: list[tuple[float, Any]] = []
        self._shift: int | None = None  # ticks from the source's clock to the file's

    def take(self, packet: Any, t: float, t_end: float) -> None:
        self.latest = max(self.latest, t)
        if t < t_end:
            self._waiting.append((t, packet))

    def write(self, zero: float) -> None:
        """Pass on the packets of the file, which begins at `zero` seconds of the video."""
        for t, packet in self._waiting:
            if self._shift is None:
                self._shift = packet.pts - round((t - zero) / packet.time_base)
            packet.pts -= self._shift
            packet.dts = packet.pts if packet.dts is None else packet.dts - self._shift
            if packet.pts >= 0:
                packet.stream = self._stream
                self.out.mux(packet)
        self._waiting.clear()

    def finish(self, zero: float) -> None:
        self.write(zero)


def _even(side: int) -> int:
    """yuv420p halves both sides."""
    return max(2, side - side % 2)
