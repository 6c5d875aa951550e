"""Scratch: a bucket's videos as files on this node, fetched once, shared by its processes, within a limit.

A run's folder holds, per object, `NAME` (the file), `NAME.part` (a download under way, already at its full
length so that its space counts) and `NAME.lock`. Whoever uses a file holds its lock shared, whoever writes or
removes it holds it alone. The kernel drops the locks of a process that dies, so what a dead one left is known
by its free lock: no process ids, no time-outs.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import platform
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from botocore.exceptions import BotoCoreError

from scanner.errors import EXIT_PREFLIGHT, UserError
from scanner.names import has_video_extension
from scanner.results import Status
from scanner.storage import READ, S3_ERRORS, head_object, raise_if_credentials_failed, s3_client, s3_problem
from scanner.uris import is_s3, local_path, split_s3

_RUN_LOCK = ".deepsweep-lock"
_SPACE_LOCK = ".deepsweep-space"  # held for milliseconds, to count and to change what counts
_TURN_LOCK = ".deepsweep-turn"  # held by the one who waits for space: a stream of small files can't overtake it
_POLL_S = 0.1  # flock has no time-out, so waiting is asking again
_WAIT_S = 3600.0  # the longest wait for space, and with a download of its size for another process's: nothing may hang
SLOWEST_DOWNLOAD = 4 << 20  # bytes/s: a line on which the largest video of the archive still comes in time
_FULL = (errno.ENOSPC, errno.EDQUOT)
FULL_WAIT_S = 600.0  # of a scan, for others to make room on a full disk: ends before the watchdog's patience does
_FULL_PAUSE_S = 5.0  # between looks at a full disk
_CHUNK = 1 << 20  # bytes read from the network at a time
_TRIES = 6  # bodies broken in a row with less than a chunk gained; the client itself retries requests
_BACKOFF_S = 0.5  # first pause between tries; doubles, with jitter, up to 16 s

Cancelled = Callable[[], bool]

_opening = threading.Lock()


class FetchError(Exception):
    """A video that could not be had. `str(error)` says why, `status` is what its row gets."""

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status = status

    def __reduce__(self):
        return type(self), (self.status, str(self))


class ScratchFailed(UserError):
    """This node has nowhere to put videos, which says nothing of the video that was asked for."""


class Scratch:
    """A run's scratch folder on one node; any number of processes may open the same one.

    root: the run's own folder, made when missing. limit_bytes: for all its files together.
    full_wait_s: the longest wait for others to make room on a full disk; none where somebody waits for an answer.
    Picklable: a copy in another process opens the folder there on first use.
    """

    def __init__(self, root: Path, limit_bytes: int, full_wait_s: float = FULL_WAIT_S) -> None:
        self.root = Path(root)
        self.limit_bytes = limit_bytes
        self.full_wait_s = full_wait_s
        self._run_lock: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_run_lock": None}

    @contextmanager
    def fetch(
        self, uri: str, content_tag: str, size_bytes: int | None, cancelled: Cancelled | None = None
    ) -> Iterator[Path]:
        """A local path of the video, good until the block ends. A local video is its own path.

        content_tag, size_bytes: as inventoried; a video that is another one by now is refused.
        cancelled: asked often while waiting or downloading; true ends the fetch with status TIMEOUT.
        Raises FetchError: MISSING (gone, denied, changed, unreachable), TOO_LARGE, TIMEOUT; or CredentialsFailed,
        or ScratchFailed where the folder can't be written to, or the disk stays full.
        """
        if not is_s3(uri):
            yield _local_file(uri, content_tag)
            return
        lock = self._fetched(uri, content_tag, size_bytes, _Patience(uri, size_bytes, cancelled))
        try:
            yield self._path(uri, content_tag)
        finally:
            now = time.time_ns()  # when it was last used, finer than the kernel's own stamp
            with contextlib.suppress(OSError):  # gone, or the disk can't be written to by now: it was read all the same
                os.utime(self._path(uri, content_tag), ns=(now, now))
            os.close(lock)

    def release(self, uri: str, content_tag: str) -> None:
        """Remove the file of a video that is not needed again, unless someone still uses it."""
        if is_s3(uri):
            self._remove(self._path(uri, content_tag))

    def close(self) -> None:
        """Leave the run's folder; the last one to leave removes it. May be called twice."""
        if self._run_lock is not None:
            os.close(self._run_lock)
            self._run_lock = None
            _remove_if_dead(self.root)

    # --- the run's folder ---

    def _open(self) -> None:
        """Hold the run's lock shared, so that no sweep takes the folder for a dead run's; sweep those beside it."""
        with _opening:
            if self._run_lock is not None:
                return
            while self._run_lock is None:
                self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
                with contextlib.suppress(FileNotFoundError):  # swept between the two lines
                    self._run_lock = _lock(self.root / _RUN_LOCK, fcntl.LOCK_SH)
            sweep(self.root.parent)  # the driver's own sweeps see its node alone

    def _unusable(self, why: str | None) -> ScratchFailed:
        fix = "Mend that, or choose another folder: --scratch for a scan, TMPDIR for other commands"
        return ScratchFailed(f"{self.root} on {platform.node()} can't take videos: {why}. {fix}.", EXIT_PREFLIGHT)

    def _path(self, uri: str, content_tag: str) -> Path:
        """Where the file lies. It keeps its extension, which some container formats are recognised by."""
        digest = hashlib.sha256(f"{uri}\0{content_tag}".encode("utf-8", "surrogatepass")).hexdigest()[:32]
        return self.root / (digest + (PurePosixPath(uri).suffix.lower() if has_video_extension(uri) else ""))

    # --- one file ---

    def _fetched(self, uri: str, content_tag: str, size_bytes: int | None, patience: _Patience) -> int:
        """As _locked_file; on a full disk it is tried again, for others may make room."""
        end = None
        while True:
            try:
                self._open()
                return self._locked_file(uri, content_tag, size_bytes, patience)
            except OSError as error:
                if error.errno not in _FULL:
                    raise self._unusable(error.strerror) from None
            with contextlib.suppress(OSError), _held(self.root / _SPACE_LOCK):
                self._make_room(self.limit_bytes)  # which lets go of all that nobody uses
            if end is None:
                end = time.monotonic() + self.full_wait_s
            else:
                self._wait_for_disk(size_bytes or 0, end, patience)

    def _locked_file(self, uri: str, content_tag: str, size_bytes: int | None, patience: _Patience) -> int:
        """Have the file there, downloaded by this process or another one; returns a shared lock on it."""
        path = self._path(uri, content_tag)
        while True:
            try:
                lock = _lock(_lock_path(path), fcntl.LOCK_SH | fcntl.LOCK_NB)
                if path.exists():
                    return lock
                os.close(lock)
                lock = _lock(_lock_path(path), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                patience.wait("another process to fetch it")
                continue
            try:
                if not path.exists():
                    self._download(uri, content_tag, size_bytes, path, patience)
            except BaseException:
                _lock_path(path).unlink(missing_ok=True)
                raise
            finally:
                # Turning this lock into a shared one would let go of it for a moment, in which the file may
                # be evicted: so begin again.
                os.close(lock)

    def _download(self, uri: str, content_tag: str, size_bytes: int | None, path: Path, patience: _Patience) -> None:
        part = path.with_name(path.name + ".part")
        try:
            size = size_bytes if size_bytes is not None else _size_of(uri, content_tag)
            self._reserve(uri, part, size, patience)
            _copy(uri, content_tag, part, size, patience)
            with _held(self.root / _SPACE_LOCK):  # or a count between the two names would miss the file
                part.rename(path)
        except S3_ERRORS as error:  # some of which are OSErrors too
            raise_if_credentials_failed(error, uri, READ)
            raise FetchError(Status.MISSING, s3_problem(error, uri, READ)) from None
        except OSError as error:
            if error.errno != errno.EFBIG:
                raise
            raise FetchError(Status.TOO_LARGE, f"{uri} is too large for the file system of {self.root}") from None
        finally:
            part.unlink(missing_ok=True)

    # --- space ---

    def _wait_for_disk(self, size: int, end: float, patience: _Patience) -> None:
        """Wait until a file of this size may fit on the disk."""
        free = -1
        while free < size:
            if time.monotonic() > end:
                waited = f", for {self.full_wait_s / 60:.0f} minutes now" if self.full_wait_s else ""
                raise self._unusable(f"no space left{waited}")
            patience.pause(_FULL_PAUSE_S * random.uniform(0.5, 1))
            free = size  # where that can't be told, as of quotas, trying tells
            with contextlib.suppress(OSError):
                free = shutil.disk_usage(self.root).free

    def _reserve(self, uri: str, part: Path, size: int, patience: _Patience) -> None:
        """Make part a file of its final length, once that fits below the limit; evicts what nobody uses."""
        if size > self.limit_bytes:
            sizes = f"{size / 1e9:.2f} GB, scratch space {self.limit_bytes / 1e9:.2f} GB"
            raise FetchError(Status.TOO_LARGE, f"{uri} is too large for this node: it has {sizes} (--scratch-size)")
        while True:
            with contextlib.suppress(BlockingIOError), _held(self.root / _TURN_LOCK, fcntl.LOCK_NB):
                while not self._reserved(part, size):
                    patience.wait("scratch space that other videos use")
                return
            patience.wait("scratch space that other videos wait for")

    def _reserved(self, part: Path, size: int) -> bool:
        with _held(self.root / _SPACE_LOCK):
            if not self._make_room(size):
                return False
            with part.open("wb") as file:
                file.truncate(size)
            return True

    def _make_room(self, size: int) -> bool:
        files = []
        for entry in os.scandir(self.root):
            if not entry.name.endswith(".lock") and not entry.name.startswith("."):
                with contextlib.suppress(FileNotFoundError):
                    info = entry.stat()
                    files.append((info.st_mtime_ns, info.st_size, self.root / entry.name))
        used = sum(file[1] for file in files)
        for _, length, path in sorted(files):
            if used + size <= self.limit_bytes:
                break
            if self._remove(path):
                used -= length
        return used + size <= self.limit_bytes

    def _remove(self, path: Path) -> bool:
        """Remove a file, or what a dead process left of one; False when it is in use."""
        path = path.with_name(path.name.removesuffix(".part"))
        try:
            with _held(_lock_path(path), fcntl.LOCK_NB):
                path.unlink(missing_ok=True)
                path.with_name(path.name + ".part").unlink(missing_ok=True)
                _lock_path(path).unlink(missing_ok=True)
                return True
        except (BlockingIOError, FileNotFoundError):
            return False


def sweep(base: Path) -> None:
    """Remove the runs' folders below base that no living process has open; touches nothing else in base."""
    with contextlib.suppress(OSError):  # not there, or not ours to list
        for entry in list(os.scandir(base)):
            if entry.is_dir(follow_symlinks=False):
                _remove_if_dead(Path(entry.path))


def _remove_if_dead(run: Path) -> None:
    lock_path = run / _RUN_LOCK
    if not lock_path.exists():  # not one of ours
        return
    # OSError: in use, gone meanwhile, another user's, or read-only by now; the next sweep will try again.
    with contextlib.suppress(OSError), _held(lock_path, fcntl.LOCK_NB):
        doomed = run if run.name.endswith(".dead") else run.with_name(f"{run.name}.{os.getpid()}.dead")
        run.rename(doomed)  # at once, so that nobody opens a folder that is half removed
        shutil.rmtree(doomed, ignore_errors=True)


class _Patience:
    """What a fetch may wait for, and how long."""

    def __init__(self, uri: str, size_bytes: int | None, cancelled: Cancelled | None) -> None:
        self.uri = uri
        self.cancelled = cancelled
        self.wait_s = _WAIT_S + (size_bytes or 0) / SLOWEST_DOWNLOAD
        self.end = time.monotonic() + self.wait_s

    def check(self) -> None:
        if self.cancelled is not None and self.cancelled():
            raise FetchError(Status.TIMEOUT, f"{self.uri} could not be fetched in time")

    def wait(self, what: str) -> None:
        self.check()
        if time.monotonic() > self.end:
            raise FetchError(Status.TIMEOUT, f"{self.uri}: waited {self.wait_s / 60:.0f} minutes for {what}")
        time.sleep(_POLL_S)

    def pause(self, seconds: float) -> None:
        """Sleep, but notice a cancellation."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.check()
            time.sleep(min(left, _POLL_S))


def _lock(path: Path, operation: int) -> int:
    """A file descriptor that holds the flock; BlockingIOError when LOCK_NB and it is taken.

    A lock file that was removed while we waited for it guards nothing any more: then try the new one.
    """
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(handle, operation)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), path.stat()):
                    return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


@contextmanager
def _held(path: Path, flags: int = 0) -> Iterator[None]:
    """Hold a lock alone."""
    handle = _lock(path, fcntl.LOCK_EX | flags)
    try:
        yield
    finally:
        os.close(handle)


def _lock_path(path: Path) -> Path:
    return path.with_name(path.name + ".lock")


# --- what is fetched --------------------------------------------------------------------------------------


def _local_file(uri: str, content_tag: str) -> Path:
    path = local_path(uri)
    try:
        with path.open("rb") as file:
            info = os.fstat(file.fileno())
    except OSError as error:
        raise FetchError(Status.MISSING, f"{uri} could not be read: {error.strerror}") from None
    if content_tag and content_tag != f"{info.st_size}-{info.st_mtime_ns}":
        raise FetchError(Status.MISSING, f"{uri} changed during the scan")
    return path


def _size_of(uri: str, content_tag: str) -> int:
    return head_object(uri, **_same(content_tag))["ContentLength"]


def _same(content_tag: str) -> dict[str, str]:
    return {"IfMatch": f'"{content_tag}"'} if content_tag else {}


def _copy(uri: str, content_tag: str, part: Path, size: int, patience: _Patience) -> None:
    """Fill part with the object. A connection that breaks is taken up again where it broke."""
    done = tries = 0
    with part.open("r+b") as file:
        while True:
            body = _open_body(uri, content_tag, done, size)
            before = done
            try:
                while chunk := body.read(_CHUNK):  # raises when the body ends before its length
                    patience.check()
                    file.write(chunk)
                    done += len(chunk)
                return
            except BotoCoreError:
                tries = 1 if done - before >= _CHUNK else tries + 1
                if tries >= _TRIES:
                    raise
            finally:
                body.close()
            patience.pause(random.uniform(0.5, 1) * min(16, _BACKOFF_S * 2**tries))


def _open_body(uri: str, content_tag: str, start: int, size: int) -> Any:
    """The object from byte start on. Raises FetchError unless it is the object that was inventoried."""
    bucket, key = split_s3(uri)
    ranged = {"Range": f"bytes={start}-"} if start else {}
    answer = s3_client().get_object(Bucket=bucket, Key=key, **_same(content_tag), **ranged)
    # A server that knows no If-Match still says what it sends.
    changed = content_tag and answer.get("ETag", "").strip('"') != content_tag
    if changed or answer["ContentLength"] != size - start:
        answer["Body"].close()
        raise FetchError(Status.MISSING, f"{uri} changed during the scan")
    return answer["Body"]
