"""URIs: what the text that names a file means, and how it may be shown."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import quote_from_bytes, unquote_to_bytes


def is_s3(uri: str) -> bool:
    return uri.startswith("s3://")


def split_s3(uri: str) -> tuple[str, str]:
    """(bucket, key) of `s3://bucket/key`; the key is "" for a whole bucket."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def local_uri(path: str) -> str:
    """An absolute path as the text that rows hold.

    Parquet holds UTF-8 only, file names hold any bytes: a name that is not UTF-8 becomes `file://` and
    percent-encoded bytes. An absolute path begins with "/", so the two can't be mistaken for each other.
    """
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return "file://" + quote_from_bytes(os.fsencode(path))
    return path


def local_path(uri: str) -> Path:
    """The file behind a local URI: a path, or `file://` and percent-encoded bytes."""
    if uri.startswith("file://"):
        return Path(os.fsdecode(unquote_to_bytes(uri.removeprefix("file://").removeprefix("localhost"))))
    return Path(uri)


def utf8(text: str) -> str:
    """The text as UTF-8 can hold it: what is none becomes \\xNN or \\uNNNN."""
    return text.encode("utf-8", "backslashreplace").decode()


def absolute(path: str) -> str:
    """An absolute path without "." and "..". Links are followed only where ".." depends on them."""
    return os.path.realpath(path) if ".." in Path(path).parts else str(Path(path).absolute())


def foreign_scheme(source: str) -> str | None:
    """The scheme of a URI that deepsweep can't read (`https`, `gs`), or None."""
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", source)
    return None if match is None or match[1] in ("s3", "file") else match[1]


def redacted(uri: str) -> str:
    """The URI as it may be shown and stored: without user, password, and the signature of a presigned URL."""
    if is_s3(uri):
        bucket, key = split_s3(uri)
        return uri if "@" not in bucket else f"s3://{bucket.rpartition('@')[2]}/{key}"
    if foreign_scheme(uri) is None:
        return uri
    scheme, _, rest = re.split(r"[?#]", uri, maxsplit=1)[0].partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def join(base: str, *parts: str) -> str:
    """`base/part/...`, for S3 and local folders alike."""
    return "/".join([base.rstrip("/"), *parts]) if is_s3(base) else str(local_path(base).joinpath(*parts))
