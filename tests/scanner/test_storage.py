"""Storage and scratch against real files, a real S3 server over HTTP, and real processes that die."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import pickle
import random
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from boto3.session import Session
from botocore.config import Config
from hypothesis import given, settings
from hypothesis import strategies as st

from queries.catalog import open_catalog
from scanner import results as results_module
from scanner.config import ScanConfig
from scanner.errors import EXIT_PREFLIGHT, UserError
from scanner.pipeline import Sink, SplitIntoSpans, Todo, Work, _pack_batch
from scanner.records import RunFacts, Span
from scanner.results import WRITE_PATIENCE_S, Status, write_run
from scanner.scratch import FULL_WAIT_S, SLOWEST_DOWNLOAD, FetchError, Scratch, ScratchFailed, _Patience, sweep
from scanner.sources import Video
from scanner.storage import (
    arrow_filesystem,
    ensure_writable,
    get_bytes,
    list_results,
    put_bytes,
    s3_client,
)
from scanner.uris import is_s3, join, local_path, local_uri, redacted, split_s3
from scanner.watchdog import SLACK_S
from tests.s3 import BUCKET

LIMIT = 1 << 20


def put(client, key: str, data: bytes) -> tuple[str, str, int]:
    """An object, as (uri, content tag, size)."""
    tag = client.put_object(Bucket=BUCKET, Key=key, Body=data)["ETag"].strip('"')
    return f"s3://{BUCKET}/{key}", tag, len(data)


def kept(scratch: Scratch) -> int:
    """Bytes of videos in a scratch folder, whole or in part."""
    total = 0
    for file in scratch.root.iterdir():
        with contextlib.suppress(FileNotFoundError):  # removed, or no longer .part, since it was listed
            total += file.stat().st_size if file.name[0] != "." and file.suffix != ".lock" else 0
    return total


def in_namespace(mount: str, code: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run Python code with something mounted first; skips where unprivileged mounts are not allowed."""
    if not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "true"], check=False).returncode:
        pytest.skip("this machine allows no mount namespaces")
    shell = f'{mount} && exec "$0" -c "$@"'
    return subprocess.run(
        ["unshare", "-rm", "sh", "-c", shell, sys.executable, code, *args],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# --- URIs -------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=40).filter(lambda b: not {0, 47} & set(b)), min_size=1))
def test_any_file_name_survives_as_text_that_parquet_takes(parts):
    path = os.fsdecode(b"/" + b"/".join(parts))
    uri = local_uri(path)
    assert pa.array([uri], pa.string()).to_pylist() == [uri]
    assert os.fsencode(local_path(uri)) == os.fsencode(Path(path))


def test_s3_uris_are_split_and_joined():
    assert is_s3("s3://b/k") and not is_s3("/s3://b")
    assert split_s3("s3://b/a/b c#1.mp4") == ("b", "a/b c#1.mp4")
    assert split_s3("s3://b") == ("b", "")
    assert join("s3://b/r/", "runs", "1.json") == "s3://b/r/runs/1.json"
    assert join("/r", "runs", "1.json") == "/r/runs/1.json"


def test_what_is_shown_of_a_uri_holds_no_credential():
    assert redacted("https://me:pw@host/a.mp4?X-Amz-Signature=abc#f") == "https://host/a.mp4"
    assert redacted("s3://KEY:SECRET@bucket/a?b") == "s3://bucket/a?b"
    assert redacted("/a?b@c") == "/a?b@c"


# --- results ----------------------------------------------------------------------------------------------


@pytest.fixture(params=["local", "s3"])
def results(request, tmp_path):
    """A place for results that does not exist yet, in a folder and in a bucket."""
    if request.param == "s3":
        request.getfixturevalue("s3")
        return f"s3://{BUCKET}/results"
    return str(tmp_path / "deep" / "results")


def test_results_are_written_whole_read_and_listed(results):
    ensure_writable(results)
    assert list_results(results) == []
    put_bytes(join(results, "runs", "b.json"), b"1")
    put_bytes(join(results, "runs", "b.json"), b"2")
    put_bytes(join(results, "runs", "a.json"), b"3")
    put_bytes(join(results, "runs-old", "c.json"), b"4")
    put_bytes(join(results, "spans", "run_id=x", "part-0.parquet"), b"5")
    runs = [join(results, "runs", "a.json"), join(results, "runs", "b.json")]
    assert list_results(results, "runs/", ".json") == runs
    assert list_results(results, "runs/b") == runs[1:]
    assert list_results(results, "spans/", ".parquet") == [join(results, "spans", "run_id=x", "part-0.parquet")]
    assert len(list_results(results)) == 4  # no probe and no temporary file is left
    assert get_bytes(runs[1]) == b"2"
    with pytest.raises(FileNotFoundError):
        get_bytes(join(results, "runs", "none.json"))


def test_arrow_reads_what_was_put_and_the_other_way_round(results):
    filesystem, base = arrow_filesystem(results)
    table = pa.table({"x": [1, 2]})
    filesystem.create_dir(f"{base}/spans")
    pq.write_table(table, f"{base}/spans/a.parquet", filesystem=filesystem)
    put_bytes(join(results, "spans", "b.parquet"), get_bytes(join(results, "spans", "a.parquet")))
    assert pq.read_table(f"{base}/spans", filesystem=filesystem).num_rows == 4


def test_a_write_that_fails_leaves_the_old_file_and_no_part(tmp_path):
    target = tmp_path / "r"
    target.mkdir()
    code = (
        "import os, sys\nfrom scanner.storage import put_bytes\n"
        "put_bytes(sys.argv[1] + '/a', b'old')\n"
        "try: put_bytes(sys.argv[1] + '/a', bytes(1 << 20))\n"
        "except OSError: print(os.listdir(sys.argv[1]), open(sys.argv[1] + '/a').read())\n"
    )
    done = in_namespace(f"mount -t tmpfs -o size=64k none {target}", code, str(target))
    assert done.stdout == "['a'] old\n", done.stderr


def test_results_that_are_a_file_or_lie_below_one(tmp_path):
    (tmp_path / "f").write_bytes(b"")
    for path in (tmp_path / "f", tmp_path / "f" / "r"):
        with pytest.raises(UserError, match="is a file"):
            ensure_writable(str(path))


def test_results_in_a_read_only_folder(tmp_path):
    code = (
        "import sys\nfrom scanner.errors import UserError\nfrom scanner.storage import ensure_writable\n"
        "try: ensure_writable(sys.argv[1])\nexcept UserError as error: print(error.exit_code, error)\n"
    )
    done = in_namespace(f"mount -t tmpfs -o ro none {tmp_path}", code, str(tmp_path))
    assert done.stdout.startswith(f"{EXIT_PREFLIGHT} {tmp_path} can't be written to: Read-only"), done.stderr


def test_a_folder_that_may_not_be_read_is_told_instead_of_left_out(tmp_path):
    run = tmp_path / "results" / "spans" / "run_id=1"
    run.mkdir(parents=True)
    (run / "part.parquet").write_bytes(b"")
    (tmp_path / "results" / "runs").mkdir()
    (tmp_path / "results" / "runs" / "1.json").symlink_to("nowhere")
    code = (
        "import sys\nfrom pathlib import Path\nfrom queries.catalog import list_files, read_documents\n"
        "from cluster.preflight import free_bytes\nfrom scanner.errors import UserError\n"
        "from scanner.storage import list_results\n"
        "def told(function, *args):\n"
        "    try: return function(*args)\n"
        "    except UserError as error: return error\n"
        "print(told(list_results, sys.argv[1], 'spans/'))\n"
        "print(told(list_files, sys.argv[2]))\n"
        "print(told(read_documents, [f'{sys.argv[1]}/runs/1.json']))\n"
        "print(free_bytes(Path(sys.argv[2])))\n"
    )
    run.chmod(0)
    command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    if command and not shutil.which("setpriv"):
        pytest.skip("root reads everything, and setpriv is not there to take that from it")
    done = subprocess.run(
        [*command, sys.executable, "-c", code, f"{tmp_path}/results", f"{run}/below"],
        capture_output=True,
        text=True,
        check=False,
    )
    run.chmod(0o700)
    listing, files, record, free = done.stdout.splitlines()
    assert listing == f"{run} can't be read: Permission denied. Mend that.", done.stderr
    assert files.startswith("There are no results at") and free == "None"
    assert record == f"{tmp_path}/results/runs/1.json can't be read: No such file or directory. Mend that."


def test_a_run_record_is_readable_json_whatever_the_archive_is_called(tmp_path):
    """DuckDB refused the whole view for one record with half of a surrogate pair in it."""
    settings = {"sources": ["/archive/caf\udce9", "/archive/日本"]}
    write_run(str(tmp_path), {"run_id": "run-1", "settings": settings})
    # as versions before wrote it: left out, and alone
    put_bytes(f"{tmp_path}/runs/run-2.json", json.dumps({"run_id": "run-2", "settings": settings}).encode())
    with contextlib.closing(open_catalog(str(tmp_path))) as catalog:
        found = catalog.execute(
            "SELECT run_id, settings ->> '$.sources[0]', settings ->> '$.sources[1]' FROM runs"
        ).fetchall()
    assert found == [("run-1", r"/archive/caf\udce9", "/archive/日本")]


def test_waiting_for_a_download_takes_its_size_into_account():
    assert (
        _Patience("s3://b/a", 1 << 40, None).wait_s
        > _Patience("s3://b/a", 0, None).wait_s + (1 << 40) / SLOWEST_DOWNLOAD - 1
    )


@pytest.mark.parametrize("out", ["results", "./r", "/tmp/r", "s3://bucket/r"])
def test_actors_know_where_results_are_whatever_folder_they_run_in(tmp_path, out):
    config = ScanConfig(out=out)
    where = Work.of(config, RunFacts.of(config), Scratch(tmp_path, LIMIT)).results
    assert where == (out if out.startswith("s3:") else str(Path(out).absolute()))


def test_results_in_a_bucket_that_is_not_there(s3):
    with pytest.raises(UserError, match="there is no bucket nowhere"):
        ensure_writable("s3://nowhere/r")


def test_results_with_a_secret_in_the_uri_or_an_unknown_scheme():
    for uri in ("s3://KEY:SECRET@b/r", "gs://me:SECRET@b/r", "s3://"):
        with pytest.raises(UserError) as caught:
            ensure_writable(uri)
        assert "SECRET" not in str(caught.value)


@pytest.fixture
def impatient(proxy, monkeypatch) -> Sink:
    """A Sink into a bucket, through a client that repeats nothing itself; pauses are short."""
    settings = {"retries": {"total_max_attempts": 1}, "request_checksum_calculation": "when_required"}
    client = Session().client("s3", config=Config(s3={"addressing_style": "path"}, **settings))
    monkeypatch.setattr("scanner.storage.s3_client", lambda: client)
    monkeypatch.setattr(results_module, "WRITE_PAUSES_S", (0.02, 0.1))
    facts = RunFacts.of(ScanConfig())
    return Sink(SimpleNamespace(results=f"s3://{BUCKET}/results", run=facts))  # all of Work that it needs


ROW = _pack_batch([Span("a.mp4", "", 1).failed(Status.DECODE_ERROR, "damaged")])


@pytest.mark.parametrize("fault", ["503 SlowDown", "500 InternalError", "429 TooManyRequests", "drop"])
def test_a_row_outlasts_a_server_that_is_busy_or_away(proxy, impatient, monkeypatch, fault):
    faults = iter([fault] * 4)
    monkeypatch.setattr(proxy, "next_fault", lambda method, path: next(faults, ""))
    impatient(ROW)
    assert [method for method, _ in proxy.requests] == ["PUT"] * 5
    assert len(list_results(f"s3://{BUCKET}/results", "spans/", ".parquet")) == 1


@pytest.mark.parametrize("refusal", ["403 AccessDenied", "400 ExpiredToken", "507 XMinioStorageFull"])
def test_a_row_that_is_refused_ends_the_scan_at_once(proxy, impatient, refusal):
    proxy.refusal = refusal
    with pytest.raises(UserError, match=refusal[4:]) as caught:
        impatient(ROW)
    assert caught.value.exit_code == EXIT_PREFLIGHT and len(proxy.requests) == 1


def test_a_row_does_not_wait_for_ever_and_the_record_of_a_beat_not_at_all(proxy, impatient, monkeypatch):
    proxy.refusal = "503 SlowDown"
    monkeypatch.setattr("scanner.pipeline.WRITE_PATIENCE_S", 0.3)
    with pytest.raises(UserError, match="SlowDown"):
        impatient(ROW)
    tries = len(proxy.requests)
    assert tries > 1
    with pytest.raises(UserError, match="SlowDown"):
        results_module.write_run(f"s3://{BUCKET}/results", {"run_id": "a"})
    assert len(proxy.requests) == tries + 1


def test_what_is_waited_for_is_less_than_the_watchdog_grants():
    assert max(WRITE_PATIENCE_S, FULL_WAIT_S) < SLACK_S


# --- scratch ----------------------------------------------------------------------------------------------


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
