"""Storage and results against real files, a real S3 server over HTTP, and a server that fails."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
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
from scanner.pipeline import Sink, Work, _pack_batch
from scanner.records import RunFacts, Span
from scanner.results import WRITE_PATIENCE_S, Status, write_run
from scanner.scratch import FULL_WAIT_S, Scratch
from scanner.storage import (
    arrow_filesystem,
    ensure_writable,
    get_bytes,
    list_results,
    put_bytes,
)
from scanner.uris import is_s3, join, local_path, local_uri, redacted, split_s3
from scanner.watchdog import SLACK_S
from tests.namespaces import in_namespace
from tests.s3 import BUCKET

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


@pytest.mark.parametrize("out", ["results", "./r", "/tmp/r", "s3://bucket/r"])
def test_actors_know_where_results_are_whatever_folder_they_run_in(tmp_path, out):
    config = ScanConfig(out=out)
    where = Work.of(config, RunFacts.of(config), Scratch(tmp_path, 1)).results
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
