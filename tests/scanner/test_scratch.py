"""Scratch folders against real files, a real S3 server over HTTP, and real processes that die."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from scanner.config import ScanConfig
from scanner.errors import EXIT_PREFLIGHT
from scanner.pipeline import SplitIntoSpans, Todo, Work
from scanner.records import RunFacts
from scanner.results import Status
from scanner.scratch import SLOWEST_DOWNLOAD, FetchError, Scratch, ScratchFailed, _Patience, sweep
from scanner.sources import Video
from scanner.storage import (
    s3_client,
)
from tests.namespaces import in_namespace
from tests.s3 import BUCKET, put

LIMIT = 1 << 20


def kept(scratch: Scratch) -> int:
    """Bytes of videos in a scratch folder, whole or in part."""
    total = 0
    for file in scratch.root.iterdir():
        with contextlib.suppress(FileNotFoundError):  # removed, or no longer .part, since it was listed
            total += file.stat().st_size if file.name[0] != "." and file.suffix != ".lock" else 0
    return total


def test_a_local_video_is_used_where_it_is(tmp_path):
    video = tmp_path / "a.mp4"
    video.write_bytes(b"abc")
    tag = f"3-{video.stat().st_mtime_ns}"
    scratch = Scratch(tmp_path / "scratch", LIMIT)
    with scratch.fetch(str(video), tag, 3) as path:
        assert path == video
    assert not scratch.root.exists()
    with pytest.raises(FetchError, match="changed during the scan"), scratch.fetch(str(video), "4-1", 4):
        pass
    with pytest.raises(FetchError) as caught, scratch.fetch(str(tmp_path / "none.mp4"), "", None):
        pass
    assert caught.value.status is Status.MISSING
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.status, str(copy)) == (caught.value.status, str(caught.value))


def test_an_object_is_fetched_once_and_let_go(proxy, s3, tmp_path):
    uri, tag, size = put(s3, "dir/a.MP4", b"x" * 1000)
    scratch = pickle.loads(pickle.dumps(Scratch(tmp_path / "run", LIMIT)))
    for known_size in (size, None, size):
        with scratch.fetch(uri, tag, known_size) as path:
            assert path.read_bytes() == b"x" * 1000 and path.suffix == ".mp4"
            scratch.release(uri, tag)  # in use: stays
            assert path.exists()
    assert proxy.gets("a.MP4") == 1
    scratch.release(uri, tag)
    assert kept(scratch) == 0
    scratch.close()
    scratch.close()
    assert not scratch.root.exists()


def test_two_processes_of_a_node_fetch_a_video_once(proxy, s3, tmp_path):
    uri, tag, size = put(s3, "a.mp4", b"x" * 300_000)
    proxy.faults.append("stall")
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    scratch = Scratch(tmp_path / "run", LIMIT)
    children = [context.Process(target=_fetch, args=(scratch, uri, tag, size, queue)) for _ in range(2)]
    for child in children:
        child.start()
    assert [queue.get(timeout=60) for _ in children] == ["begun", "begun"]
    assert proxy.stalled.wait(60)
    proxy.go_on.set()
    assert [queue.get(timeout=60) for _ in children] == [300_000, 300_000]
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    assert proxy.gets("a.mp4") == 1
    assert not scratch.root.exists()  # the last one to close removed it


def _fetch(scratch, uri, tag, size, queue):
    queue.put("begun")
    with scratch.fetch(uri, tag, size) as path:
        queue.put(path.stat().st_size)
    scratch.close()


def test_a_killed_download_is_swept_and_does_not_block_the_living(proxy, s3, tmp_path):
    uri, tag, size = put(s3, "a.mp4", b"x" * 300_000)
    scratch = Scratch(tmp_path / "base" / "run", 400_000)
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()

    def kill_one() -> None:
        proxy.stalled.clear()
        proxy.faults.append("stall")
        child = context.Process(target=_fetch, args=(scratch, uri, tag, size, queue))
        child.start()
        assert proxy.stalled.wait(60)
        child.kill()
        child.join(60)
        assert [file.name for file in scratch.root.glob("*.part")]

    kill_one()
    with scratch.fetch(*put(s3, "b.mp4", b"y" * 200_000)) as path:  # needs the space of the dead one
        assert path.stat().st_size == 200_000
        assert kept(scratch) == 200_000
    with scratch.fetch(uri, tag, size) as path:
        assert path.stat().st_size == size
        sweep(tmp_path / "base")
        assert path.exists()  # a living process holds the run's folder
    scratch.release(uri, tag)
    kill_one()
    assert scratch._run_lock is not None
    os.close(scratch._run_lock)  # as if this process had been killed as well
    (tmp_path / "base" / "not ours").mkdir()
    sweep(tmp_path / "base")
    assert [folder.name for folder in (tmp_path / "base").iterdir()] == ["not ours"]
    sweep(tmp_path / "nowhere")


def test_the_first_fetch_of_a_run_sweeps_what_dead_runs_left_on_this_node(s3, tmp_path):
    video = put(s3, "a.mp4", b"x" * 1000)
    dead, live, new = (Scratch(tmp_path / name, LIMIT) for name in ("dead", "live", "new"))
    for scratch in (dead, live):
        with scratch.fetch(*video):
            pass
    assert dead._run_lock is not None
    os.close(dead._run_lock)  # as if its process had been killed
    (tmp_path / "not ours").mkdir()
    with new.fetch(*video):
        assert sorted(folder.name for folder in tmp_path.iterdir()) == ["live", "new", "not ours"]
    assert kept(live) == 1000


def test_least_recently_used_files_make_room(s3, tmp_path):
    a, b, c, d = (put(s3, f"{name}.mp4", name.encode() * 100) for name in "abcd")
    scratch = Scratch(tmp_path / "run", 250)
    with scratch.fetch(*a) as first:
        with scratch.fetch(*b) as second:
            pass
        with scratch.fetch(*c) as third:
            assert first.exists() and not second.exists()  # the older one is in use
            asked = iter([False, False, True])
            with pytest.raises(FetchError) as caught, scratch.fetch(*d, cancelled=lambda: next(asked)):
                pass
            assert caught.value.status is Status.TIMEOUT
    with scratch.fetch(*b):
        assert first.exists() and not third.exists()  # `third` was let go first
        assert kept(scratch) <= 250
    with pytest.raises(FetchError) as caught, scratch.fetch(*put(s3, "big.mp4", bytes(251))):
        pass
    assert caught.value.status is Status.TOO_LARGE


def test_many_users_of_little_space_see_whole_files(s3, tmp_path):
    videos = [put(s3, f"{number}.mp4", bytes([number]) * 100) for number in range(8)]
    scratch = Scratch(tmp_path / "run", 450)  # four users and one file at rest: eviction all the time

    def use(user: int) -> int:
        order = random.Random(user).choices(range(8), k=30)
        for number in order:
            with scratch.fetch(*videos[number]) as path:
                assert path.read_bytes() == bytes([number]) * 100
                assert kept(scratch) <= 450
            if number % 3 == 0:
                scratch.release(*videos[number][:2])
        return len(order)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(use, range(4))) == [30] * 4
    scratch.close()
    assert not scratch.root.exists()


@pytest.mark.parametrize("faults", [["503 SlowDown"], ["reset"], ["truncate"], ["reset", "503 SlowDown", "truncate"]])
def test_a_bad_connection_is_taken_up_again(proxy, s3, tmp_path, faults):
    data = os.urandom(5 << 20)
    proxy.faults.extend(faults)
    with Scratch(tmp_path / "run", 10 << 20).fetch(*put(s3, "a.mp4", data)) as path:
        assert path.read_bytes() == data
    assert proxy.gets("a.mp4") == len(faults) + 1


def test_a_connection_that_never_holds_ends_as_a_missing_video(proxy, s3, tmp_path, monkeypatch):
    monkeypatch.setattr("scanner.scratch._BACKOFF_S", 0.001)
    proxy.faults.extend(["reset"] * 20)
    scratch = Scratch(tmp_path / "run", LIMIT)
    with pytest.raises(FetchError, match="connection broke") as caught, scratch.fetch(*put(s3, "a.mp4", b"x" * 100)):
        pass
    assert caught.value.status is Status.MISSING
    assert kept(scratch) == 0


def test_gone_denied_and_changed_objects(proxy, s3, tmp_path):
    scratch = Scratch(tmp_path / "run", LIMIT)
    uri, tag, size = put(s3, "a.mp4", b"old")
    put(s3, "a.mp4", b"new")

    def error(*video) -> str:
        with pytest.raises(FetchError) as caught, scratch.fetch(*video):
            pass
        assert caught.value.status is Status.MISSING
        return str(caught.value)

    assert "changed during the scan" in error(uri, tag, size)
    assert "changed during the scan" in error(uri, "", 4)
    assert "does not exist" in error(f"s3://{BUCKET}/none.mp4", tag, size)
    assert "there is no bucket nowhere" in error("s3://nowhere/none.mp4", tag, size)
    proxy.faults.append("403 AccessDenied")
    assert error(*put(s3, "b.mp4", b"x")).endswith(f"AccessDenied. deepsweep needs s3:GetObject on {BUCKET}.")
    proxy.faults.append("403 InvalidObjectState")
    assert "cold storage" in error(*put(s3, "c.mp4", b"x"))
    assert [file.name for file in scratch.root.iterdir() if file.name[0] != "."] == []


def test_an_empty_object_is_a_file(s3, tmp_path):
    with Scratch(tmp_path / "run", LIMIT).fetch(*put(s3, "a.mp4", b"")) as path:
        assert path.stat().st_size == 0


def test_no_answer_from_the_server_is_a_missing_video(s3, tmp_path, monkeypatch):
    video = put(s3, "a.mp4", b"x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3_client.cache_clear()
    monkeypatch.setattr("scanner.scratch.s3_client", lambda: s3_client(patient=False))
    scratch = Scratch(tmp_path / "run", LIMIT)
    with pytest.raises(FetchError, match=r"127\.0\.0\.1:1 did not answer"), scratch.fetch(*video):
        pass


FETCH = """
import os, subprocess, sys, threading
from pathlib import Path
from scanner import scratch
scratch._FULL_PAUSE_S = 0.05
folder, videos = Path(sys.argv[2]), [sys.argv[n : n + 3] for n in range(3, len(sys.argv), 3)]
room = scratch.Scratch(folder / "run", 1 << 30, float(sys.argv[1]))

def fetch(uri, tag, size):
    try:
        with room.fetch(uri, tag, int(size)) as path:
            print("fetched", path.stat().st_size)
    except scratch.ScratchFailed as error:
        print(error.exit_code, error)
"""


@pytest.mark.parametrize("wait_s", ["0.5", "0"])  # a scan's node, and a command that somebody waits for
def test_a_disk_that_stays_full_ends_the_scan_and_leaves_no_part(s3, tmp_path, wait_s):
    video = put(s3, "a.mp4", os.urandom(1 << 20))
    code = FETCH + "fetch(*videos[0])\nprint([n for n in os.listdir(folder / 'run') if n[0] != '.'])\n"
    done = in_namespace(f"mount -t tmpfs -o size=256k none {tmp_path}", code, wait_s, str(tmp_path), *map(str, video))
    assert done.stdout.startswith(f"{EXIT_PREFLIGHT} {tmp_path}/run on "), done.stderr
    assert "no space left" in done.stdout and done.stdout.endswith("[]\n")


def test_a_full_disk_is_waited_for(s3, tmp_path):
    video = put(s3, "a.mp4", os.urandom(1 << 20))
    code = FETCH + (
        "grow = ['mount', '-o', 'remount,size=4m', str(folder)]\n"
        "threading.Timer(1, subprocess.run, [grow]).start()\nfetch(*videos[0])\n"
    )
    done = in_namespace(f"mount -t tmpfs -o size=256k none {tmp_path}", code, "30", str(tmp_path), *map(str, video))
    assert done.stdout == f"fetched {1 << 20}\n", done.stderr


def test_on_a_full_disk_what_nobody_uses_makes_room(s3, tmp_path):
    videos = [str(part) for name in "ab" for part in put(s3, name, os.urandom(1 << 20))]
    code = FETCH + "for video in videos:\n    fetch(*video)\n"
    done = in_namespace(f"mount -t tmpfs -o size=1536k none {tmp_path}", code, "30", str(tmp_path), *videos)
    assert done.stdout == f"fetched {1 << 20}\n" * 2, done.stderr


def test_a_folder_that_can_not_be_written_to_ends_the_scan_and_is_held_against_no_video(s3, tmp_path):
    video = Video(*put(s3, "a.mp4", b"x"))
    code = FETCH + "fetch(*videos[0])\n"
    where = map(str, (tmp_path, video.uri, video.content_tag, video.size_bytes))
    done = in_namespace(f"mount -t tmpfs -o ro none {tmp_path}", code, "30", *where)
    assert done.stdout.startswith(f"{EXIT_PREFLIGHT} {tmp_path}/run on "), done.stderr
    assert "Read-only file system. Mend that, or choose another folder: --scratch for a scan" in done.stdout
    (tmp_path / "file").touch()
    config = ScanConfig()
    split = SplitIntoSpans(Work.of(config, RunFacts.of(config), Scratch(tmp_path / "file" / "run", LIMIT)))
    with pytest.raises(ScratchFailed, match="Not a directory") as caught:
        split.left(Todo(video))
    with pytest.raises(ScratchFailed):
        raise pickle.loads(pickle.dumps(caught.value))  # as it comes from a worker
    split.guard.close()


def test_waiting_for_a_download_takes_its_size_into_account():
    large, empty = (_Patience("s3://b/a", size, None).wait_s for size in (1 << 40, 0))
    assert large - empty == pytest.approx((1 << 40) / SLOWEST_DOWNLOAD)
