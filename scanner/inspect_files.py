"""The folder that `deepsweep inspect` writes: which files it holds, and whose it may replace."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from queries.text import UNSAFE, escape_controls
from scanner.errors import EXIT_PREFLIGHT, UserError
from scanner.inspect import Inspection
from scanner.inspect_plots import ear_curve, motion_curve, png, score_curve
from scanner.storage import ensure_writable, put_bytes
from scanner.uris import foreign_scheme, is_s3

VERDICT = "verdict.json"
OVERLAY = "overlay.mp4"
PLOTS = ("ear.png", "score.png", "motion.png")
PICTURES = "gradcam"
_PICTURE = re.compile(r"\d{2,}_face-\d+-\d+_\d+\.\d{2}s_(crop|heat)\.jpg")
MOST_PICTURES = 50  # a scan keeps some of every minute
MAX_STEM = 80  # characters: of four bytes at most, within the 255 bytes of a file name


def default_folder(source: str) -> str:
    """`talk.inspect` for a/talk.mp4 or s3://bucket/talk.mp4, in the current folder."""
    stem = PurePosixPath(source.rstrip("/")).stem
    return UNSAFE.sub("_", stem)[:MAX_STEM] + ".inspect"


@contextmanager
def writable_folder(out: str, uri: str, force: bool) -> Iterator[Path]:
    """The folder for the inspection of a video, made where it is missing, and gone again if it stays empty.

    An earlier inspection of the same video is replaced, anything else is left alone: UserError, unless `force`.
    """
    if is_s3(out) or foreign_scheme(out):
        raise UserError(f"The files are written to this machine, not to {out.split('://')[0]}://: give --out a folder.")
    folder = Path(out)
    if folder.is_dir() and not force:
        _refuse_others(folder, uri)
    ensure_writable(out)
    try:
        yield folder
    finally:
        with suppress(OSError):
            folder.rmdir()


def write_files(folder: Path, found: Inspection, *, overlay: bool = False) -> list[str]:
    """Write everything but the overlay video, verdict.json last; what an earlier inspection left is removed.

    overlay: whether this inspection wrote an overlay video; else there is none, or one of another.
    Returns the names of all files there are now, in the order in which people look at them. Raises UserError.
    """
    files = {**_plots(found), **_pictures(found)}
    try:
        for old in _own_files(folder):
            if not (overlay and old.name == OVERLAY) and str(old.relative_to(folder)) not in files:
                old.unlink()
        for name, data in files.items():
            put_bytes(str(folder / name), data)
        text = json.dumps(found.verdict(), indent=1, allow_nan=False, ensure_ascii=False)
        put_bytes(str(folder / VERDICT), (text + "\n").encode("utf-8", "replace"))
    except OSError as error:
        raise UserError(f"{folder} could not be written: {error.strerror or error}.", EXIT_PREFLIGHT) from None
    return [VERDICT, *files]


def _plots(found: Inspection) -> dict[str, bytes]:
    if not found.faces.num_rows:
        return {}
    ear = ear_curve(found.signals, found.faces)
    motion = motion_curve(found.motion, found.faces)
    if not found.moments():
        return {"ear.png": png(ear), "motion.png": png(motion)}
    score = score_curve(found.frames, found.clips, found.faces, found.thresholds)
    return dict(zip(PLOTS, map(png, (ear, score, motion)), strict=True))


def _pictures(found: Inspection) -> dict[str, bytes]:
    files = {}
    for number, picture in enumerate(found.thumbnails.slice(0, MOST_PICTURES).to_pylist(), 1):
        name = f"{PICTURES}/{number:02}_face-{picture['face_id']}_{picture['t']:.2f}s"
        files[f"{name}_crop.jpg"] = picture["image"]
        if picture["heatmap"] is not None:
            files[f"{name}_heat.jpg"] = picture["heatmap"]
    return files


def _own_files(folder: Path) -> list[Path]:
    """What an earlier inspection left."""
    own = [folder / name for name in (VERDICT, OVERLAY, *PLOTS)]
    pictures = folder / PICTURES
    if pictures.is_dir():
        own += [path for path in pictures.iterdir() if _PICTURE.fullmatch(path.name)]
    return [path for path in own if path.is_file()]


def _refuse_others(folder: Path, uri: str) -> None:
    own = set(_own_files(folder))
    others = sorted(path for path in folder.rglob("*") if not path.is_dir() and path not in own)
    if others:
        name = escape_controls(str(others[0].relative_to(folder)))
        raise UserError(f"{folder} holds other files ({name}): name a new folder with --out, or add --force.")
    with suppress(OSError, ValueError, TypeError, KeyError):
        if (earlier := json.loads((folder / VERDICT).read_bytes())["uri"]) != uri:
            raise UserError(f"{folder} holds the inspection of {earlier}: name another with --out, or add --force.")
