"""The report for people: tables of figures with their intervals, in Markdown and on a terminal."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Any

from models.evaluation import VERDICTS, Estimate, Figures, Report
from models.metrics import CONFIDENCE, MIN_GROUPS

Table = list[list[str]]  # the header first

LISTED = 100  # videos in a list; report.json has them all
MISTAKES = 10  # of each kind

NAMES = {
    "auc": "AUC",
    "eer": "EER",
    "ap": "AP",
    "log_loss": "log-loss",
    "brier": "Brier",
    "ece": "ECE",
    "tpr_at_fpr_1%": "TPR at FPR 1 %",
    "tpr_at_fpr_0.1%": "TPR at FPR 0.1 %",
    "tpr": "TPR at `fake`",
    "fpr": "FPR at `fake`",
}


def show(estimate: Estimate) -> str:
    """`0.912 [0.871, 0.950]`; without the brackets where there is no interval, a dash where there is no figure."""
    if estimate.value is None:
        return "–"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def overall_table(report: Report) -> Table:
    """Each metric over videos and over clips."""
    columns = (report.videos, report.clips)
    head = [["", "videos", "clips"], ["real + fake", *(f"{c.reals:,} + {c.fakes:,}" for c in columns)]]
    return head + [[name, *(show(c.metrics[key]) for c in columns)] for key, name in NAMES.items()]


def auc_by_method(report: Report) -> Table:
    """The figure that the literature gives, for each method's fakes against all reals."""
    return [
        ["method", "fakes", "video AUC", "clip AUC"],
        *(
            [method, f"{f['videos'].fakes:,}", show(f["videos"].metrics["auc"]), show(f["clips"].metrics["auc"])]
            for method, f in report.methods.items()
        ),
    ]


def baseline_table(report: Report) -> Table:
    """The detector beside what else could tell the classes apart."""
    left_out = f" ({report.metadata_left_out}s left out)" if report.metadata_left_out else ""
    return [
        ["video AUC of", ""],
        ["the detector", show(report.videos.metrics["auc"])],
        ["its network alone, before fusion", show(report.cnn_auc)],
        [f"file metadata alone{left_out}", show(report.metadata_auc)],
    ]


def figures_table(parts: dict[str, dict[str, Figures]], level: str, what: str) -> Table:
    """One row per part: all its metrics. level: videos or clips."""
    table = [[what, "real + fake", *NAMES.values()]]
    for name, levels in parts.items():
        figures = levels[level]
        counts = f"{figures.reals:,} + {figures.fakes:,}"
        table.append([name, counts, *(show(figures.metrics[key]) for key in NAMES)])
    return table


def report_markdown(report: Report) -> str:
    """The whole report as a Markdown page."""
    parts = [
        f"# Evaluation of {_safe(report.model)}",
        _introduction(report),
        "## Overall",
        _markdown(overall_table(report)),
        _reading(report),
        "![ROC](roc.png)\n\n![Reliability](reliability.png)\n\n![Scores](scores.png)",
        "## What else tells the classes apart",
        _markdown(baseline_table(report)),
        "File metadata: size, bitrate, width, height, frame rate, duration and codec, in a logistic regression that"
        " never saw the source it scores. Far from 0.5, it says that real and fake files of this data differ in more"
        " than their faces, and that part of the detector's figure may be due to that.",
    ]
    if report.methods:
        parts += [
            "## By method",
            "Each method's fakes against all reals. Videos:",
            _markdown(figures_table(report.methods, "videos", "method")),
            "Clips:",
            _markdown(figures_table(report.methods, "clips", "method")),
        ]
    parts += ["## By source", _markdown(_source_table(report))]
    if report.source_figures:
        parts += [
            "Sources that hold both. Videos:",
            _markdown(figures_table(report.source_figures, "videos", "source")),
            "Clips:",
            _markdown(figures_table(report.source_figures, "clips", "source")),
        ]
    parts += ["## Verdicts and statuses", _markdown(_counts_table(report)), *_mistakes(report)]
    if report.not_judged:
        parts += [
            "## Videos that could not be judged",
            "They are in none of the figures above.",
            _list(f"{_safe(v['uri'])} ({v['label']}): {v['status']}{_reason(v)}" for v in report.not_judged),
        ]
    if report.reencoded is not None:
        parts += _reencoded(report)
    parts += ["## Made with", _made_with(report)]
    return "\n\n".join(parts) + "\n"


# --- sections -----------------------------------------------------------------------------------------------------


def _introduction(report: Report) -> str:
    total = {label: sum(counts.values()) for label, counts in report.statuses.items()}
    sources = len({source.source for source in report.sources})
    return (
        f"{total['real']:,} real and {total['fake']:,} fake videos from {sources:,} sources, of which"
        f" {report.videos.reals:,} and {report.videos.fakes:,} could be judged, from {report.videos.recordings:,}"
        f" recordings. Model digest `{report.model_digest[:12]}`. A video is called `fake` from a score of"
        f" {report.thresholds['fake']:.3f} and `real` up to {report.thresholds['real']:.3f}."
    )


def _reading(report: Report) -> str:
    return (
        f"In brackets: {CONFIDENCE:.0%} intervals from {report.resamples:,} bootstrap resamples of whole recordings,"
        f" with none where a label has fewer than {MIN_GROUPS}. TPR at a false-positive rate needs the reals to show"
        " that rate: 100 for 1 %, 1,000 for 0.1 %; a dash says that there are fewer. AP, log-loss, Brier score and ECE"
        " depend on the share of fakes in the data. Clips bear the label of their video."
    )


def _source_table(report: Report) -> Table:
    table = [["source", "label", "videos", "judged", "mean score", *(f"`{verdict}`" for verdict in VERDICTS)]]
    for source in report.sources:
        shares = (show(source.verdicts[verdict]) for verdict in VERDICTS)
        counts = (f"{source.videos:,}", f"{source.judged:,}")
        table.append([source.source, source.label, *counts, show(source.mean_score), *shares])
    return table


def _counts_table(report: Report) -> Table:
    """Videos of each label by verdict and, where they have none, by status."""
    statuses = sorted({status for counts in report.statuses.values() for status in counts} - {"ok"})
    table = [["", *(f"`{verdict}`" for verdict in VERDICTS), *statuses]]
    for label, counts in report.statuses.items():
        verdicts = [report.verdicts[label].get(verdict, 0) for verdict in VERDICTS]
        table.append([label, *(f"{n:,}" for n in [*verdicts, *(counts.get(status, 0) for status in statuses)])])
    return table


def _mistakes(report: Report) -> list[str]:
    ranked = sorted(report.judged, key=lambda video: (video["score"], video["uri"]))
    alarms = [v for v in reversed(ranked) if v["label"] == "real" and v["verdict"] != "real"][:MISTAKES]
    misses = [v for v in ranked if v["label"] == "fake" and v["verdict"] != "fake"][:MISTAKES]
    parts = []
    for title, videos in (("Real videos that score highest", alarms), ("Fake videos that score lowest", misses)):
        if videos:
            lines = (f"{_safe(v['uri'])}: {v['score']:.3f}, {v['verdict']} ({_safe(v['source'])})" for v in videos)
            parts += [f"{title}, of those with the wrong verdict or none:", _list(lines)]
    return parts


def _reencoded(report: Report) -> list[str]:
    again = report.reencoded
    assert again is not None
    rows = [
        [name, show(report.videos.metrics[key]), show(again.videos.metrics[key]), show(again.clips.metrics[key])]
        for key, name in NAMES.items()
    ]
    counts = [f"{f.reals:,} + {f.fakes:,}" for f in (report.videos, again.videos, again.clips)]
    parts = [
        f"## After re-encoding with H.264 at CRF {again.crf}",
        _markdown([["", "videos", "copies", "clips of copies"], ["real + fake", *counts], *rows]),
        f"Real videos whose copy is not called `fake`: {show(again.real_not_fake)}. Verdicts that changed:"
        f" {again.changed_verdicts:,} of {again.videos.reals + again.videos.fakes:,}.",
    ]
    if again.lost:
        parts += [
            "Judged before, but not as copies:",
            _list(f"{_safe(v['uri'])} ({v['label']}): {v['status']}{_reason(v)}" for v in again.lost),
        ]
    return parts


def _made_with(report: Report) -> str:
    made = report.made_with
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    return (
        f"{_safe(made['cpu'])}, {made['cores']} cores, {made['system']}; {versions}. Seed {report.seed},"
        f" {report.created_at}."
    )


# --- Markdown -----------------------------------------------------------------------------------------------------


def _markdown(table: Table) -> str:
    lines = ["| " + " | ".join(_safe(cell) for cell in row) + " |" for row in table]
    numbers = "---:|" * (len(table[0]) - 1)
    return "\n".join([lines[0], f"| --- |{numbers}", *lines[1:]])


def _list(lines: Iterable[str]) -> str:
    items = list(lines)
    more = [f"- … and {len(items) - LISTED:,} more, in report.json"] if len(items) > LISTED else []
    return "\n".join([*(f"- {line}" for line in items[:LISTED]), *more])


def _reason(video: dict[str, Any]) -> str:
    return f", {_safe(video['error'])}" if video["error"] else ""


def _safe(text: str) -> str:
    """Text of strangers inside Markdown: no markup, no HTML, nothing that ends a cell or steers a terminal."""
    plain = "".join(c if unicodedata.category(c)[0] != "C" else "\N{REPLACEMENT CHARACTER}" for c in str(text))
    return re.sub(r"([\\<>|*])", r"\\\1", plain).replace("](", "]\\(")
