"""PREP on disk: which files are done in it, what a new run replaces or relabels, and the parts it writes."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from models.prepared import SCHEMA_VERSION, TRACK, TRACKS
from scanner.errors import EXIT_PREFLIGHT, UserError
from scanner.extract import File
from scanner.results import FAILED
from scanner.storage import ensure_writable, put_bytes
from scanner.uris import is_s3

LABELS = ("label", "method", "source", "group")  # what a data set says of a file, and may say otherwise next time


@contextlib.contextmanager
def locked(out: str) -> Iterator[Path]:
    """PREP as a folder that can be written, for this process alone. Raises UserError."""
    if is_s3(out):
        raise UserError(f"{out}: prepared data are kept in a local folder, where training reads them many times.")
    ensure_writable(out)
    prep = Path(out).absolute()
    (prep / TRACKS).mkdir(exist_ok=True)
    with (prep / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another `deepsweep prepare` is writing to {out}. Wait for its end.") from None
        except OSError:  # some network file systems have no locks: then the user takes care
            pass
        yield prep


def remaining(prep: Path, files: Mapping[str, File], *, retry_failed: bool) -> list[File]:
    """The files that PREP does not hold yet as they are now. retry_failed: those that failed don't count."""
    failed = {status.value for status in FAILED} if retry_failed else set()
    done = set()
    for part in _parts(prep):
        for row in _rows(part):
            if _is_of(row, files.get(row["uri"])) and row["status"] not in failed:
                done.add(row["uri"])
    return [file for uri, file in files.items() if uri not in done]


def settle(prep: Path, files: Mapping[str, File], todo: Sequence[File]) -> None:
    """Drop the rows of files that are about to be prepared again, and correct labels that have changed.

    Before the work and not after it: whatever is interrupted when, no file is there twice, and what was
    dropped is prepared by the next run.
    """
    again = {file.item.uri for file in todo}
    for part in _parts(prep):
        rows = _rows(part)
        keep = [row["uri"] not in again for row in rows]
        labels = [_labels(row, files.get(row["uri"])) for row in rows]
        if all(keep) and all(row[name] == new[name] for row, new in zip(rows, labels, strict=True) for name in LABELS):
            continue
        if not any(keep):
            part.unlink()
            continue
        table = pq.ParquetFile(part).read()
        for name in LABELS:
            values = pa.array([new[name] for new in labels], pa.string())
            table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), values)
        put_bytes(str(part), _parquet(table.filter(pa.array(keep))))


def part_name(files: Sequence[File]) -> str:
    """A name made from the files inside, so that a repeated write replaces the first one."""
    keys = sorted(f"{file.item.uri}\0{file.content_tag}" for file in files)
    return f"part-{hashlib.sha256(chr(10).join(keys).encode()).hexdigest()[:24]}.parquet"


def part_bytes(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Rows of models.prepared.TRACK as one Parquet file."""
    return _parquet(pa.Table.from_pylist([dict(row) for row in rows], schema=TRACK))


def write_part(prep: Path, name: str, data: bytes) -> None:
    """Add a part to PREP: whole or not at all."""
    put_bytes(str(prep / TRACKS / name), data)


@dataclass
class Totals:
    """What PREP holds."""

    files: Counter[str] = field(default_factory=Counter)  # by status
    faces: Counter[str] = field(default_factory=Counter)  # tracks by label
    crops: Counter[str] = field(default_factory=Counter)  # by label
    size_bytes: int = 0


def totals(prep: Path) -> Totals:
    """Count what PREP holds: what is told is what is on disk."""
    found, seen = Totals(), set()
    for part in _parts(prep):
        found.size_bytes += part.stat().st_size
        for row in _rows(part, "t"):
            if row["uri"] not in seen:
                seen.add(row["uri"])
                found.files[row["status"]] += 1
            if row["t"]:
                found.faces[row["label"]] += 1
                found.crops[row["label"]] += len(row["t"])
    return found


def _parts(prep: Path) -> list[Path]:
    return sorted(path for path in (prep / TRACKS).glob("*.parquet") if not path.name.startswith("."))


def _rows(part: Path, *more: str) -> list[dict[str, Any]]:
    columns = ["schema_version", "uri", "content_tag", "status", *LABELS, *more]
    try:
        return pq.ParquetFile(part).read(columns=columns).select(columns).to_pylist()
    except (pa.ArrowException, OSError, KeyError):
        raise UserError(
            f"{part} could not be read as prepared data. Remove it: the next run prepares again what was in it.",
            EXIT_PREFLIGHT,
        ) from None


def _is_of(row: Mapping[str, Any], file: File | None) -> bool:
    """Whether a row shows the file as it is now."""
    same_format = row["schema_version"] == SCHEMA_VERSION
    return file is not None and same_format and row["content_tag"] == file.content_tag


def _labels(row: Mapping[str, Any], file: File | None) -> Mapping[str, Any]:
    """What the columns LABELS of a row should hold: the data set's word where it is at hand, else their own."""
    return row if file is None else {name: getattr(file.item, name) for name in LABELS}


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", use_dictionary=False)  # crops are all different, and compressed
    return sink.getvalue().to_pybytes()
