"""`deepsweep report`: what the page says, that nothing in an archive can act in it, and how it is used in a browser."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result

from models.registry import load_spec
from queries.report import report
from scanner.errors import EXIT_OK, EXIT_USAGE, UserError
from tests.browser import browser, page
from tests.queries.rows import clip, span, write_part, write_run

if TYPE_CHECKING:
    from playwright.sync_api import Page

__all__ = ["browser", "page"]  # fixtures

HOSTILE = "s3://a/2024/<script>document.title='taken'</script><img src=x onerror=alert(1)>.mp4"
BREAKOUT = "</title></script></style>--><svg onload=alert(2)>\u202egpj.exe"


def picture(seed: int, size: int = 160) -> bytes:
    """A JPEG of blurred noise, of about the size that a crop of a face has."""
    noise = np.random.default_rng(seed).integers(0, 255, (size, size, 3), np.uint8)
    found, data = cv2.imencode(".jpg", cv2.GaussianBlur(noise, (0, 0), 2.5), [cv2.IMWRITE_JPEG_QUALITY, 85])
    assert found
    return data.tobytes()


def face(face_id: str = "0-0", *, score: float | None = 0.9, seconds: float = 50.0, fps: int = 15) -> dict[str, Any]:
    """A track whose eyes shut every four seconds."""
    t = np.arange(0, seconds, 1 / fps)
    blinks = np.arange(2, seconds - 1, 4)
    shut = np.exp(-(((t[:, None] - blinks) / 0.08) ** 2)).sum(1)
    ear = 0.3 - 0.22 * shut + 0.01 * np.sin(t)
    motion = 0.05 + 0.04 * np.abs(np.sin(t * 1.3))
    signals = [
        {"t": a, "ear": b, "ear_left": b, "ear_right": b, "motion": c, "yaw": 0.0, "pitch": 0.0, "roll": 0.0}
        for a, b, c in zip(t.tolist(), ear.tolist(), motion.tolist(), strict=True)
    ]
    signals[30] |= {"ear": None, "motion": None}
    return {
        "face_id": face_id,
        "t_start": 0.0,
        "t_end": float(t[-1]),
        "face_s": seconds,
        "score": score,
        "cnn_score": score,
        "blink_count": len(blinks),
        "blink_rate": 60 * len(blinks) / seconds,
        "blink_score": 0.1,
        "blink_s": seconds,
        "blink_t": blinks.tolist(),
        "blink_d": [0.2] * len(blinks),
        "micro_irregularity": 0.6,
        **{"x": 0.3, "y": 0.2, "w": 0.2, "h": 0.3},
        "signals": signals,
    }


def thumbnail(seed: int, score: float | None = 0.9, heatmap: bool = True) -> dict[str, Any]:
    return {
        "face_id": "0-0",
        "t": 3.0 + seed % 40,
        "score": score,
        "image": picture(seed),
        "heatmap": picture(seed + 1) if heatmap else None,
    }


def judged(uri: str, score: float, seed: int = 0, /, **values: Any) -> dict[str, Any]:
    """A video with everything: a face, its clips and pictures."""
    verdict = "fake" if score >= 0.5 else "real" if score <= 0.2 else "uncertain"
    clips = [
        clip(3.2 * i, float(np.clip(score + 0.3 * math.sin(i), 0, 1)), face="0-0") | {"t_end": 3.2 * i + 3}
        for i in range(15)
    ]
    evidence = {"faces": [face(score=score)], "clips": clips, "thumbnails": [thumbnail(seed, score)]}
    return span(uri, score=score, verdict=verdict, **(evidence | values))


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RESULTS with every kind of ending, with hostile names and errors. Tests only read it."""
    results = tmp_path_factory.mktemp("report") / "results [2025]*"
    long = [judged("s3://a/2024/long.mp4", 0.7 + 0.01 * i, 40 + i) for i in range(2)]
    for i, row in enumerate(long):
        row |= span("s3://a/2024/long.mp4", i, 2) | {k: row[k] for k in ("score", "verdict", "clips", "thumbnails")}
        row["faces"] = [face(f"{i}-0", score=row["score"])]
        for thing in (*row["clips"], *row["thumbnails"]):
            thing["face_id"] = f"{i}-0"
    for thing in long[1]["clips"]:
        thing |= {"t_start": thing["t_start"] + 60, "t_end": thing["t_end"] + 60}
    write_run(results)
    write_run(results, 2, finished_at=None, interrupted=True, video_hours_per_hour=None)
    write_part(
        results,
        [
            judged(HOSTILE, 0.93, 1),
            *long,
            judged("s3://a/2024/maybe.mp4", 0.35, 2),
            judged("s3://a/2024/real.mp4", 0.04, 3, thumbnails=[thumbnail(3, 0.04, heatmap=False)]),
            span("s3://a/2025/half.mp4", 0, 2, clips=[clip(8, 0.99)]),
            span("s3://a/2025/half.mp4", 1, 2, status="timeout", error="stopped after 600 s"),
            span("s3://a/2025/pending.mp4", 0, 3, blink_count=None, blink_rate=None, score=0.15),
            span("s3://a/2025/empty.mp4", status="no_face"),
            span("s3://a/2025/gone.mp4", status="missing", error=BREAKOUT),
            span("s3://a/2025/slow.mp4", status="timeout", error="stopped after 300 s"),
        ],
    )
    return results


@pytest.fixture(scope="module")
def written(archive: Path) -> Path:
    """The page about them."""
    return write(archive)


def untrained(uri: str, seed: int) -> dict[str, Any]:
    clips = [clip(3.2 * i, 0.0, flagged=False, face="0-0") | {"score": None, "cnn_score": None} for i in range(5)]
    return span(
        uri,
        **{"score": None, "cnn_score": None, "verdict": None, "model": "untrained", "clips": clips},
        model_digest=load_spec("untrained").digest,
        faces=[face(score=None)],
        thumbnails=[thumbnail(seed, None, heatmap=False)],
    )


def run(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(report, [str(a) for a in arguments])
    if result.exception and not isinstance(result.exception, SystemExit | UserError):
        raise result.exception
    return result


def write(results: Path, *arguments: str, name: str = "report.html") -> Path:
    out = results.parent / name
    result = run("--results", results, "--out", out, *arguments)
    assert result.exit_code == EXIT_OK, result.exception
    return out


def error(*arguments: str | Path) -> str:
    found = run(*arguments).exception
    assert isinstance(found, UserError)
    assert found.exit_code == EXIT_USAGE
    return str(found)


class Parsed(HTMLParser):
    """Tags, attributes and text, as a browser would see them."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(file.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


# --- the file ---------------------------------------------------------------------------------------------


def test_the_page_says_what_was_found(archive):
    text = Parsed(write(archive, "--title", "March & April", name="titled.html")).text
    for told in ("March & April", "builtin-1", "model-1", "stopped after 300 s", "spans not scanned yet", "run-002"):
        assert told in text, told
    assert re.search(r"timeout: 2 videos", text)
    assert text.count("stopped after") == 2  # of half.mp4 in its evidence, and once as the cause of both
    assert "In 1 video blinks could not be judged" in text


def test_names_and_errors_are_text(written):
    parsed = Parsed(written)
    assert "<script>document.title='taken'</script>" in parsed.text
    assert "</title></script></style>--><svg onload=alert(2)>\\u202egpj.exe" in parsed.text
    assert [tag for tag, _ in parsed.tags].count("script") == 1
    for tag, attributes in parsed.tags:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], (tag, attributes)


def test_nothing_leads_out_of_the_page(written):
    for _, attributes in Parsed(written).tags:
        for name in ("src", "href", "action", "srcset", "data", "poster"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/jpeg;base64,"))


def test_top_says_how_many_carry_evidence(archive):
    def evidence(top: int) -> int:
        tags = Parsed(write(archive, "--top", str(top), name="top.html")).tags
        return sum(tag == "details" and attributes.get("class") == "evidence" for tag, attributes in tags)

    assert [evidence(top) for top in (0, 2, 50)] == [0, 2, 6]  # the others have nothing to show


def test_a_thousand_videos_stay_under_30_mb(results):
    write_run(results)
    rows = [judged(f"s3://a/2024/{i:04}.mp4", i / 1000, i, thumbnails=[]) for i in range(948, 1000)]
    pictures = [thumbnail(i) for i in range(6)]
    rows = [row | {"thumbnails": pictures} for row in rows]
    write_part(results, rows + [span(f"s3://a/2024/{i:04}.mp4", score=i / 1000) for i in range(948)])
    out = write(results)
    assert out.stat().st_size < 30e6
    html = out.read_text("utf-8")
    assert (html.count("<tr data-verdict="), html.count("<img ")) == (1000, 50 * 6 * 2)


def test_long_hostile_names_and_errors_stay_under_30_mb(results):
    write_run(results)
    quotes = '"' * 1000
    rows = [span(f"s3://a/{i:04}{quotes}.mp4", score=i / 3000) for i in range(3000)]
    for status in ("missing", "crashed", "timeout"):
        rows += [span(f"{status}{i}.mp4", status=status, error=chr(97 + i) + "'" * 10_000) for i in range(20)]
    write_part(results, rows)
    out = write(results)
    assert out.stat().st_size < 10e6  # without evidence, to which the rest of the 30 MB belongs
    html = out.read_text("utf-8")
    shown = html.count("<tr data-verdict=")
    assert 0 < shown < 3000
    text = Parsed(out).text
    assert f"The first {shown:,} of 3,060 videos by rank, {3060 - shown:,} are left out" in text
    assert "And 12 rarer reasons." in text and "Not shown: missing, timeout." in text


def test_pictures_that_are_too_large_or_none_are_left_out(results):
    write_run(results)
    pictures = [
        thumbnail(1) | {"image": b"\xff\xd8\xff" + bytes(300_000)},
        thumbnail(2) | {"image": b"<svg onload=alert(1)>", "heatmap": b""},
    ]
    write_part(results, [judged("a.mp4", 0.9, thumbnails=pictures)])
    parsed = Parsed(write(results))
    assert not [tag for tag, _ in parsed.tags if tag == "img"]
    assert "no picture" in parsed.text


def test_evidence_ends_where_the_page_would_grow_too_large(results):
    write_run(results)
    large = b"\xff\xd8\xff" + bytes(190_000)
    pictures = [thumbnail(i) | {"image": large, "heatmap": large} for i in range(6)]
    write_part(results, [span(f"{i}.mp4", score=i / 10, thumbnails=pictures) for i in range(10)])
    out = results.parent / "report.html"
    told = run("--results", results, "--out", out).stderr
    assert out.stat().st_size < 30e6
    assert "was cut to 7" in told and "7 with pictures" in told


def test_an_untrained_model_gives_no_verdicts(results):
    write_run(results, model="untrained")
    write_part(results, [untrained("a.mp4", 1), untrained("b.mp4", 2)])
    text = Parsed(write(results)).text
    assert "no scores and no verdicts" in text and "No video has a score." in text
    assert "no heatmaps" in text


def test_results_without_videos_and_all_failed(results):
    write_run(results)
    assert "Nothing has been scanned" in Parsed(write(results)).text
    write_part(results, [span("a.mp4", status="crashed", error="killed"), span("b.mp4", status="missing")])
    text = Parsed(write(results)).text
    assert "Every video failed" in text and "no reason was given" in text
    write_part(results, [span("/empty.mp4", status="no_face")], "part-1")
    assert "in none that did not fail (2 did) was a face seen" in Parsed(write(results)).text


# --- the command ------------------------------------------------------------------------------------------


def test_what_it_says_and_leaves(archive, tmp_path):
    out = tmp_path / "new" / "report.html"
    result = run("--results", archive, "--out", out)
    assert "9 videos, 6 with pictures and plots" in result.stderr
    assert [file.name for file in out.parent.iterdir()] == ["report.html"]
    assert run("--results", archive, "--out", out, "--quiet").output == ""


def test_errors_name_the_fix(archive, tmp_path):
    assert "give --out a file name" in error("--results", archive, "--out", "s3://a/report.html")
    assert "is a folder" in error("--results", archive, "--out", tmp_path)
    assert "no results" in error("--results", tmp_path / "none", "--out", tmp_path / "x.html")
    (tmp_path / "file").write_text("x")
    assert "could not be written" in error("--results", archive, "--out", tmp_path / "file" / "x.html")
    assert "could not be written: File name too long" in error("--results", archive, "--out", tmp_path / ("x" * 300))


def test_an_old_report_stays_whole_when_results_cannot_be_read(results):
    write_run(results)
    part = write_part(results, [span("a.mp4")])
    out = write(results)
    before = out.read_bytes()
    part.write_bytes(b"PAR1 cut short")
    assert "damaged" in error("--results", results, "--out", out)
    assert out.read_bytes() == before


def test_help_is_light():
    code = "import sys, queries.report; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert not {"duckdb", "pyarrow", "numpy", "botocore", "torch"} & set(done.stdout.split())


# --- in the browser ---------------------------------------------------------------------------------------

#: Labels of a plot that lie over one another.
OVERLAPS = """() => [...document.querySelectorAll("svg.plot")].flatMap((svg) => {
    const boxes = [...svg.querySelectorAll("text")].map((text) => [text.textContent, text.getBoundingClientRect()]);
    return boxes.flatMap(([a, p], i) => boxes.slice(i + 1).filter(([, q]) =>
        Math.min(p.right, q.right) - Math.max(p.left, q.left) > 1 &&
        Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top) > 3
    ).map(([b]) => `${a} / ${b}`));
})"""
#: Texts outside plots with a contrast below 4.5, which WCAG 2 asks for.
FAINT = """() => {
    const channels = (color) => color.match(/[\\d.]+/g).map(Number);
    const light = (color) => channels(color).slice(0, 3).map((c) => c / 255)
        .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const ground = (one) => {
        const color = one && getComputedStyle(one).backgroundColor;
        return !one ? "rgb(255, 255, 255)" : (channels(color)[3] ?? 1) ? color : ground(one.parentElement);
    };
    return [...document.body.querySelectorAll(":not(svg, svg *, script, style)")].filter((one) => {
        const own = [...one.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.textContent.trim());
        if (!own || !one.checkVisibility()) return false;
        const [a, b] = [light(getComputedStyle(one).color), light(ground(one))];
        return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) < 4.5;
    }).map((one) => `${one.tagName}: ${one.textContent.slice(0, 40)}`);
}"""


def names(page: Page) -> list[str]:
    return page.locator("#videos tbody tr:visible td:nth-child(2)").all_inner_texts()


def test_it_opens_without_errors_and_without_requests(written, page):
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(written.as_uri())
    assert page.title() == "Deepfake scan"  # the script in a name has not run
    assert page.locator("svg.plot").first.is_visible()
    assert [url for url in requests if not url.startswith("data:")] == [written.as_uri()]
    page.get_by_role("button", name="Open all").click()
    loaded = page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    assert loaded and page.locator("img").count() > 5


def test_the_policy_stops_what_is_not_ours(written, browser):
    context = browser.new_context()
    page = context.new_page()
    page.goto(written.as_uri())
    page.evaluate("""() => {
        const script = document.createElement("script");
        script.textContent = "document.title = 'taken'";
        document.body.append(script);
    }""")
    assert page.title() == "Deepfake scan"
    context.close()


def test_search_filter_and_order_by_keyboard(written, page):
    page.goto(written.as_uri())
    assert len(names(page)) == 9 and "document.title" in names(page)[1]  # half.mp4's flagged clip ranks above it
    page.get_by_label("Search").focus()
    page.keyboard.type("2025 timeout")
    assert sorted(names(page)) == ["2025/half.mp4", "2025/slow.mp4"]
    assert "2 of 9 videos shown" in page.locator("#count").inner_text()
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.press("Delete")
    page.keyboard.press("Tab")
    page.keyboard.type("real")  # the select of verdicts
    assert page.get_by_label("Verdict").input_value() == "real"
    assert sorted(names(page)) == ["2024/real.mp4", "2025/pending.mp4"]
    page.get_by_label("Verdict").select_option("")
    page.get_by_role("button", name="duration").focus()
    page.keyboard.press("Enter")
    assert page.locator("th[aria-sort]").inner_text().startswith("duration")
    assert names(page)[0] == "2025/pending.mp4"
    page.get_by_role("button", name="score").focus()
    page.keyboard.press("Space")
    page.keyboard.press("Space")
    assert names(page)[0] == "2024/real.mp4"  # ascending; without a score is not 0: last
    assert names(page)[-1].startswith("2025/")


def test_a_pasted_address_finds_its_video(written, page):
    page.goto(written.as_uri())
    assert page.locator("#ranking b").inner_text() == "s3://a/"  # which the names in the table are shown without
    page.get_by_label("Search").fill("S3://a/2024/real.mp4")
    assert names(page) == ["2024/real.mp4"]
    page.get_by_label("Search").fill("s3://a/")
    assert len(names(page)) == 9


def test_evidence_opens_from_the_table_by_keyboard(written, page):
    page.goto(written.as_uri())
    link = page.get_by_role("link", name="2024/maybe.mp4")
    link.focus()
    page.keyboard.press("Enter")
    opened = page.locator("details.evidence[open]")
    opened.wait_for()
    assert opened.count() == 1 and "maybe.mp4" in opened.locator("summary").inner_text()
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"
    page.keyboard.press("Enter")
    assert page.locator("details.evidence[open]").count() == 0


def test_plots_have_axes_units_and_no_overlapping_labels(written, page):
    page.goto(written.as_uri())
    page.get_by_role("button", name="Open all").click()
    text = page.locator("details.evidence").first.inner_text()
    everything = " ".join(page.locator("svg text").all_text_contents()) + text
    for name in ("time in the video, s", "EAR, ratio", "motion, eyes/s", "clip score", "videos", "score: calibrated"):
        assert name in everything, name
    assert page.evaluate(OVERLAPS) == []


@pytest.fixture(scope="module")
def pages(written: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page about everything, about nothing, and about videos that all failed."""
    found = {"all kinds": written}
    for name, rows in (("empty", []), ("failed", [span("a.mp4", status="crashed"), span("b.mp4", status="missing")])):
        results = tmp_path_factory.mktemp(name) / "results"
        write_run(results)
        if rows:
            write_part(results, rows)
        found[name] = write(results)
    return found


@pytest.mark.parametrize("which", ["all kinds", "empty", "failed"])
@pytest.mark.parametrize("look", [{"color_scheme": "light"}, {"color_scheme": "dark"}, {"media": "print"}], ids=str)
def test_it_can_be_read_by_day_by_night_and_on_paper(pages, page, which, look):
    page.emulate_media(**look)
    page.goto(pages[which].as_uri())
    page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    assert page.evaluate(OVERLAPS) == []
    assert page.evaluate(FAINT) == []
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (look.get("color_scheme") == "dark")
    if look.get("media") == "print":
        assert not page.locator("nav").is_visible() and not page.locator("#controls").is_visible()
        # Chromium repeats a table's header on each page, but leaves a button in it out.
        assert all(one.bounding_box() is None for one in page.locator("#videos thead button").all())
        assert page.pdf().startswith(b"%PDF-")


def test_it_fits_a_narrow_window_and_prints_what_is_closed(written, page):
    page.set_viewport_size({"width": 380, "height": 700})
    page.goto(written.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.set_viewport_size({"width": 1024, "height": 700})
    assert page.evaluate("(one => one.scrollWidth <= one.clientWidth)(document.querySelector('#ranking .scroll'))")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details.evidence:not([open])").count() == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details.evidence[open]").count() == 0
