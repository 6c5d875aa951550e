"""The evidence on one video: what is known of it, its pictures beside their heatmaps, and the plots of its faces."""

from __future__ import annotations

from queries.report.data import PICTURES, Evidence, Face, Row
from queries.report.elements import Child, Markup, el, jpeg_uri
from queries.report.parts import anchor, number, verdict_text
from queries.report.plots import clock, face_plot, overview


def evidence_of(video: Row, evidence: Evidence) -> Markup:
    """A disclosure: the video's name, verdict and score, and inside it everything else."""
    seen = min(len(evidence.faces), evidence.tracks)
    parts: list[Child] = [_facts(video), _pictures(evidence.thumbnails, video)]
    longer = (video["duration_s"] or 0) > max(
        (f.row["t_end"] - f.row["t_start"] for f in evidence.faces), default=0
    ) * 1.5
    if evidence.overview and longer:
        parts += [el("h3", "The whole video"), overview(evidence.overview, video["duration_s"], video["threshold"])]
    if evidence.tracks > seen:
        parts.append(
            el("p", f"{seen} of {evidence.tracks:,} face tracks are shown: the highest scores first.", class_="quiet")
        )
    parts += [_face(face) for face in evidence.faces]
    if not evidence.faces:
        parts.append(el("p", "No face was followed in the stretches that could be read.", class_="quiet"))
    return el("details", el("summary", *_headline(video)), *parts, class_="evidence", id=anchor(video))


def _headline(video: Row) -> list[Child]:
    score = video["score"] if video["score"] is not None else video["clip_score"]
    told = "" if score is None else f", {'score' if video['score'] is not None else 'highest flagged clip'} {score:.3f}"
    return [f"{video['rank']:,}. ", el("b", video["uri"]), " – ", verdict_text(video), told]


def _facts(video: Row) -> Markup:
    """Figures of the video, each with its unit."""
    size = "–" if video["width"] is None else f"{video['width']} × {video['height']}, {number(video['fps'], 2)} fps"
    facts = [
        ("status", video["status"]),
        ("score", number(video["score"], 3)),
        ("network alone", number(video["cnn_score"], 3)),
        ("flagged clips", number(video["flagged_clips"], 0)),
        ("most suspicious at", clock(video["top_t"])),
        ("blinks", _blinks(video)),
        ("micro-expression irregularity", f"{number(video['micro_irregularity'], 2)} (ordinary: 0.5)"),
        ("faces at once", number(video["n_faces"], 0)),
        ("face seen", clock(video["face_seconds"])),
        ("duration", clock(video["duration_s"])),
        ("picture", size),
        ("codec, decoder", f"{video['codec'] or '–'}, {video['decoder'] or '–'}"),
    ]
    if video["lost_seconds"]:
        facts.append(("could not be read", clock(video["lost_seconds"])))
    if video["pending_spans"]:
        facts.append(("spans not scanned yet", f"{video['pending_spans']:,}"))
    if video["error"]:
        facts.append(("error", video["error"]))
    return el("dl", [el("div", el("dt", name), el("dd", value)) for name, value in facts], class_="facts")


def _blinks(row: Row) -> str:
    if row["blink_count"] is None:
        return "not judged"
    return f"{row['blink_count']} ({number(row['blink_rate'], 1)} per minute)"


def _pictures(thumbnails: list[Row], video: Row) -> Child:
    if not thumbnails:
        return el("p", "No pictures were kept of this video.", class_="quiet")
    figures = []
    for picture in thumbnails:
        where = f"face {picture['face_id']} at {clock(picture['t'], 2)}"
        score = "" if picture["score"] is None else f", clip score {picture['score']:.3f}"
        images = [_image(picture["image"], f"Crop of {where}", "no picture")]
        if picture["heatmap"] is not None or video["score"] is not None:
            images.append(_image(picture["heatmap"], f"What the network looked at: {where}", "no heatmap"))
        figures.append(el("li", el("figure", el("div", images), el("figcaption", where + score))))
    told = f"At most {PICTURES} crops, each beside its Grad-CAM heatmap: what raised the score of that frame and clip."
    if all(picture["heatmap"] is None for picture in thumbnails):
        told = f"At most {PICTURES} crops. There are no heatmaps: an untrained network looks at nothing in particular."
    return [el("ul", figures, class_="pictures"), el("p", told, class_="quiet")]


def _image(image: bytes | None, alt: str, missing: str) -> Markup:
    address = jpeg_uri(image)
    if address is None:
        return el("span", missing, class_="missing")
    return el("img", src=address, alt=alt, width=128, height=128, decoding="async")


def _face(face: Face) -> list[Child]:
    row = face.row
    name = f"Face {row['face_id']}"
    facts = [
        f"{clock(row['t_start'])} to {clock(row['t_end'])}",
        "no score" if row["score"] is None else f"score {row['score']:.3f}",
        "blinks not judged" if row["blink_count"] is None else f"blinks {_blinks(row)}",
        f"irregularity {number(row['micro_irregularity'], 2)}",
    ]
    return [el("h3", f"{name}: {', '.join(facts)}"), face_plot(face, name)]
