"""A cluster that is there: scans submitted, found again, followed, refused; workers that come when asked for."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
from click.testing import CliRunner

from scanner.cli import main
from tests.cluster.autoscaling import Head, autoscaling_cluster
from tests.scans import TIMEOUT_S, deepsweep, environment, videos
from tests.zoo import ARCHIVE

VIDEO = ARCHIVE / "formats" / "vp9.webm"


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with autoscaling_cluster(worker_cpus=2) as head:
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
