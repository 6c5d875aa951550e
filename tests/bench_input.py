"""What the benchmark works on: an archive of 720p talking heads, and a model of full size."""

from __future__ import annotations

import getpass
import itertools
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from tests.zoo_face import Blink, Sitter

WIDTH, HEIGHT = 1280, 720
REAL = Path(__file__).resolve().parents[1].parent / "shared" / "videos" / "real"
#: One person each, seen from about 2 m to close up; the last is square and gets black sides.
TALKING_HEADS = ("skyreels_001.mp4", "visualvoice_000.mp4", "liveportrait_012.mp4", "sadtalker_hdtf_001.mp4")
ENCODER = {"crf": "23", "preset": "veryfast"}


@dataclass(frozen=True)
class Archive:
    """Video files of one length to measure with."""

    files: list[Path]
    seconds: float  # of each
    shows: str  # in words

    def folder(self, count: int, where: Path) -> Path:
        """A folder `where` of `count` videos: the files in turn, each under a name of its own."""
        where.mkdir()
        for number, file in zip(range(count), itertools.cycle(self.files), strict=False):
            shutil.copyfile(file, where / f"{number:03}-{file.name}")
        return where


def cache() -> Path:
    """Where rendered videos stay for the next run."""
    folder = Path(tempfile.gettempdir()) / f"deepsweep-bench-{getpass.getuser()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def talking_heads(seconds: float) -> Archive:
    """One H.264 file of 1280 x 720 and `seconds` for each talking head; from the portrait where there are none."""
    sources = [REAL / name for name in TALKING_HEADS]
    if all(source.exists() for source in sources):
        files = [_cached(f"{s.stem}-{seconds:g}s.mp4", seconds, _rate(s), lambda s=s: _looped(s)) for s in sources]
        return Archive(files, seconds, f"{len(files)} genuine talking heads from shared/videos/real")
    files = [
        _cached(f"sitter{seed}-{seconds:g}s.mp4", seconds, Fraction(25), lambda s=seed: _sitter(s)) for seed in range(4)
    ]
    return Archive(files, seconds, f"{len(files)} rendered portraits (no ../shared/videos/real here)")


def make_model(folder: Path) -> Path:
    """A full-size model with random weights that calls itself trained, so that heatmaps are computed as for one."""
    import torch

    from models.network import ClipNet
    from models.registry import save_model
    from models.spec import FUSION_TERMS, ModelSpec

    torch.manual_seed(1)
    spec = ModelSpec("bench", trained=True, fusion=dict.fromkeys(FUSION_TERMS, 0.0) | {"cnn_top": 1.0})
    save_model(folder, ClipNet(spec.architecture).eval(), spec)
    return folder


def _cached(name: str, seconds: float, rate: Fraction, pictures) -> Path:
    path = cache() / name
    if not path.exists():
        half_done = path.with_suffix(".part.mp4")
        _encode(half_done, itertools.islice(pictures(), round(seconds * rate)), rate)
        half_done.replace(path)
    return path


def _encode(path: Path, pictures: Iterable[np.ndarray], rate: Fraction) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options=ENCODER)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def _rate(path: Path) -> Fraction:
    with av.open(str(path)) as container:
        return container.streams.video[0].average_rate or Fraction(25)


def _looped(path: Path) -> Iterator[np.ndarray]:
    while True:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                yield _fitted(frame.to_ndarray(format="rgb24"))


def _sitter(seed: int) -> Iterator[np.ndarray]:
    sitter = Sitter(tuple(Blink(t, 0.2) for t in range(2, 600, 4)), seed=seed + 1)
    for k in itertools.count():
        yield _fitted(sitter.picture(k / 25))


def _fitted(rgb: np.ndarray) -> np.ndarray:
    """The picture, enlarged until it fills the frame's height or width, in the middle of a black frame."""
    height, width = rgb.shape[:2]
    scale = min(WIDTH / width, HEIGHT / height)
    width, height = round(width * scale), round(height * scale)
    if scale != 1:
        rgb = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_CUBIC)
    x, y = (WIDTH - width) // 2, (HEIGHT - height) // 2
    frame = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    frame[y : y + height, x : x + width] = rgb
    return frame
