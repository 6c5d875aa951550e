"""The sample archive and its truth: every video of the zoo, what it shows, and how a scan of it must end.

    python -m tests.zoo tests/archive      re-makes the small archive that the repository ships (1.8 MB)
    python -m tests.zoo --all FOLDER       renders the larger formats too

Truth is known by construction and kept as data in `ZOO`. Rendering again gives the same pictures; the bytes
may differ between encoder versions, so tests compare pictures, times and truth, never bytes.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from scanner.results import Status
from tests.zoo_face import Blink, Sitter, backdrop, self_blend, stamp_frame_number
from tests.zoo_files import cut, rot, set_rotation, write_header_only, write_tone, write_video

ARCHIVE = Path(__file__).parent / "archive"
NOTES = "notes.txt"  # lies in the archive and is no video: an inventory must not list it


@dataclass(frozen=True)
class Clip:
    """One file of the zoo and the truth about it."""

    path: str  # in the archive
    shows: str  # the exact frame pattern
    status: frozenset[Status]  # how a scan of it may end
    make: Callable[[Clip, Path], object]
    times: tuple[Fraction, ...] = ()  # of the frames, seconds after the container starts; frame k is stamped k
    readable: int = 0  # frames that PyAV can decode at least
    label: str | None = None  # "real" or "fake"; None where there is nothing to judge
    faces: int = 0  # most faces at one moment
    face_spans: tuple[tuple[float, float], ...] = ()  # seconds in which they are there
    blinks: tuple[tuple[Blink, ...], ...] = ()  # of each face, left to right
    rotation: int = 0  # degrees clockwise that a player turns the stored picture by
    codec: str = "libx264"
    tone_s: float = 0.0  # length of an audio track that starts at 0
    clock_s: int = 0  # what the container's clock says at its start
    shipped: bool = True

    @property
    def name(self) -> str:
        return Path(self.path).name

    @property
    def duration(self) -> float:
        """Seconds from the first frame to the end of the last one."""
        return float(2 * self.times[-1] - self.times[-2] - self.times[0]) if self.times else 0.0


# --- scenes: what is seen at t --------------------------------------------------------------------

Scene = Callable[[Clip, float], np.ndarray]


def one_face(clip: Clip, t: float) -> np.ndarray:
    """The portrait, blinking; the backdrop where the clip promises no face."""
    if not any(start <= t < end for start, end in clip.face_spans):
        return backdrop(t)
    return Sitter(clip.blinks[0]).picture(t)


def swapped_face(clip: Clip, t: float) -> np.ndarray:
    """The portrait with a self-blended face."""
    sitter = Sitter(clip.blinks[0], seed=20)
    return self_blend(sitter.picture(t), sitter.face_outline(t), t, seed=20)


def two_faces(clip: Clip, t: float) -> np.ndarray:
    """The portrait at the left, its mirror image, blinking and moving on its own, at the right."""
    left, right = (Sitter(b, seed, width=320, left=126) for b, seed in zip(clip.blinks, (1, 40), strict=True))
    return np.hstack([left.picture(t), right.picture(t)[:, ::-1]])


# --- makers: from a clip to a file ----------------------------------------------------------------


def video(scene: Scene = one_face, *, faststart: bool = False) -> Callable[[Clip, Path], None]:
    """A maker that shows `scene` at the clip's times, each frame stamped with its number."""

    def stored(clip: Clip, number: int, t: Fraction) -> np.ndarray:
        picture = scene(clip, float(t))
        stamp_frame_number(picture, number)
        return np.rot90(picture, clip.rotation // 90)

    def make(clip: Clip, path: Path) -> None:
        pictures = (stored(clip, number, t) for number, t in enumerate(clip.times))
        write_video(
            path,
            pictures,
            clip.times,
            codec=clip.codec,
            faststart=faststart,
            clock_s=clip.clock_s,
            tone_s=clip.tone_s,
        )
        if clip.rotation:
            set_rotation(path, clip.rotation)

    return make


def damaged(harm: Callable[[Path, Path], None], make: Callable[[Clip, Path], object]) -> Callable[[Clip, Path], None]:
    """A maker that renders a sound file first and keeps what `harm(sound, path)` leaves of it."""

    def harmed(clip: Clip, path: Path) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            sound = Path(scratch) / f"sound{path.suffix}"
            make(clip, sound)
            harm(sound, path)

    return harmed


def steady(seconds: float, fps: int = 25, start: int = 0) -> tuple[Fraction, ...]:
    """Frame k at start + k/fps."""
    return tuple(start + Fraction(k, fps) for k in range(round(seconds * fps)))


def switching(stretches: Sequence[tuple[int, int]]) -> tuple[Fraction, ...]:
    """Stretches of (seconds, frames per second), one after the other."""
    times, start = [], 0
    for seconds, fps in stretches:
        times += steady(seconds, fps, start)
        start += seconds
    return tuple(times)


def blinks(*at: tuple[float, float]) -> tuple[Blink, ...]:
    return tuple(Blink(t, duration) for t, duration in at)


# --- the zoo --------------------------------------------------------------------------------------

OK, NO_FACE, TOO_SHORT = (frozenset({s}) for s in (Status.OK, Status.NO_FACE, Status.TOO_SHORT))
NOT_A_VIDEO = frozenset({Status.UNSUPPORTED})
UNREADABLE = frozenset({Status.DECODE_ERROR})
NO_CONTAINER = frozenset({Status.DECODE_ERROR, Status.UNSUPPORTED})  # a video once; its index is gone


def _face(path: str, shows: str, times: tuple[Fraction, ...], *faces: tuple[Blink, ...], **more) -> Clip:
    """A clip in which a real face is there from the first to the last frame, unless `more` says otherwise."""
    truth = {
        "status": OK,
        "make": video(),
        "readable": len(times),
        "label": "real",
        "faces": len(faces),
        "face_spans": ((float(times[0]), float(times[-1]) + 1e-6),),
    }
    return Clip(path, shows, times=times, blinks=faces, **{**truth, **more})


_CLIPS = (
    _face(
        "talks/real_blinks.mp4",
        "25 fps, frame k at k/25 s, 300 frames; one face that blinks six times.",
        steady(12),
        blinks((1.4, 0.24), (3.1, 0.20), (5.2, 0.30), (6.9, 0.18), (8.6, 0.26), (10.7, 0.22)),
    ),
    _face(
        "talks/fake_selfblend.mp4",
        "25 fps, frame k at k/25 s, 300 frames; a face blended with a changed copy of itself throughout.",
        steady(12),
        blinks((0.9, 0.22), (2.8, 0.26), (6.2, 0.20), (9.8, 0.30)),
        make=video(swapped_face),
        label="fake",
    ),
    _face(
        "talks/no_face_stretch.mp4",
        "25 fps, 300 frames; a face in frames 0-99, a moving backdrop in 100-199, the face again in 200-299.",
        steady(12),
        blinks((1.3, 0.22), (2.9, 0.26), (9.5, 0.24), (11.0, 0.20)),
        face_spans=((0.0, 4.0), (8.0, 12.0)),
    ),
    _face(
        "talks/late_start.mkv",
        "A tone from 0 to 10 s; the video starts 2 s later: frame k at 2 + k/25 s, 200 frames.",
        steady(8, start=2),
        blinks((3.2, 0.24), (5.9, 0.20), (8.3, 0.28)),
        tone_s=10.0,
    ),
    _face(
        "street/two_faces.mp4",
        "25 fps, 250 frames; a face at the left and its mirror image at the right, each blinking on its own.",
        steady(10),
        blinks((1.2, 0.24), (4.0, 0.20), (7.1, 0.28)),
        blinks((2.3, 0.22), (3.9, 0.26), (5.6, 0.20), (8.4, 0.24)),
        make=video(two_faces),
    ),
    _face(
        "street/rotated_90.mp4",
        "25 fps, 225 frames, stored 360 x 640 and lying on its left; the display matrix turns it upright.",
        steady(9),
        blinks((1.6, 0.24), (4.3, 0.22), (7.0, 0.26)),
        rotation=90,
    ),
    _face(
        "street/variable_fps.mp4",
        "Frames every 1/30 s in seconds 0-2, 4-6 and 8-10, every 1/10 s in seconds 2-4 and 6-8: 220 frames.",
        switching([(2, 30), (2, 10), (2, 30), (2, 10), (2, 30)]),
        blinks((1.1, 0.22), (3.05, 0.40), (5.0, 0.26), (9.1, 0.20)),
    ),
    _face(
        "street/short.mp4",
        "25 fps, 10 frames: 0.4 s of a face, too little for a clip of 16 samples.",
        steady(0.4),
        (),
        status=TOO_SHORT,
        label=None,
    ),
    _face(
        "street/no_face.mp4",
        "25 fps, 100 frames of the moving backdrop.",
        steady(4),
        status=NO_FACE,
        label=None,
        face_spans=(),
    ),
    _face(
        "formats/mpegts.ts",
        "H.264 in an MPEG transport stream whose clock starts at 10 s; frame k at 10 + k/25 s, 200 frames.",
        steady(8),
        blinks((1.8, 0.24), (4.1, 0.22), (6.3, 0.26)),
        clock_s=10,
    ),
    _face(
        "formats/av1.mp4",
        "AV1, which decord refuses; 25 fps, 200 frames.",
        steady(8),
        blinks((1.5, 0.26), (5.5, 0.24)),
        codec="libsvtav1",
    ),
    _face(
        "formats/vp9.webm",
        "VP9 in WebM; 25 fps, 150 frames.",
        steady(6),
        blinks((2.2, 0.24), (4.4, 0.26)),
        codec="libvpx-vp9",
    ),
    _face(
        "formats/late_start.mp4",
        "As late_start.mkv, but in MP4, where an edit list holds the video back.",
        steady(8, start=2),
        blinks((3.2, 0.24), (5.9, 0.20), (8.3, 0.28)),
        tone_s=10.0,
        shipped=False,
    ),
    _face(
        "formats/mpeg2.mpg",
        "MPEG-2 with B-frames in a program stream, whose clock does not start at 0; 25 fps, 200 frames.",
        steady(8),
        blinks((1.8, 0.24), (5.1, 0.22)),
        codec="mpeg2video",
        shipped=False,
    ),
    _face(
        "formats/prores.mov",
        "ProRes proxy, 4:2:2 at 10 bits; 25 fps, 75 frames.",
        steady(3),
        blinks((1.5, 0.24)),
        codec="prores_ks",
        shipped=False,
    ),
    _face(
        'broken/it\'s "ünïcode" ; name.mp4',
        "Nothing is wrong but the name; 25 fps, 75 frames.",
        steady(3),
        blinks((1.5, 0.24)),
    ),
    _face(
        "broken/bitrot.mp4",
        "25 fps, 250 frames; behind the first quarter six pictures cannot be read and six are scarred.",
        steady(10),
        blinks((1.0, 0.24), (4.2, 0.22), (7.7, 0.26)),
        make=damaged(lambda sound, path: rot(sound, path, seed=7, refused=6, scarred=6), video()),
        readable=240,
    ),
    _face(
        "broken/truncated_faststart.mp4",
        "25 fps, an index of 200 frames in front, cut at 60 % of the bytes: the first part can be read.",
        steady(8),
        blinks((0.9, 0.24), (2.6, 0.22)),
        make=damaged(lambda sound, path: cut(sound, path, 0.6), video(faststart=True)),
        readable=80,
    ),
    Clip(
        "broken/truncated.mp4",
        "A 2 s video cut in the middle; the index stood at the end and is gone, so nothing can be read.",
        NO_CONTAINER,
        damaged(
            lambda sound, path: cut(sound, path, 0.5),
            lambda _, path: write_video(path, (Sitter().picture(float(t)) for t in steady(2)), steady(2)),
        ),
    ),
    Clip(
        "broken/no_frames.mp4",
        "The header of an H.264 video that was closed before its first frame.",
        UNREADABLE,
        lambda _, path: write_header_only(path),
    ),
    Clip("broken/empty.mp4", "Not one byte.", UNREADABLE, lambda _, path: path.write_bytes(b"") and None),
    Clip(
        "broken/text.mp4",
        "A line of text, repeated.",
        NOT_A_VIDEO,
        lambda _, path: path.write_text("This is not a video.\n" * 40),
    ),
    Clip(
        "broken/audio_only.mp4",
        "A tone of 3 s (AAC), no video track.",
        NOT_A_VIDEO,
        lambda _, path: write_tone(path, 3.0),
    ),
)
ZOO: dict[str, Clip] = {clip.name: clip for clip in _CLIPS}


def zoo_archive(out: Path, *, shipped_only: bool = False) -> Path:
    """Render the zoo into the folder `out` and return it. The whole takes about two minutes on one core."""
    for clip in ZOO.values():
        if clip.shipped or not shipped_only:
            render(clip, out)
    (out / NOTES).write_text("A text file among the videos. It is not scanned.\n")
    return out


def render(clip: Clip, out: Path) -> Path:
    """Render one clip to its place under the folder `out` and return where it is."""
    path = out / clip.path
    path.parent.mkdir(parents=True, exist_ok=True)
    clip.make(clip, path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description="Render the sample archive.")
    parser.add_argument("out", nargs="?", type=Path, default=ARCHIVE)
    parser.add_argument("--all", action="store_true", help="also the formats that are not shipped")
    options = parser.parse_args()
    zoo_archive(options.out, shipped_only=not options.all)


if __name__ == "__main__":
    main()
