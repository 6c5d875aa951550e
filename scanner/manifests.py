"""Manifests: lists of URIs in .txt, .csv, .jsonl or .parquet, read line by line, where no line is lost."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import posixpath
import tempfile
from collections.abc import Iterator
from typing import IO, NamedTuple

from scanner.errors import EXIT_PREFLIGHT, UserError
from scanner.storage import READ, S3_ERRORS, s3_client, s3_problem
from scanner.uris import absolute, foreign_scheme, is_s3, local_path, local_uri, redacted, split_s3, utf8

MANIFEST_EXTENSIONS = (".txt", ".csv", ".jsonl", ".parquet")

_MAX_LINE = 1 << 20  # characters; a longer "line" is no URI, and must not fill the memory
_LOOK_AHEAD = 100  # lines of a .jsonl that are tried before it is called something else
_CREDENTIALS_IN_URI = "credentials don't belong in a URI: use the AWS variables"


class Entry(NamedTuple):
    """One line of a manifest. uri: absolute, or `manifest:line` where the line names none."""

    uri: str
    error: str | None = None


def is_manifest(source: str) -> bool:
    return source.lower().endswith(MANIFEST_EXTENSIONS)


def read_manifest(source: str) -> Iterator[Entry]:
    """Every line of a manifest, in order; comments and blank lines of a .txt aside.

    A manifest on S3 is fetched first: a connection would not survive the hours that a scan reads from it.
    Raises UserError when it can't be opened or has no `uri` column.
    """
    path = source if is_s3(source) else absolute(str(local_path(source)))
    shown, folder = (source if is_s3(source) else local_uri(path)), posixpath.dirname(path)
    with _open(source) as file:
        for line, uri, error in _READERS[_suffix(source)](file, source):
            if uri:
                yield resolve(uri, folder)
            else:
                yield Entry(f"{shown}:{line}", f"line {line} of the manifest {error}")


def check_manifest(source: str) -> None:
    """Raise UserError, with the fix, when the manifest can't be opened, parsed, or has no `uri` column."""
    with _open(source) as file:
        next(_READERS[_suffix(source)](file, source), None)


def resolve(text: str, folder: str) -> Entry:
    """What a manifest line names. folder: where the manifest lies, for relative lines; a path or `s3://...`."""
    try:
        return _resolve(text, folder)
    except ValueError as error:  # of a NUL, or of half a surrogate pair, which JSON can spell
        return _refused(text, f"can't be the name of a file: {error}")


def _refused(text: str, why: str) -> Entry:
    return Entry(utf8(redacted(text)), utf8(why))


def _resolve(text: str, folder: str) -> Entry:
    if is_s3(text):
        bucket, key = split_s3(text)
        if "@" in bucket:
            return _refused(text, _CREDENTIALS_IN_URI)
        return Entry(text) if bucket and key else _refused(text, "a manifest lists files, not buckets")
    if scheme := foreign_scheme(text):
        return _refused(text, f"{scheme}:// is not supported: deepsweep reads local files and s3://")
    if text.startswith("file://"):
        return Entry(local_uri(absolute(str(local_path(text)))))
    if is_s3(folder) and not text.startswith("/"):
        bucket, base = split_s3(folder)
        return Entry(f"s3://{bucket}/{posixpath.normpath(posixpath.join(base, text))}")
    return Entry(local_uri(absolute(os.path.join(folder, text))))  # noqa: PTH118  Path() would refuse nothing more


def _suffix(source: str) -> str:
    return posixpath.splitext(source)[1].lower()


def _open(source: str) -> IO[bytes]:
    if not is_s3(source):
        try:
            return local_path(source).open("rb")
        except OSError as error:
            raise UserError(f"{source} could not be read: {error.strerror}.", EXIT_PREFLIGHT) from None
    bucket, key = split_s3(source)
    file = tempfile.TemporaryFile()  # noqa: SIM115  returned, and closed by the caller's `with`
    try:
        s3_client().download_fileobj(bucket, key, file)
        file.seek(0)
        return file
    except BaseException as error:
        file.close()
        if isinstance(error, S3_ERRORS):
            raise UserError(s3_problem(error, source, READ), EXIT_PREFLIGHT) from None
        raise


# Each reader yields (line, uri, error): uri is None where the line is broken. Bytes that are not UTF-8 pass
# through as surrogates, because `find > list.txt` writes file names as they are.


def _text(file: IO[bytes], source: str, newline: str | None = None) -> io.TextIOWrapper:
    start = file.read(4096)
    file.seek(0)
    if b"\0" in start:
        raise UserError(f"{source} is not a text file in UTF-8. Save it as UTF-8.")
    return io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline=newline)


def _lines(text: io.TextIOWrapper) -> Iterator[str]:
    return iter(lambda: text.readline(_MAX_LINE), "")


Row = tuple[int, str | None, str]


def _read_txt(file: IO[bytes], source: str) -> Iterator[Row]:
    for number, line in enumerate(_lines(_text(file, source)), 1):
        uri = line.strip()
        if len(line) >= _MAX_LINE:
            yield number, None, "is too long"
        elif uri and not uri.startswith("#"):
            yield number, uri, ""


def _read_csv(file: IO[bytes], source: str) -> Iterator[Row]:
    lines = _lines(_text(file, source, newline=""))
    header = next(lines, "")
    for delimiter in ",;\t":  # spreadsheets write ; or tabs in half of the world
        names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter), [])]
        if "uri" in names:
            break
    else:
        raise UserError(f"{source} has no column `uri`. Name it so in the first line.")
    column = names.index("uri")
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield rows.line_num + 1, None, f"is not CSV: {error}"
            continue
        uri = row[column].strip() if len(row) > column else ""
        if row:
            yield rows.line_num + 1, uri or None, "has no uri"


def _read_jsonl(file: IO[bytes], source: str) -> Iterator[Row]:
    rows = (_json_row(number, line) for number, line in enumerate(_lines(_text(file, source)), 1) if line.strip())
    first = list(itertools.islice(rows, _LOOK_AHEAD))
    if first and not any(uri for _, uri, _ in first):
        raise UserError(f'{source} has no `uri` in its lines. Write one {{"uri": "..."}} per line.')
    yield from itertools.chain(first, rows)


def _json_row(number: int, line: str) -> Row:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return number, None, "is not JSON"
    uri = value.get("uri") if isinstance(value, dict) else None
    return number, (uri.strip() or None) if isinstance(uri, str) else None, "has no uri"


def _read_parquet(file: IO[bytes], source: str) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file)
        kinds = {field.name: field.type for field in table.schema_arrow}
    except (pa.ArrowException, OSError):
        raise UserError(f"{source} could not be parsed as Parquet.") from None
    kind = kinds.get("uri", pa.null())
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise UserError(f"{source} has no text column `uri`. Name it so.")
    number = 0
    try:
        for batch in table.iter_batches(batch_size=4096, columns=["uri"]):
            for uri in batch.column(0).to_pylist():
                number += 1
                yield number, (uri or "").strip() or None, "has no uri"
    except (pa.ArrowException, OSError, UnicodeDecodeError):
        yield number + 1, None, "and those after it could not be read: the Parquet file is damaged"


_READERS = {".txt": _read_txt, ".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
