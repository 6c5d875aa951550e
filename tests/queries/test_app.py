"""`deepsweep app`: the desk behind it, what it refuses, and the page in a real browser."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import av
import pytest
from click.testing import CliRunner

from queries.app import app
from queries.app.desk import Desk
from queries.catalog import open_catalog
from queries.command import query
from queries.reviews import append_reviews
from scanner.config import ScanConfig
from scanner.errors import EXIT_OK, EXIT_USAGE, UserError
from scanner.inspect import inspect_video
from tests.browser import browser, page
from tests.queries.conftest import ask
from tests.queries.rows import clip, span, write_part, write_run
from tests.queries.test_report import judged, thumbnail
from tests.queries.test_reviews import HOSTILE, review

if TYPE_CHECKING:
    from playwright.sync_api import Page

__all__ = ["browser", "page"]  # fixtures

ARCHIVE = Path(__file__).parents[1] / "archive"
TALK = ARCHIVE / "talks" / "real_blinks.mp4"
GONE = "/gone/<img src=x onerror=alert(1)>${1+1}{{7*7}}.mp4"
#: Gradio warns so when it ends the stream of an upload, which it does each time.
QUIET = "const warn = console.warn; console.warn = (...a) => a[0] === 'Method not implemented.' || warn(...a)"
WAIT_MS = 180_000  # of one step on a busy machine: an inspection takes ten seconds on an idle one


def tag(path: Path) -> str:
    """The content tag that a scan gives a local file."""
    return f"{path.stat().st_size}-{path.stat().st_mtime_ns}"


def flagged(uri: str, score: float, content_tag: str) -> dict[str, Any]:
    """A video with one flagged clip, its face and a picture of it."""
    evidence = {"clips": [clip(3, score, face="0-0")], "thumbnails": [thumbnail(1, score)]}
    return judged(uri, score, content_tag=content_tag, **evidence)


def build(results: Path) -> Path:
    """RESULTS with three flagged clips: of a video that is there, of one that is gone, and of one that was replaced."""
    write_run(results)
    rows = [flagged(str(TALK), 0.95, tag(TALK)), flagged(GONE, 0.9, "1-1")]
    rows += [flagged(str(ARCHIVE / "street" / "two_faces.mp4"), 0.8, "other"), span("/calm.mp4")]
    write_part(results, rows)
    return results


@pytest.fixture
def archive(results: Path) -> Path:
    return build(results)


@pytest.fixture
def desk(archive: Path, tmp_path: Path) -> Iterator[Desk]:
    (tmp_path / "clips").mkdir()
    with Desk(str(archive), "anna", tmp_path / "clips") as made:
        yield made


# --- the desk -------------------------------------------------------------------------------------------


def test_what_waits_is_what_this_reviewer_has_not_done_by_score(desk, archive):
    assert [c.score for c in desk.load().clips] == [0.95, 0.9, 0.8]
    at = {"content_tag": "1-1", "face_id": "0-0"}
    append_reviews(str(archive), [review(GONE, 3.0, "unsure", reviewer="ben", **at)])
    queue = desk.load()
    assert [(c.score, c.label, c.reviewer) for c in queue.clips] == [
        (0.95, None, None), (0.9, "unsure", "ben"), (0.8, None, None),
    ]  # fmt: skip
    assert queue.reviewed == 0
    desk.record(queue.clips[0], "confirmed", " a note ")
    after = desk.load()
    assert ([c.score for c in after.clips], after.reviewed) == ([0.9, 0.8], 1)
    with closing(open_catalog(str(archive))) as connection:
        (mine,) = ask(connection, "SELECT uri, content_tag, label, note FROM reviews WHERE reviewer = 'anna'")
    assert mine == {"uri": str(TALK), "content_tag": tag(TALK), "label": "confirmed", "note": "a note"}


def test_what_was_said_earlier_can_be_looked_at_and_answered_otherwise(desk):
    pytest.importorskip("gradio", reason="Gradio is missing: `pip install deepsweep[app]` lets these tests run")
    from queries.app.review_tab import Place

    first, second, _ = desk.load().clips
    desk.record(first, "unsure", "")
    desk.record(first, "confirmed", "seen twice")
    queue = desk.load(reviewed_too=True)
    assert (len(queue.clips), queue.reviewed, queue.said) == (3, 0, {0: ("confirmed", "seen twice")})
    here = Place.first(queue, 1)
    assert (here.clip, here.left) == (second, 2)
    again = here.moved(-1)
    assert again.text == "seen twice"
    after = again.marked("false_alarm", "a filter")
    assert (after.at, after.said[0], after.left) == (1, ("false_alarm", "a filter"), 2)


def test_a_note_is_kept_while_the_reviewer_looks_at_other_clips(desk):
    pytest.importorskip("gradio", reason="Gradio is missing: `pip install deepsweep[app]` lets these tests run")
    from queries.app.review_tab import Place

    here = Place.first(desk.load(), 1).drafted("half a sentence").moved(1)
    assert here.text == ""
    back = here.moved(-1)
    assert back.text == "half a sentence"
    assert back.drafted("") == back.drafted("").moved(0) and back.drafted("").text == ""
    assert back.marked("unsure", "a sentence").moved(-1).text == "a sentence"


def test_the_evidence_on_a_clip(desk):
    evidence = desk.evidence(desk.load().clips[0])
    assert evidence.facts["verdict"] == "fake"
    assert evidence.facts["blink_count"] == 12
    assert [picture["heatmap"] is not None for picture in evidence.pictures] == [True]


def test_a_clip_is_played_as_browsers_can(desk):
    played = desk.play(desk.load().clips[0])
    assert played is not None
    assert (played.path.parent, played.remark) == (desk.folder, "")
    with av.open(str(played.path)) as file:
        assert file.streams.video[0].codec_context.name == "h264"
        assert float(file.duration / av.time_base) == pytest.approx(3, abs=0.3)  # a second before and after it


def test_a_video_that_is_gone_or_was_replaced_gets_a_sentence(desk):
    lost, changed = map(desk.play, desk.load().clips[1:])
    assert lost is not None and lost.path is None
    assert lost.remark.startswith("The video can't be played: could not be read: No such file")
    assert changed is not None and changed.remark.startswith("The video has changed since it was scanned")


def test_a_clip_that_was_left_before_its_turn_is_not_cut(desk):
    first, _, passed_over = desk.load().clips
    cutting, on_screen, moved = Event(), Event(), Event()
    on_screen.set()

    def busy() -> bool:
        cutting.set()
        moved.wait(60)
        return False

    with ThreadPoolExecutor() as pool:
        ahead = pool.submit(desk.play, first, busy)
        assert cutting.wait(60)
        behind = pool.submit(desk.play, passed_over, on_screen.is_set)
        on_screen.clear()
        moved.set()
        assert (ahead.result(), behind.result()) == (None, None)
    assert not list(desk.folder.iterdir())


def test_a_key_meant_for_one_clip_is_no_review_of_another(desk, archive, tmp_path):
    gr = pytest.importorskip("gradio", reason="Gradio is missing: `pip install deepsweep[app]` lets these tests run")
    from queries.app.review_tab import Place, Screen, review_tab

    with gr.Blocks() as demo:
        review_tab(desk, tmp_path, demo)
    button = next(block for block in demo.blocks.values() if block.elem_id == "mark-confirmed")
    mark = next(one.fn for one in demo.fns.values() if (button._id, "click") in one.targets)
    before = Place(desk.load(), 1)
    write_part(archive, [flagged("/new.mp4", 0.99, "1-1")], "part-1")
    after = Place(desk.load(), 2)
    assert (before.clip.uri, after.clip.uri) == (str(TALK), "/new.mp4")
    for token in (before.token, after.moved(1).token, Place(after.queue, 1).token, ""):
        mark(Screen(), after, token, "meant for another")
    with closing(open_catalog(str(archive))) as connection:
        assert ask(connection, "FROM reviews") == []
    mark(Screen(), after, after.token, "meant")
    with closing(open_catalog(str(archive))) as connection:
        assert [row["uri"] for row in ask(connection, "FROM reviews")] == ["/new.mp4"]


def test_the_files_of_clips_do_not_pile_up(desk):
    for number in range(40):
        (desk.folder / f"{number}.mp4").write_bytes(b"")
    desk.play(desk.load().clips[1])
    assert len(list(desk.folder.iterdir())) <= 16


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "The results hold no videos"),
        ([span("/a.mp4", status="timeout", error="too slow"), span("/b.mp4", status="no_face")], "No video could be"),
        ([span("/a.mp4")], "No clip reached the threshold"),
        ([span("/a.mp4", score=0.9, clips=[clip(1, 0.9)], model="untrained")], "An untrained model scored"),
    ],
)
def test_results_with_nothing_to_review_say_why(results, tmp_path, rows, says):
    pytest.importorskip("gradio", reason="Gradio is missing: `pip install deepsweep[app]` lets the app's tests run")
    from queries.app.review_tab import Place, end_of_queue

    write_run(results)
    if rows:
        write_part(results, rows)
    with Desk(str(results), "anna", tmp_path) as made:
        queue = made.load()
        assert queue.clips == ()
        assert says in end_of_queue(made, Place(queue))


# --- what it refuses ------------------------------------------------------------------------------------


def refusal(*options: str) -> str:
    found = CliRunner().invoke(app, ["--no-browser", *options]).exception
    assert isinstance(found, UserError), found
    assert found.exit_code == EXIT_USAGE
    return str(found)


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert refusal().endswith("pip install 'deepsweep[app]'.")


def test_results_model_and_port_are_checked_before_it_starts(tmp_path, monkeypatch):
    pytest.importorskip("gradio", reason="Gradio is missing: `pip install deepsweep[app]` lets the app's tests run")
    monkeypatch.chdir(tmp_path)
    assert "There are no results at" in refusal("--results", str(tmp_path / "nowhere"))
    assert "There is no model 'nowhere'" in refusal("--model", "nowhere")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"The app can't listen at 127.0.0.1, port {port}: Address already in use" in refusal("--port", port)


# --- in a browser ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Site:
    address: str
    results: Path
    temporary: Path


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The app as typed, in a process of its own, which is ended by its id."""
    pytest.importorskip("gradio", reason="Gradio is missing: `pip install deepsweep[app]` lets the app's tests run")
    base = tmp_path_factory.mktemp("app")
    results, temporary = build(base / "results"), base / "tmp"
    temporary.mkdir()
    command = [sys.executable, "-c", "from scanner.cli import main; main()", "app", "--no-browser"]
    process = subprocess.Popen(
        [*command, "--results", str(results), "--reviewer", "anna"],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(temporary)},
    )
    try:
        assert process.stderr is not None
        said = process.stderr.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+/", said)
        assert address, said + process.stderr.read()
        yield Site(address[0], results, temporary)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (EXIT_OK, "")
        assert not [path.name for path in temporary.iterdir() if path.name.startswith("deepsweep-app-")]
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def opened(page: Page, site: Site) -> Iterator[Page]:
    """The page, with nothing asked of anyone else: neither allowed nor tried."""
    asked: list[str] = []
    page.set_default_timeout(WAIT_MS)
    page.add_init_script(QUIET)
    page.on("request", lambda request: asked.append(request.url))
    page.goto(site.address)
    page.wait_for_selector("#review-status .ds-progress")
    yield page
    foreign = [url for url in asked if not url.startswith((site.address, "data:", "blob:"))]
    assert not foreign, foreign


def upload(page: Page, path: Path) -> None:
    page.get_by_role("tab", name="Inspect").click()
    page.set_input_files("#upload input[type=file]", str(path))
    page.wait_for_selector(f"#upload :text('{path.stem}')")
    page.click("#inspect")


def test_an_uploaded_video_gets_a_verdict_with_pictures_and_plots(opened):
    upload(opened, TALK)
    opened.wait_for_selector("#verdict .ds-card")
    text = opened.inner_text("#verdict")
    assert "real_blinks.mp4" in text
    assert "a first opinion and no proof" in text
    seen = inspect_video(str(TALK), ScanConfig())
    video, moments = seen.video, seen.moments()
    assert moments and video["blink_count"]
    for told in (
        f"{video['verdict']} – score {video['score']:.3f}",
        f"{video['blink_count']} ({video['blink_rate']:.1f} per minute",
        f"{video['micro_irregularity']:.2f} (ordinary: 0.5)",
        *(f"face {moment['face_id']}, score {moment['score']:.3f}" for moment in moments),
    ):
        assert told in text, (told, text)
    opened.wait_for_selector("#gradcam img")
    assert all(opened.wait_for_selector(f"#{name} img") for name in ("score-plot", "ear-plot", "motion-plot"))


def test_a_text_file_named_mp4_gets_a_sentence(opened):
    upload(opened, ARCHIVE / "broken" / "text.mp4")
    opened.wait_for_selector("#verdict .ds-problem")
    text = opened.inner_text("#verdict")
    assert "Not a video: text, audio only, an unknown container" in text
    assert "Traceback" not in text


def test_a_video_of_the_results_is_picked_and_its_progress_told(opened):
    opened.get_by_role("tab", name="Inspect").click()
    opened.click("#picked input")
    opened.get_by_role("option", name=str(TALK)).click()
    opened.click("#inspect")
    opened.wait_for_function("/\\d *%/.test(document.querySelector('#verdict').innerText)")
    assert "Choose a video" not in opened.inner_text("#verdict")  # the bar was drawn over it
    opened.wait_for_selector("#verdict .ds-card")
    assert str(TALK) in opened.inner_text("#verdict")


def test_a_review_by_keyboard_is_in_the_results(opened, site):
    assert "0 reviewed, 3 left" in opened.inner_text("#review-status")
    opened.wait_for_selector("#clip video")
    opened.wait_for_function("document.querySelector('#clip video').readyState >= 2")
    opened.fill("#note textarea", HOSTILE)
    opened.keyboard.press("Tab")  # out of the note: letters are keys again
    opened.dispatch_event("#clip video", "keydown", {"key": "F"})  # with Caps Lock on, after a click at the video
    opened.wait_for_selector("#review-status :text('1 reviewed, 2 left')")

    # The next one: its video is gone and its name hostile, but the pictures are there.
    opened.wait_for_selector("#remark .ds-problem")
    assert GONE in opened.inner_text("#facts")
    opened.wait_for_selector("#faces img")
    assert opened.input_value("#note textarea") == ""

    opened.fill("#note textarea", "half a sentence")
    opened.click("#previous")
    opened.wait_for_selector("#facts :text('You said: false alarm')")
    opened.wait_for_selector("#clip video")
    opened.click("#next")
    opened.wait_for_function("document.querySelector('#note textarea').value === 'half a sentence'")

    # Later: what was said waits no more, but can be answered otherwise.
    opened.click("#reload")
    opened.wait_for_selector("#review-status :text('clip 1 of 2')")
    opened.check("#reviewed-too input")
    opened.wait_for_selector("#review-status :text('clip 2 of 3')")
    opened.click("#previous")
    opened.wait_for_selector("#facts :text('You said: false alarm')")
    opened.wait_for_selector("#clip video")
    copies = [path for path in site.temporary.glob("deepsweep-app-*/gradio/**/*") if path.suffix in (".mp4", ".jpg")]
    assert {path.name for path in copies} <= {TALK.name, "text.mp4"}  # which were uploaded

    asked = CliRunner().invoke(query, ["reviewed", "--results", str(site.results), "--format", "json"])
    assert asked.exit_code == EXIT_OK
    assert '"label": "false_alarm"' in asked.stdout
    with closing(open_catalog(str(site.results))) as connection:
        (kept,) = ask(connection, "SELECT uri, t_start, t_end, label, note, reviewer FROM reviews")
    assert kept == {
        "uri": str(TALK), "t_start": 3.0, "t_end": 4.0, "label": "false_alarm", "note": HOSTILE.strip(),
        "reviewer": "anna",
    }  # fmt: skip


def status_of(url: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_it_serves_its_own_files_and_to_its_own_name_only(site, tmp_path):
    assert status_of(site.address) == 200
    assert status_of(site.address, Host="archive.example") == 421
    assert status_of(site.address, Origin="https://archive.example") == 421
    assert status_of(site.address, Origin=site.address.rstrip("/")) == 200
    secret = shutil.copy(TALK, tmp_path / "secret.mp4")
    for path in (secret, "/etc/passwd", str(site.results / "runs" / "run-001.json"), str(TALK)):
        assert status_of(f"{site.address}gradio_api/file={path}") in (403, 404), path
