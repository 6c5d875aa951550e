"""Labelled files: which videos and pictures of a data set are real or fake, by the layout it came in."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from scanner.errors import UserError
from scanner.labellists import inner_path, is_plain_name, read_csv, read_json, stays_inside, word
from scanner.names import has_video_extension
from scanner.uris import is_s3

IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff"})  # lower case, without the dot
MANIFEST = "manifest.csv"
DFDC_METADATA = "metadata.json"
LABELS = ("real", "fake")

_COMPRESSIONS = ("raw", "c0", "c23", "c40")  # FaceForensics++; `masks` lies beside them and is no video of a face


@dataclass(frozen=True)
class Labelled:
    """One video or picture of known truth; whether it is there and readable is another matter."""

    uri: str  # "<name of the folder>/<path below it>": the same on every machine
    path: str  # where it lies here
    kind: Literal["video", "image"]
    label: Literal["real", "fake"]
    method: str | None  # how it was manipulated, where that is known; None for real ones
    source: str
    group: str  # recordings and people that belong together
    identities: tuple[str, ...] = ()  # everybody in it, where the layout's names tell: `join_groups` goes by them


def find_labelled(folder: str, layout: str | None = None) -> list[Labelled]:
    """Everything that is labelled in a data set, in an order that is the same on every machine.

    folder: a data set's root, or a manifest with another name than manifest.csv.
    layout: one of LAYOUTS; None takes what `detect_layout` finds.
    Raises UserError, one sentence and the fix, for a layout that is not there or does not hold what it should.
    """
    data = _open(folder)
    name = layout or _detect(data)
    if name not in LAYOUTS:
        raise UserError(f"There is no layout {name!r}. There are: {', '.join(LAYOUTS)}.")
    return join_groups(LAYOUTS[name].find(data))


def detect_layout(folder: str) -> str:
    """The name of the first of LAYOUTS whose mark the folder bears. Raises UserError where none fits."""
    return _detect(_open(folder))


def describe(found: Sequence[Labelled], layout: str) -> str:
    """What was found, in one line: "186 real and 87 fake videos of 30 sources; layout: manifest"."""
    counts = Counter((item.kind, item.label) for item in found)
    kinds = [kind for kind in ("video", "image") if counts[kind, "real"] or counts[kind, "fake"]]
    parts = [f"{counts[kind, 'real']:,} real and {counts[kind, 'fake']:,} fake {kind}s" for kind in kinds]
    sources = len({item.source for item in found})
    of = f" of {sources:,} source{'' if sources == 1 else 's'}" if found else ""
    return f"{', '.join(parts) or 'nothing'}{of}; layout: {layout}"


def join_groups(items: Sequence[Labelled]) -> list[Labelled]:
    """The same items, where all that share a person, directly or through others, have one group.

    A fake shows its target's recording with its source's face, so it ties the two together: groups are the
    connected components of identities, each named after its first one.
    """
    leader: dict[str, str] = {}

    def lead(name: str) -> str:
        while leader.setdefault(name, name) != name:
            leader[name] = name = leader[leader[name]]
        return name

    for item in items:
        for other in item.identities[1:]:
            first, second = sorted((lead(item.identities[0]), lead(other)))
            leader[second] = first
    return [replace(item, group=lead(item.identities[0])) if item.identities else item for item in items]


# --- folders ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Data:
    """A data set's root, and what its uris begin with."""

    root: Path
    name: str
    manifest: str = MANIFEST

    def item(
        self, relative: str, label: str, source: str = "", *, method: str | None = None, group: str = "", people=()
    ) -> Labelled:
        uri = f"{self.name}/{relative}"
        uri = os.fsencode(uri).decode("utf-8", "backslashreplace")  # Parquet holds UTF-8, file names any bytes
        return Labelled(
            uri=uri,
            path=str(self.root / relative),
            kind="image" if _extension(relative) in IMAGE_EXTENSIONS else "video",
            label="fake" if label == "fake" else "real",
            method=method if label == "fake" else None,
            source=source or self.name,
            group=group or uri,
            identities=tuple(people),
        )

    def media(self, below: str = ".") -> Iterator[str]:
        """Paths, relative to the root, of the videos and pictures below a folder of it, sorted.

        Hidden names are passed over; links to files are followed, links to folders are not, as in a scan.
        """

        def fail(error: OSError) -> None:
            raise UserError(f"{error.filename} could not be read: {error.strerror}.")

        for folder, folders, files in os.walk(self.root / below, onerror=fail):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(files):
                if not name.startswith(".") and (has_video_extension(name) or _extension(name) in IMAGE_EXTENSIONS):
                    yield (Path(folder) / name).relative_to(self.root).as_posix()

    def folders(self, below: str = ".") -> list[str]:
        """Names of the folders directly in a folder of it, sorted; [] where that is not there."""
        where = self.root / below
        if not where.is_dir():
            return []
        try:
            return sorted(path.name for path in where.iterdir() if path.is_dir() and not path.name.startswith("."))
        except OSError as error:
            raise UserError(f"{where} could not be read: {error.strerror}.") from None


def _open(folder: str) -> _Data:
    if is_s3(folder):
        raise UserError(f"{folder}: labelled data are read from a local folder. Copy them first (`aws s3 sync`).")
    if not folder or "\0" in folder:
        raise UserError("DATA must be the path of a folder.")
    root = Path(os.path.abspath(folder))  # noqa: PTH100  Path.absolute keeps "..", resolve would rename a link
    if root.is_file() and root.suffix.lower() == ".csv":
        return _Data(root.parent, root.parent.name or "data", root.name)
    if not root.is_dir():
        raise UserError(f"{folder} is not a folder. DATA is the root of a data set, or a manifest (.csv).")
    return _Data(root, root.name or "data")


def _extension(name: str) -> str:
    return name.rpartition(".")[2].lower() if "." in name else ""


def _detect(data: _Data) -> str:
    for name, layout in LAYOUTS.items():
        if layout.bears(data):
            return name
    marks = "; ".join(f"{name}: {layout.mark}" for name, layout in LAYOUTS.items())
    raise UserError(f"{data.root} has none of the layouts that prepare knows ({marks}). Write a manifest.csv for it.")


# --- manifest.csv -----------------------------------------------------------------------------------------


def _manifest(data: _Data) -> list[Labelled]:
    seen: dict[str, tuple[int, Labelled]] = {}
    inside: dict[str, bool] = {}
    for line, row in read_csv(data.root / data.manifest):
        where = f"{data.manifest}, line {line}"
        relative = inner_path(row["file"], where)
        parent = os.path.dirname(relative)  # noqa: PTH120  text, and once a line
        if parent not in inside:
            inside[parent] = stays_inside(data.root, parent)
        if not inside[parent]:
            raise UserError(
                f"{where}: {relative[:200]} leads out of the folder through a link. Give that folder as DATA."
            )
        label = row["label"].lower()
        if label not in LABELS:
            raise UserError(f"{where}: the label must be real or fake, not {row['label'][:40]!r}.")
        source, method, group = (word(row.get(column, ""), column, where) for column in ("source", "method", "group"))
        item = data.item(relative, label, source, method=method or None, group=group)
        before, known = seen.setdefault(item.uri, (line, item))
        if known != item:
            raise UserError(f"{where}: {relative[:200]} stands in line {before} already, with other values. Keep one.")
    return [item for _, item in seen.values()]


# --- FaceForensics++, with Google's DeepFakeDetection in it -----------------------------------------------


def _faceforensics(data: _Data) -> list[Labelled]:
    found = []
    for label, top in (("real", "original_sequences"), ("fake", "manipulated_sequences")):
        for method in data.folders(top):
            for compression in _COMPRESSIONS:
                videos = f"{top}/{method}/{compression}/videos"
                if (data.root / videos).is_dir():
                    found += [_faceforensics_item(data, path, label, method) for path in data.media(videos)]
    return found


def _faceforensics_item(data: _Data, path: str, label: str, method: str) -> Labelled:
    # 000_003.mp4 is the recording 000 with the face of 003; 01_02__scene__X.mp4 the actor 01 with that of 02.
    stem = PurePosixPath(path).stem
    actors = method in ("actors", "DeepFakeDetection")
    source = "faceforensics-actors" if actors else "faceforensics"
    ids = (stem.split("__")[0] if actors else stem).split("_")
    people = [f"{source}:{name}" for name in (ids if all(map(str.isdigit, ids)) else [stem])]
    return data.item(path, label, source, method=method, people=people)


# --- Celeb-DF v1 and v2 -----------------------------------------------------------------------------------


def _celeb_df(data: _Data) -> list[Labelled]:
    found = []
    for folder, label in (("Celeb-real", "real"), ("YouTube-real", "real"), ("Celeb-synthesis", "fake")):
        for path in data.media(folder) if (data.root / folder).is_dir() else ():
            stem = PurePosixPath(path).stem
            if folder == "YouTube-real":
                source, people = "celeb-df-youtube", [f"celeb-df-youtube:{stem}"]
            else:  # id0_0000.mp4, and id0_id1_0000.mp4 where the face of id1 was put on id0
                source, people = "celeb-df", [f"celeb-df:{name}" for name in re.findall(r"id\d+", stem) or [stem]]
            found.append(data.item(path, label, source, method="celeb-synthesis", people=people))
    return found


# --- DFDC -------------------------------------------------------------------------------------------------


def _dfdc(data: _Data) -> list[Labelled]:
    return [item for metadata in _dfdc_metadata(data) for item in _dfdc_part(data, metadata)]


def _dfdc_metadata(data: _Data) -> list[Path]:
    # The parts' archives unpack to dfdc_train_part_0, or to a folder of that name in another.
    patterns = (DFDC_METADATA, f"*/{DFDC_METADATA}", f"*/*/{DFDC_METADATA}")
    return [path for pattern in patterns for path in sorted(data.root.glob(pattern))]


def _dfdc_part(data: _Data, metadata: Path) -> Iterator[Labelled]:
    entries, folder = read_json(metadata), metadata.parent.relative_to(data.root)
    for name, facts in sorted(entries.items()):
        original = (facts.get("original") or None) if isinstance(facts, dict) else None
        if not is_plain_name(name) or not (original is None or is_plain_name(original)):
            raise UserError(f"{metadata}: {name[:200]!r} is, or has for its original, not the plain name of a file.")
        label = str(facts.get("label")).lower() if isinstance(facts, dict) else ""
        if label not in LABELS:
            raise UserError(
                f"{metadata}: {name[:200]} has no label REAL or FAKE. If this is not DFDC, name its --layout."
            )
        recording = original if label == "fake" and original else name
        people = [f"dfdc:{PurePosixPath(recording).stem}"]
        yield data.item((folder / name).as_posix(), label, "dfdc", method="dfdc", people=people)


# --- DeeperForensics-1.0 ----------------------------------------------------------------------------------


def _deeperforensics(data: _Data) -> list[Labelled]:
    source, found = "deeperforensics", []
    for person in data.folders("source_videos"):
        people = [f"{source}:{person}"]
        found += [data.item(path, "real", source, people=people) for path in data.media(f"source_videos/{person}")]
    for method in data.folders("manipulated_videos"):
        for path in data.media(f"manipulated_videos/{method}"):
            # 000_W021.mp4: FaceForensics++'s recording 000 with the face of actor W021.
            target, _, actor = PurePosixPath(path).stem.partition("_")
            people = [f"faceforensics:{target}", f"{source}:{actor}"] if actor else [f"{source}:{target}"]
            found.append(data.item(path, "fake", source, method=method, people=people))
    return found


# --- real/ and fake/ --------------------------------------------------------------------------------------


def _folders(data: _Data) -> list[Labelled]:
    found = []
    for folder in data.folders():
        if folder.lower() in LABELS:
            for path in data.media(folder):
                parts = PurePosixPath(path).parts
                found.append(data.item(path, folder.lower(), parts[1] if len(parts) > 2 else ""))
    return found


# --- the layouts, in the order in which they are tried ----------------------------------------------------


class _Layout(NamedTuple):
    mark: str  # in words
    bears: Callable[[_Data], bool]
    find: Callable[[_Data], list[Labelled]]


def _has_one_of(*names: str) -> Callable[[_Data], bool]:
    return lambda data: any((data.root / name).is_dir() for name in names)


#: A manifest is somebody's word on this very data, so it comes first; many a data set has some metadata.json, so DFDC's
#: comes last.
LAYOUTS: dict[str, _Layout] = {
    "manifest": _Layout("manifest.csv", lambda data: (data.root / data.manifest).is_file(), _manifest),
    "faceforensics": _Layout(
        "original_sequences/ or manipulated_sequences/",
        _has_one_of("original_sequences", "manipulated_sequences"),
        _faceforensics,
    ),
    "celeb-df": _Layout(
        "Celeb-real/, Celeb-synthesis/ or YouTube-real/",
        _has_one_of("Celeb-real", "Celeb-synthesis", "YouTube-real"),
        _celeb_df,
    ),
    "deeperforensics": _Layout(
        "manipulated_videos/ or source_videos/", _has_one_of("manipulated_videos", "source_videos"), _deeperforensics
    ),
    "folders": _Layout("real/ or fake/", lambda data: any(name.lower() in LABELS for name in data.folders()), _folders),
    "dfdc": _Layout("metadata.json, also in subfolders", lambda data: bool(_dfdc_metadata(data)), _dfdc),
}
