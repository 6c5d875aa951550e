"""The page as a whole: what was scanned and how far to trust it, scores, the ranked table, evidence, failures, runs."""

from __future__ import annotations

from datetime import datetime
from importlib import resources

from queries.report.cards import ModelCard
from queries.report.data import Findings, Row
from queries.report.elements import Child, Markup, code, document, el, join
from queries.report.evidence import evidence_of
from queries.report.parts import count_of, fitting, number, section, table
from queries.report.plots import clock, histogram, meter, reliability
from queries.report.ranking import videos_section

#: With MAX_ROWS_BYTES the page stays under 30 MB, whatever --top says and however long names and errors are.
MAX_EVIDENCE_BYTES = 22 * 2**20
MAX_CAUSES_BYTES = 2**19
MAX_RUNS_BYTES = 2**18

MEANINGS = {
    "ok": "faces were found and looked at",
    "no_face": "no face in it",
    "too_short": "a face, but too briefly for a clip",
    "unsupported": "not a video: text, audio only, an unknown container",
    "decode_error": "a video, but no frame of it could be read",
    "timeout": "analysis passed its deadline and was stopped",
    "crashed": "the process that analysed it died",
    "too_large": "over a limit on bytes, seconds, pixels or memory",
    "missing": "could not be fetched: gone, or access denied",
    "model_error": "faces were found, but scoring them failed",
}


def report_page(findings: Findings, title: str, made_at: datetime) -> tuple[str, int]:
    """(the whole page, how many videos carry evidence). made_at: UTC."""
    files = resources.files("queries.report")
    style, style_hash = code("style", (files / "report.css").read_text("utf-8"))
    script, script_hash = code("script", (files / "report.js").read_text("utf-8"))
    policy = (
        f"default-src 'none'; img-src data:; style-src {style_hash}; script-src {script_hash};"
        " base-uri 'none'; form-action 'none'"
    )
    evidence, shown = _evidence(findings)
    body = el(
        "body",
        _header(findings, title, made_at),
        el(
            "main",
            _trust(findings),
            _scores(findings),
            videos_section(findings, shown),
            evidence,
            _failures(findings),
            _runs(findings),
        ),
        el(
            "footer",
            f"Made by deepsweep on {made_at:%Y-%m-%d %H:%M} UTC. This file holds everything it shows: it loads nothing"
            " and sends nothing. Its pictures show faces from the archive; share it as you would share the videos.",
        ),
        script,
    )
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=policy),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="referrer", content="no-referrer"),
        el("title", title),
        style,
    )
    return document(head, body), len(shown)


def _header(findings: Findings, title: str, made_at: datetime) -> Markup:
    totals = findings.totals
    judged = totals["scored"] > 0
    tiles = [
        ("videos", f"{totals['videos']:,}"),
        ("hours", _hours(totals["hours"])),
        ("fake", f"{totals['fake']:,}" if judged else "–"),
        ("uncertain", f"{totals['uncertain']:,}" if judged else "–"),
        ("flagged clips", f"{totals['flagged_clips']:,}" if judged else "–"),
        ("failed", f"{totals['failed']:,}"),
    ]
    links = [("trust", "How far to trust it"), ("scores", "Scores"), ("ranking", "Videos"), ("evidence", "Evidence")]
    links += [("failures", "Failures"), ("runs", "Runs")]
    return el(
        "header",
        el("h1", title),
        el("p", f"State of {made_at:%Y-%m-%d %H:%M} UTC, {count_of(len(findings.runs), 'run')}", class_="quiet"),
        el("nav", [el("a", text, href=f"#{target}") for target, text in links], aria_label="Sections"),
        [el("p", sentence, class_="note", role="note") for sentence in _notes(totals)],
        el("dl", [el("div", el("dt", name), el("dd", value)) for name, value in tiles], class_="tiles"),
    )


def _notes(totals: Row) -> list[str]:
    """What a reader must know before any figure."""
    if not totals["videos"]:
        return ["Nothing has been scanned into these results yet: there is nothing to rank."]
    notes = []
    if totals["untrained"]:
        whom = "These videos were" if totals["untrained"] == totals["ok"] else f"{totals['untrained']:,} videos were"
        notes.append(
            f"{whom} scanned with an untrained model: there are no scores and no verdicts for them. Blinks and motion"
            " were measured all the same. Scan again with a trained model to have them judged."
        )
    if totals["failed"] == totals["videos"]:
        notes.append("Every video failed: none was judged. The reasons are listed below, by cause.")
    elif not totals["ok"]:
        failed = f" that did not fail ({totals['failed']:,} did)" if totals["failed"] else ""
        notes.append(f"No video was judged: in none{failed} was a face seen for long enough.")
    if totals["unfinished"]:
        notes.append(
            f"Not scanned to the end yet: {count_of(totals['unfinished'], 'video')}."
            " The same scan command goes on there."
        )
    return notes


def _trust(findings: Findings) -> Markup:
    totals = findings.totals
    statuses = [
        [row["status"], f"{row['videos']:,}", _hours(row["hours"]), MEANINGS.get(row["status"], "")]
        for row in findings.statuses
    ]
    return section(
        "trust",
        "How far to trust it",
        [_model(row, card) for row, card in findings.models],
        el(
            "p",
            "A score orders the videos; it does not settle what is real. Where one video in 1,000 is manipulated, a"
            " false-positive rate of 1 % gives ten false flags for each true one. Look at the evidence from the top"
            " down, and take ‘uncertain’ at its word.",
        )
        if totals["scored"]
        else None,
        el("h3", "What was judged, and what was not"),
        table("Videos by status", ["status", "videos", "hours", "meaning"], statuses, kinds=".nnt")
        if statuses
        else el("p", "There are no videos in these results."),
        el(
            "p",
            f"In {count_of(totals['blinks_unknown'], 'video')} blinks could not be judged: that takes"
            " 10 samples a second and 8 s of watched eyes.",
        )
        if totals["blinks_unknown"]
        else None,
        el("p", f"{clock(totals['lost_seconds'])} of the videos no decoder could read.")
        if totals["lost_seconds"]
        else None,
    )


def _model(row: Row, card: ModelCard | str) -> list[Child]:
    used = " and ".join(number(value, 3) for value in row["thresholds"]) or "–"
    facts: list[list[Child]] = [["digest", row["model_digest"] or "–"]]
    facts.append(["videos", f"{row['videos']:,}"])
    if row["model"] != "untrained":
        facts.append(["a clip is flagged from", used])
    if isinstance(card, ModelCard) and card.trained:
        facts.append(["threshold of ‘fake’", number(card.thresholds.get("fake"), 3)])
        facts.append(["‘real’ up to", number(card.thresholds.get("real"), 3)])
        facts.append(["fusion, log odds", ", ".join(f"{name} {value:+.3f}" for name, value in card.fusion.items())])
    parts: list[Child] = [
        el("h3", f"Model {row['model']}"),
        table(f"Model {row['model']}", ["", "value"], facts, kinds=".t"),
    ]
    if isinstance(card, str):
        parts.append(el("p", card, class_="quiet"))
    elif not card.trained:
        parts.append(el("p", "An untrained model: its thresholds and fusion mean nothing.", class_="quiet"))
    elif card.figures:
        parts += _figures(card)
    else:
        parts.append(
            el("p", "No figures lie beside this model: deepsweep evaluate measures it on your videos.", class_="quiet")
        )
    return parts


def _figures(card: ModelCard) -> list[Child]:
    """How good the model was when it was made: what everybody must see, calibration, and the rest on demand."""
    parts: list[Child] = []
    if card.headline:
        reals, fakes = card.measured_on or (None, None)
        told = "" if reals is None else f", on {reals:,} real and {fakes:,} fake videos that were held out"
        parts.append(el("p", f"Measured when it was made{told}; in brackets 95 % intervals:"))
        tiles = [el("div", el("dt", name), el("dd", value)) for name, value in card.headline]
        parts.append(el("dl", tiles, class_="facts"))
    if card.reliability:
        told = "Its calibration: bars that end at the line are scores to be taken at their word. Above each, how many"
        parts += [reliability(card.reliability), el("p", f"{told} videos that is.", class_="quiet")]
    rows: list[list[Child]] = [[name, value] for name, value in card.figures]
    whole = table("Figures of this model", ["figure", "value"], rows, kinds="tt")
    return [*parts, el("details", el("summary", "All figures of this model, as measured when it was made"), whole)]


def _scores(findings: Findings) -> Markup:
    totals = findings.totals
    if not totals["scored"]:
        return section("scores", "Scores", el("p", "No video has a score."))
    unscored = totals["videos"] - totals["scored"]
    return section(
        "scores",
        "Scores",
        histogram(findings.histogram, _lines(findings)),
        el("p", f"{count_of(unscored, 'video')} without a score: not judged is not 0.", class_="quiet")
        if unscored
        else None,
    )


def _lines(findings: Findings) -> list[tuple[str, float]]:
    """The thresholds to draw: those that runs flagged from, and what the models call real."""
    fake = {value for row, _ in findings.models for value in row["thresholds"] if row["model"] != "untrained"}
    real = {card.thresholds["real"] for _, card in findings.models if isinstance(card, ModelCard) and card.trained}
    return [("real up to", v) for v in sorted(real)[:2]] + [("fake from", v) for v in sorted(fake)[:3]]


def _evidence(findings: Findings) -> tuple[Markup, set[str]]:
    """The section, and the videos in it: by rank, until the page is as large as it may be."""
    videos = [video for video in findings.videos if video["uri"] in findings.evidence]
    parts = fitting((evidence_of(video, findings.evidence[video["uri"]]) for video in videos), MAX_EVIDENCE_BYTES)
    shown = {video["uri"] for video in videos[: len(parts)]}
    if not parts:
        return section("evidence", "Evidence", el("p", "There is no video with evidence to show.")), shown
    buttons = [el("button", "Open all", type="button", id="open-all", class_="button"), " "]
    buttons.append(el("button", "Close all", type="button", id="close-all", class_="button"))
    lead = el(
        "p",
        f"The first {count_of(len(shown), 'video')} by rank. Of each face: its clips with their scores, the more"
        " coloured the higher, flagged ones outlined, a mark above for each blink; the eye aspect ratio (EAR),"
        " blinks shaded; the face's motion with the head's taken out, in outer-eye distances a second (eyes/s).",
    )
    return section("evidence", "Evidence", lead, el("p", buttons, class_="buttons"), parts), shown


def _failures(findings: Findings) -> Markup:
    if not findings.causes:
        return section("failures", "Failures", el("p", "No video failed."))
    parts: list[Child] = [
        el("p", "Reasons that differ only in numbers count as one. Repeat the scan with --retry-failed.")
    ]
    by_status: dict[str, list[Row]] = {}
    fits = fitting((join([row["error"], row["example"]]) for row in findings.causes), MAX_CAUSES_BYTES)
    for row in findings.causes[: len(fits)]:
        by_status.setdefault(row["status"], []).append(row)
    for status, rows in by_status.items():
        hidden = rows[0]["causes"] - len(rows)
        lines: list[list[Child]] = [
            [f"{row['videos']:,}", row["error"] or "no reason was given", row["example"], row["attempts"]]
            for row in rows
        ]
        parts.append(
            el(
                "details",
                el(
                    "summary",
                    el("b", status),
                    f": {count_of(rows[0]['status_videos'], 'video')} – {MEANINGS.get(status, '')}",
                ),
                table(f"Reasons: {status}", ["videos", "reason", "example", "runs tried"], lines, kinds="nttn"),
                el("p", f"And {count_of(hidden, 'rarer reason')}.") if hidden else None,
                open=True,
            )
        )
    if untold := {row["status"] for row in findings.causes} - by_status.keys():
        parts.append(el("p", f"Not shown: {', '.join(sorted(untold)[:20])}. deepsweep query failures lists all."))
    return section("failures", "Failures by cause", parts)


def _runs(findings: Findings) -> Markup:
    if not findings.runs:
        return section("runs", "Runs", el("p", "There is no record of a run."))
    fastest = max((run["video_hours_per_hour"] or 0 for run in findings.runs), default=0)
    rows: list[list[Child]] = [
        [
            run["run_id"],
            _moment(run["started_at"]),
            _moment(run["finished_at"]) if run["finished_at"] else "not finished",
            "interrupted" if run["interrupted"] else "",
            run["model"] or "–",
            run["version"] or "–",
            number(run["videos"], 0),
            number(run["video_hours"], 2),
            number(run["video_hours_per_hour"], 2),
            meter(run["video_hours_per_hour"] / fastest) if run["video_hours_per_hour"] else None,
        ]
        for run in findings.runs
    ]
    shown = len(fitting(map(join, reversed(rows)), MAX_RUNS_BYTES))
    left = len(rows) - shown
    headings = ["run", "started, UTC", "finished, UTC", "", "model", "deepsweep", "videos", "video-hours"]
    headings += ["video-hours per hour", ""]
    return section(
        "runs",
        "Runs",
        table("Throughput of each run", headings, rows[left:], kinds="......nnn."),
        el("p", f"{count_of(left, 'earlier run')} left out.", class_="quiet") if left else None,
    )


def _hours(hours: float) -> str:
    return f"{hours:,.2f}" if hours < 10 else f"{hours:,.0f}"


def _moment(moment: datetime | None) -> str:
    return "–" if moment is None else f"{moment:%Y-%m-%d %H:%M}"
