"""The inventory: from what a user typed to a stream of videos, one at a time, however many there are."""

from __future__ import annotations

import difflib
import fnmatch
import hashlib
import itertools
import os
import re
import stat
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from botocore.exceptions import ParamValidationError

from scanner.errors import EXIT_PREFLIGHT, EXIT_USAGE, UserError
from scanner.manifests import Entry, check_manifest, is_manifest, read_manifest
from scanner.names import (
    VIDEO_EXTENSIONS,
    Wanted,
    glob_match,
    glob_root,
    has_video_extension,
    is_glob,
    is_listed,
    name_filter,
)
from scanner.storage import (
    LIST,
    READ,
    S3_ERRORS,
    CredentialsFailed,
    head_object,
    raise_if_credentials_failed,
    s3_client,
    s3_code,
    s3_problem,
)
from scanner.uris import absolute, foreign_scheme, is_s3, local_path, local_uri, redacted, split_s3, utf8

__all__ = ["VIDEO_EXTENSIONS", "Video", "check_sources", "iter_videos", "local_path"]

_KINDS = "a folder, a file, a glob, s3://bucket/prefix, or a manifest (.txt .csv .jsonl .parquet)"
_HEADS_AT_ONCE = 32  # HEAD requests in flight for a manifest of S3 keys: 10 to 50 ms each, one by one takes hours


@dataclass(frozen=True)
class Video:
    """One file of the archive, or the reason why it can't be scanned.

    uri: absolute path, `file://` URI of a name that is not UTF-8, or `s3://` URI.
    content_tag: S3 ETag without quotes, or "{size}-{mtime_ns}"; "" when missing.
    error: set when something listed is not there or can't be read.
    is_listing: uri is no video, but the folder, prefix or manifest whose videos could not be listed.
    """

    uri: str
    content_tag: str
    size_bytes: int | None
    error: str | None = None
    is_listing: bool = False


def iter_videos(
    sources: Sequence[str],
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    limit: int | None = None,
) -> Iterator[Video]:
    """Every video of the sources, once, in an order that is the same in each run.

    include, exclude: fnmatch patterns ("*" crosses "/"), tried on the path below the source and on the base
    name. Folders, prefixes and globs give files with a VIDEO_EXTENSIONS name that isn't hidden; a file that
    is named, or listed in a manifest, is taken whatever it is called. Never raises for what it finds: a
    missing file, a broken manifest line, a folder that can't be read is a Video with `error`. Only credentials
    that fail meanwhile end it: CredentialsFailed.
    """
    wanted = name_filter(include, exclude)
    videos = itertools.chain.from_iterable(_videos(source, wanted) for source in sources)
    if len(sources) > 1 or any(is_manifest(source) for source in sources):
        videos = _distinct(videos)
    yield from itertools.islice(videos, limit)


def _distinct(videos: Iterable[Video]) -> Iterator[Video]:
    """8 bytes a URI: a million URIs take some 100 MB instead of 300, and collide once in 10 million runs."""
    seen: set[int] = set()
    for video in videos:
        digest = hashlib.blake2b(video.uri.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        key = int.from_bytes(digest, "big")
        if key not in seen:
            seen.add(key)
            yield video


def _videos(source: str, wanted: Wanted) -> Iterator[Video]:
    if is_s3(source):
        return _from_manifest(source, wanted) if is_manifest(source) else _from_s3(source, wanted)
    path = absolute(str(local_path(source)))
    if os.path.isdir(path):  # noqa: PTH112  text: Path costs 10x per file, and cleans up what globs need
        return _from_folder(path, wanted)
    if os.path.lexists(path):
        if is_manifest(path):
            return _from_manifest(source, wanted)
        return iter([_local_video(path)] if wanted(os.path.basename(path)) else [])  # noqa: PTH119  text
    if is_glob(path):
        return _from_glob(path, wanted)
    return iter([_local_video(path)])


# --- local files ------------------------------------------------------------------------------------------


def _local_video(path: str) -> Video:
    uri = local_uri(path)
    try:
        info = os.stat(path)  # noqa: PTH116  text
    except OSError as error:
        return Video(uri, "", None, f"could not be read: {error.strerror}")
    except ValueError:  # a NUL byte, from a manifest
        return Video(uri, "", None, "is not a file name")
    if not stat.S_ISREG(info.st_mode):
        return Video(uri, "", None, "is a folder, not a file" if stat.S_ISDIR(info.st_mode) else "is not a file")
    return Video(uri, f"{info.st_size}-{info.st_mtime_ns}", info.st_size)


def _from_folder(root: str, wanted: Wanted, descend: Wanted = lambda folder: True) -> Iterator[Video]:
    """Depth first, in byte order with "/" after folder names: the order in which S3 lists the same tree.

    Links to folders are not followed, so no loop is possible; links to files are.
    """
    pending = [""]
    while pending:
        path = pending.pop()
        if path and not path.endswith("/"):
            if wanted(path):
                yield _local_video(f"{root.rstrip('/')}/{path}")
            continue
        folder = f"{root.rstrip('/')}/{path}"
        try:
            with os.scandir(folder) as entries:
                names = [path + name for name in map(_listed_name, entries) if name]
        except OSError as error:
            why = f"folder could not be read: {error.strerror}"
            yield Video(local_uri(folder), "", None, why, is_listing=True)
            continue
        names = [name for name in names if not name.endswith("/") or descend(name)]
        pending += sorted(names, key=os.fsencode, reverse=True)


def _listed_name(entry: os.DirEntry[str]) -> str | None:
    """The name of a video, of a folder with "/" behind it, or None for what a folder scan passes over."""
    if entry.name.startswith("."):
        return None
    try:
        if entry.is_dir(follow_symlinks=False):
            return entry.name + "/"
        # A broken link to a video is listed, to end as a row that says so.
        is_file = entry.is_file() or (entry.is_symlink() and not entry.is_dir())
    except OSError:
        is_file = True
    return entry.name if is_file and has_video_extension(entry.name) else None


def _from_glob(path: str, wanted: Wanted) -> Iterator[Video]:
    root, pattern = glob_root(path)
    fixed = pattern[: pattern.index("**")] if "**" in pattern else pattern[:-1]

    def descend(folder: str) -> bool:
        names = folder.rstrip("/").split("/")
        return (len(names) <= len(fixed) or "**" in pattern) and all(map(fnmatch.fnmatchcase, names, fixed))

    def matches(file: str) -> bool:
        return glob_match(file.split("/"), pattern) and wanted(file)

    return _from_folder(root, matches, descend)


# --- S3 ---------------------------------------------------------------------------------------------------


def _from_s3(source: str, wanted: Wanted) -> Iterator[Video]:
    bucket, key = split_s3(source)
    try:
        exact, prefix = _s3_find(s3_client(), bucket, key)
        if exact:
            entries, root, pattern = iter([exact]), key[: key.rfind("/") + 1], None
        else:
            entries, root = _s3_list(bucket, prefix), prefix[: prefix.rfind("/") + 1]
            pattern = key[len(root) :].split("/") if is_glob(key) else None
        for entry in entries:
            path = entry["Key"][len(root) :]
            listed = exact or (is_listed(path) and (pattern is None or glob_match(path.split("/"), pattern)))
            if listed and wanted(path):
                yield Video(f"s3://{bucket}/{entry['Key']}", entry["ETag"].strip('"'), entry["Size"])
    except S3_ERRORS as error:
        yield replace(_unlisted(source, error, LIST), is_listing=True)


def _s3_list(bucket: str, prefix: str) -> Iterator[dict[str, Any]]:
    pages = s3_client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return itertools.chain.from_iterable(page.get("Contents", ()) for page in pages)


def _s3_find(client: Any, bucket: str, key: str) -> tuple[dict[str, Any] | None, str]:
    """What `s3://bucket/key` means: (the object of that key or None, else the prefix to list).

    `2024` is the folder `2024/` where there is one, so that `2024-old/` stays out; else any key it begins.
    """
    first = _s3_first(client, bucket, key)
    exact = first if first and first["Key"] == key and not key.endswith("/") else None
    if exact and has_video_extension(key):
        return exact, key
    if key and not key.endswith("/") and _s3_first(client, bucket, key + "/"):
        return None, key + "/"
    if is_glob(key) and not exact:
        return None, re.split(r"[*?[]", key, maxsplit=1)[0]
    return exact, key


def _s3_first(client: Any, bucket: str, prefix: str) -> dict[str, Any] | None:
    found = client.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1).get("Contents", [])
    return found[0] if found else None


def _s3_video(uri: str) -> Video:
    try:
        uri.encode("utf-8")
        head = head_object(uri)
    except UnicodeEncodeError:
        return Video(utf8(uri), "", None, "is not UTF-8, as S3 keys are")
    except S3_ERRORS as error:
        return _unlisted(uri, error, READ)
    return Video(uri, head["ETag"].strip('"'), head["ContentLength"])


def _unlisted(uri: str, error: BaseException, permission: str) -> Video:
    raise_if_credentials_failed(error, uri, permission)
    return Video(uri, "", None, s3_problem(error, uri, permission))


# --- manifests --------------------------------------------------------------------------------------------


def _from_manifest(source: str, wanted: Wanted) -> Iterator[Video]:
    folder = source if is_s3(source) else absolute(str(local_path(source)))
    folder = folder[: folder.rfind("/") + 1]

    def taken(entry: Entry) -> bool:
        if entry.error is not None:
            return True
        path = entry.uri if is_s3(entry.uri) else str(local_path(entry.uri))
        return wanted(path.removeprefix(folder))

    try:
        yield from _look_up(filter(taken, read_manifest(source)))
    except CredentialsFailed:
        raise
    except (UserError, OSError) as error:  # it was there at the preflight
        yield Video(utf8(redacted(source)), "", None, utf8(str(error)), is_listing=True)


def _look_up(entries: Iterable[Entry]) -> Iterator[Video]:
    """The videos of the entries, in their order; S3 is asked about many at a time."""
    waiting: deque[Video | Future[Video]] = deque()
    with ThreadPoolExecutor(_HEADS_AT_ONCE, thread_name_prefix="inventory") as pool:
        try:
            for entry in entries:
                if entry.error is not None:
                    waiting.append(Video(entry.uri, "", None, entry.error))
                elif is_s3(entry.uri):
                    waiting.append(pool.submit(_s3_video, entry.uri))
                else:
                    waiting.append(_local_video(str(local_path(entry.uri))))
                if len(waiting) > 2 * _HEADS_AT_ONCE:
                    yield _result(waiting.popleft())
            while waiting:
                yield _result(waiting.popleft())
        finally:
            pool.shutdown(cancel_futures=True)


def _result(video: Video | Future[Video]) -> Video:
    return video if isinstance(video, Video) else video.result()


# --- preflight --------------------------------------------------------------------------------------------


def check_sources(sources: Sequence[str]) -> None:
    """Raise UserError, one sentence and the fix, for the first source that a scan could not read.

    Exit code 2 where the command is wrong (no such path, an unknown scheme, a manifest without `uri`),
    4 where the surroundings are (no access, no credentials, no answer).
    """
    if not sources:
        raise UserError(f"Nothing to scan: name {_KINDS}.")
    for source in sources:
        if not source:
            raise UserError(f"A SOURCE is empty. Name {_KINDS}.")
        if scheme := foreign_scheme(source):
            raise UserError(f"{scheme}:// is not supported. A SOURCE is {_KINDS}.")
        if is_s3(source):
            _check_s3(source)
        else:
            _check_local(source)


def _check_local(source: str) -> None:
    path = absolute(str(local_path(source)))
    try:
        if is_glob(path) and not os.path.lexists(path):
            path = glob_root(path)[0]
        mode = os.stat(path).st_mode  # noqa: PTH116  text
        if stat.S_ISDIR(mode):
            os.scandir(path).close()
        elif not stat.S_ISREG(mode):
            raise UserError(f"{source} is not a file or a folder. A SOURCE is {_KINDS}.")
        elif is_manifest(path):
            check_manifest(source)
        else:
            Path(path).open("rb").close()
    except ValueError:
        raise UserError("A SOURCE holds a NUL character, which no path can.") from None
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{source} does not exist. {_suggestion(path)}") from None
    except OSError as error:
        fix = "Let this user read it, or leave it out."
        raise UserError(f"{source} could not be read: {error.strerror}. {fix}", EXIT_PREFLIGHT) from None


def _suggestion(path: str) -> str:
    """What may have been meant by a path that does not exist."""
    missing = Path(path)
    while not missing.parent.is_dir():
        missing = missing.parent
    try:
        names = [entry.name for entry in itertools.islice(os.scandir(missing.parent), 10_000)]
    except OSError:
        names = []
    close = difflib.get_close_matches(missing.name, names, 1)
    if close:
        return f"Did you mean {missing.parent / close[0]}?"
    return f"There is no {missing.name} in {missing.parent}: check the spelling, or mount it."


def _check_s3(source: str) -> None:
    bucket, key = split_s3(source)
    if "@" in bucket:
        raise UserError("Credentials don't belong in an s3:// URI. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.")
    if not bucket or is_glob(bucket):
        raise UserError("An S3 source is s3://bucket/prefix, with the bucket's name written out.")
    try:
        client = s3_client(patient=False)
        exact, prefix = _s3_find(client, bucket, key)
        if not exact and not _s3_first(client, bucket, prefix):
            raise UserError(f"{source} does not exist: {_s3_suggestion(client, bucket, prefix)}")
    except S3_ERRORS as error:
        usage = isinstance(error, ParamValidationError) or s3_code(error) == "NoSuchBucket"
        code = EXIT_USAGE if usage else EXIT_PREFLIGHT
        raise UserError(s3_problem(error, source, LIST), code) from None
    if is_manifest(source):
        check_manifest(source)


def _s3_suggestion(client: Any, bucket: str, prefix: str) -> str:
    parent = prefix[: prefix.rstrip("/").rfind("/") + 1]
    answer = client.list_objects_v2(Bucket=bucket, Prefix=parent, Delimiter="/", MaxKeys=1000)
    names = [item["Prefix"] for item in answer.get("CommonPrefixes", [])]
    names += [item["Key"] for item in answer.get("Contents", [])]
    close = difflib.get_close_matches(prefix, names, 1)
    return f"did you mean s3://{bucket}/{close[0]}?" if close else f"no key of {bucket} begins with it."
