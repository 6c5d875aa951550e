"""A cluster that is there: scans submitted, found again, followed, refused; workers that come when asked for."""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from ray.job_submission import JobStatus

from cluster import jobs
from cluster.entrypoint import Workers, job_command
from cluster.jobs import Jobs, without_webhook
from scanner.cli import main
from scanner.config import ScanConfig
from scanner.errors import EXIT_PREFLIGHT, UserError
from tests.cluster.autoscaling import Head, autoscaling_cluster
from tests.scans import ROOT, TIMEOUT_S, deepsweep, environment, videos
from tests.zoo import ARCHIVE

pytestmark = pytest.mark.ray

VIDEO = ARCHIVE / "formats" / "vp9.webm"


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with autoscaling_cluster(worker_cpus=2, workers=2) as head:
        yield head


def at(head: Head, *arguments: object, **extra: str):
    """Run `deepsweep cluster ...` against the head, as from another machine that has the token."""
    name, *rest = map(str, arguments)
    return deepsweep("cluster", name, "--dashboard", head.dashboard, *rest, **{**head.environment, **extra})


def python(head: Head, code: str) -> subprocess.CompletedProcess[str]:
    """Run a line of code in a process that has the head's token."""
    preface = "import cluster.jobs; from cluster.jobs import Jobs; from scanner.cli import main; "
    return subprocess.run(
        [sys.executable, "-c", preface + code],
        env=environment(**head.environment),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def test_a_submitted_scan_calls_its_workers_and_is_found_again(head, tmp_path):
    empty = at(head, "status")
    assert empty.returncode == 0 and "No scan was submitted yet" in empty.stdout, empty.stderr
    assert re.search(r"head +\S+ +0 CPUs", empty.stdout) and "worker" not in empty.stdout
    too_soon = deepsweep("scan", VIDEO, "--out", tmp_path, "--address", head.address, "--dry-run", **head.environment)
    assert (too_soon.returncode, "`deepsweep cluster submit --cpus N" in too_soon.stderr) == (4, True), too_soon.stderr

    out = tmp_path / "it's $HOME"  # a name that a careless shell would change
    secret = {"ARCHIVE_REGION": "eu", "AWS_SECRET_ACCESS_KEY": "never-to-travel"}
    submitted = at(head, "submit", "--env", "ARCHIVE_REGION", "--", VIDEO, "--out", out, **secret)
    assert submitted.returncode == 0, submitted.stderr
    (job,) = re.findall(r"Submitted (deepsweep-\S+)\.", submitted.stdout)

    followed = at(head, "logs", job, "--follow")
    assert followed.returncode == 0, followed.stdout + followed.stderr
    assert "2 CPUs and 0 GPUs are there." in followed.stdout
    assert "1 videos (1 ok)" in followed.stdout and f"{job}: done" in followed.stdout
    assert videos(out)["vp9.webm"]["status"] == "ok"
    (record,) = out.glob("runs/*.json")
    plan = json.loads(record.read_text())["plan"]
    assert (plan["analyzers"], plan["most_analyzers"]) == (2, 4), "it may grow onto the second worker"

    overview = at(head, "status")
    assert re.search(r"worker +\S+ +2 CPUs", overview.stdout), "the autoscaler started one"
    assert re.search(rf"{job} .* done +deepsweep scan", overview.stdout)
    one = json.loads(at(head, "status", job, "--json").stdout)
    assert (one["state"], one["exit_code"], one["over"]) == ("done", 0, True)
    assert "1 videos (1 ok)" in at(head, "logs").stdout, "without a name: the latest"

    facts = python(head, f"print(Jobs({head.dashboard!r})._client.get_job_info({job!r}).model_dump_json())").stdout
    assert json.loads(facts)["runtime_env"]["env_vars"] == {"ARCHIVE_REGION": "eu"}
    assert "never-to-travel" not in facts


def test_a_scan_from_outside_runs_on_the_cluster_and_reports_here(head, tmp_path):
    """Needs the worker that the test above has called."""
    address = f"ray://127.0.0.1:{head.client}"
    broken = ARCHIVE / "broken" / "empty.mp4"
    scan = deepsweep("scan", VIDEO, broken, "--out", tmp_path, "--address", address, **head.environment)
    assert scan.returncode == 3, scan.stdout + scan.stderr
    assert "2 videos (1 decode_error, 1 ok)" in scan.stdout
    assert videos(tmp_path)["vp9.webm"]["status"] == "ok"


GROWS = """
import sys, time
from cluster.connect import attach, disconnect, _rooms
from cluster.plan import plan_for
from cluster.growth import rooms_at_most
from cluster.entrypoint import Workers
from cluster.workers import wait_for_workers

wait_for_workers(Workers(cpus=2), sys.argv[1])
attach(sys.argv[1])
import ray, ray.data
from scanner.scan import set_up_ray_data
set_up_ray_data()
plan = plan_for(_rooms(), 0, 3 << 30, rooms_at_most())
print(plan.analyzers, plan.most_analyzers, flush=True)

class Work:
    def __call__(self, row):
        time.sleep(1)
        return {"node": ray.get_runtime_context().get_node_id()}

# Nothing that needs a core of its own: the pools leave none whole.
rows = ray.data.from_items([{"id": number} for number in range(600)], override_num_blocks=600)
rows = rows.map(Work, **plan.analyze)
seen = set()
for batch in rows.iter_batches(batch_size=None, prefetch_batches=0):
    seen.update(batch["node"])
    if len(seen) > 1:
        break
print(len(seen), flush=True)
disconnect()
"""


def test_pools_grow_onto_a_worker_that_comes_while_they_work():
    """On a cluster of its own: where scans took long before, the second worker was there already."""
    with autoscaling_cluster(worker_cpus=2, workers=2) as head:
        done = subprocess.run(
            [sys.executable, "-c", GROWS, head.address],
            env=environment(**head.environment),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
            cwd=ROOT,
        )
    assert done.stdout.splitlines() == ["2 4", "2"], done.stderr


@pytest.mark.parametrize(
    ("whose", "sentence"),
    [
        ("deepsweep_version", r"the cluster's head runs deepsweep \S+, and this machine 9\.9\.9.*--wheel"),
        ("ray_version", r"the cluster runs Ray \S+ and this machine 9\.9\.9"),
    ],
)
def test_other_versions_are_refused(head, whose, sentence):
    submit = ["cluster", "submit", "--dashboard", head.dashboard, "--", "s3://archive", "--out", "s3://results"]
    done = python(head, f"cluster.jobs.{whose} = lambda: '9.9.9'; main({submit!r})")
    assert done.returncode == 4 and re.search(sentence, done.stderr), done.stderr


def test_what_is_wrong_is_said_in_a_sentence(head):
    nothing = at(head, "logs", "deepsweep-of-yesterday")
    assert (nothing.returncode, "there is no job deepsweep-of-yesterday" in nothing.stderr) == (4, True), nothing.stderr
    stranger = at(head, "status", RAY_AUTH_TOKEN="f" * 32)
    assert (stranger.returncode, "does not accept this machine's token" in stranger.stderr) == (4, True)
    nobody = deepsweep("cluster", "status", "--dashboard", "http://127.0.0.1:1")
    assert (nobody.returncode, "no Ray dashboard answers at http://127.0.0.1:1" in nobody.stderr) == (4, True)


# --- without a cluster ------------------------------------------------------------------------------------


class Dropping:
    """A job client whose connections break in turn after so many characters of the log, in so many ways."""

    LOG = "5 CPUs are there.\n1 of 2 videos\n2 of 2 videos\n"
    ERRORS = (RuntimeError("WebSocket connection closed unexpectedly"), ConnectionResetError(), None)

    def __init__(self, drops: list[tuple[int, int]], outages: int) -> None:
        self.drops, self.outages, self.asked = drops, outages, 0

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        after, how = self.drops.pop(0) if self.drops else (len(self.LOG), 2)
        for start in range(0, after, 7):
            yield self.LOG[start : min(start + 7, after)]
        if error := self.ERRORS[how]:
            raise error

    def get_job_info(self, job_id: str) -> SimpleNamespace:
        self.asked += 1
        if 1 < self.asked <= self.outages + 1:
            raise ConnectionRefusedError("port-forward is away")
        status = JobStatus.RUNNING if self.drops else JobStatus.SUCCEEDED
        facts = {"submission_id": job_id, "driver_exit_code": 0, "start_time": 1, "end_time": 1}
        return SimpleNamespace(status=status, entrypoint="deepsweep scan", **facts)


@given(st.lists(st.tuples(st.integers(0, len(Dropping.LOG)), st.integers(0, 2)), max_size=4), st.integers(0, 3))
def test_a_scan_is_followed_to_its_end_through_any_number_of_broken_connections(drops, outages):
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.setattr(jobs, "_connect", lambda dashboard: Dropping(drops, outages))
        patch.setattr(jobs, "POLL_S", 0)
        ended = Jobs().follow("deepsweep-1")
    assert out.getvalue() == Dropping.LOG, "every character, once"
    assert (ended.over, ended.exit_code) == (True, 0)


def test_a_cluster_that_stays_away_is_given_up(monkeypatch):
    monkeypatch.setattr(jobs, "_connect", lambda dashboard: Dropping([(5, 0)], 1 << 30))
    monkeypatch.setattr(jobs, "OUTAGE_S", 0)
    with pytest.raises(UserError, match="no Ray dashboard answers") as caught:
        Jobs().follow("deepsweep-1")
    assert caught.value.exit_code == EXIT_PREFLIGHT


@given(
    url=st.text(st.characters(exclude_categories=("C", "Z")), max_size=20).map(
        "https://hooks.example.org/SECRET?".__add__
    ),
    quiet=st.booleans(),
    exclude=st.lists(st.just("a b'c"), max_size=1).map(tuple),
)
def test_the_url_of_a_webhook_is_not_shown(url, quiet, exclude):
    config = ScanConfig(sources=("s3://archive",), out="s3://r", webhook=url, quiet=quiet, exclude=exclude)
    shown = without_webhook(job_command(config, Workers()))
    assert "SECRET" not in shown and "--webhook=…" in shown and shown.endswith("-- s3://archive")
    assert ("--quiet" in shown) == quiet
    plain = job_command(replace(config, webhook=None), Workers())
    assert without_webhook(plain) == plain


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["archive", "--out", "s3://r"], "the source archive is relative"),
        (["s3://a"], "--out results is relative"),
        (["s3://a", "--out", "s3://r", "--model", "mine"], "--model mine is relative"),
        (["s3://a", "--out", "s3://r", "--fps", "0"], "--fps must be"),
        (["s3://a", "--out", "s3://r", "--speed"], "No such option"),
    ],
)
def test_a_scan_that_could_not_run_there_is_not_submitted(arguments, sentence):
    done = CliRunner().invoke(main, ["cluster", "submit", "--", *arguments])
    assert (done.exit_code, sentence in done.stderr) == (2, True), done.output
