"""Reviews: what was said comes back as it was, from many at once, by every door, and as training labels."""

from __future__ import annotations

import csv
import io
import multiprocessing
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from queries.catalog import open_catalog
from queries.command import query
from queries.export_catalog import export_catalog
from queries.reviews import LABELS, REVIEW, SCHEMA_VERSION, Label, Review, append_reviews
from scanner.errors import EXIT_OK, UserError
from scanner.labels import find_labelled
from tests.queries.conftest import Rows, ask
from tests.queries.rows import clip, span, write_part, write_run
from tests.queries.test_catalog import upload

NOON = datetime(2025, 3, 3, 12, tzinfo=timezone.utc)
HOSTILE = "<script>alert(1)</script>'; DROP TABLE reviews; -- \x1b[31m\u202e, \"\n"


def review(uri: str, t: float = 1.0, label: Label = "confirmed", /, **values) -> Review:
    """A review of the clip that rows.clip(t, ...) makes."""
    given_ = {"content_tag": "tag-1", "face_id": "0-1", "note": "", "reviewer": "anna", "reviewed_at": NOON} | values
    return Review(uri=uri, t_start=t, t_end=t + 1, label=label, **given_)


def read(results: Path | str, sql: str) -> Rows:
    with closing(open_catalog(str(results))) as connection:
        return ask(connection, sql)


def named(results: Path | str, name: str, *params: str) -> list[dict[str, str]]:
    """The answer of a named query, as `deepsweep query --format csv` prints it."""
    asked = [part for param in params for part in ("-p", param)]
    done = CliRunner().invoke(query, [name, "--results", str(results), "--format", "csv", *asked])
    assert done.exit_code == EXIT_OK, done.exception
    return list(csv.DictReader(io.StringIO(done.stdout)))


@pytest.fixture
def archive(results: Path) -> Path:
    """Three flagged videos and one that is not."""
    write_run(results)
    write_part(
        results,
        [
            span("/a/one.mp4", score=0.9, verdict="fake", clips=[clip(1, 0.95), clip(5, 0.8), clip(9, 0.1)]),
            span("/a/b/two, too.mp4", score=0.7, verdict="fake", clips=[clip(1, 0.7), clip(5, 0.6)]),
            span("s3://x/three.mp4", score=0.6, verdict="fake", clips=[clip(1, 0.6)]),
            span("/a/calm.mp4", clips=[clip(1, 0.1)]),
        ],
    )
    return results


# --- there and back -------------------------------------------------------------------------------------

TEXTS = st.text(max_size=60)
TIMES = st.floats(0, 1e6)
REVIEWS = st.builds(
    Review,
    uri=TEXTS,
    content_tag=st.none() | TEXTS,
    face_id=TEXTS,
    t_start=TIMES,
    t_end=TIMES,
    label=st.sampled_from(LABELS),
    note=TEXTS,
    reviewer=st.text("abc xyzäß<>'\"&;", min_size=1, max_size=20).filter(str.strip),
    reviewed_at=st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(timezone.utc)),
)


@given(st.lists(st.lists(REVIEWS, min_size=1, max_size=3), max_size=3))
@settings(max_examples=25)
def test_what_was_said_comes_back(tmp_path_factory, parts):
    results = tmp_path_factory.mktemp("reviews")
    write_run(results)
    for part in parts:
        append_reviews(str(results), part)
    found = read(results, "SELECT *, typeof(reviewed_at) AS type FROM reviews")
    told = [
        (r.uri, r.content_tag, r.face_id, r.t_start, r.t_end, r.label, r.note, r.reviewer, r.reviewed_at)
        for part in parts
        for r in part
    ]
    back = [
        (r["uri"], r["content_tag"], r["face_id"], r["t_start"], r["t_end"], r["label"], r["note"], r["reviewer"],
         r["reviewed_at"].replace(tzinfo=timezone.utc))
        for r in found
    ]  # fmt: skip
    assert set(back) == set(told) and len(back) == len(set(told))  # the same one twice, to the microsecond, is one
    assert all(row["type"] == "TIMESTAMP" for row in found)


def test_a_part_says_which_schema_it_has(archive):
    table = pq.read_table(append_reviews(str(archive), [review("/a/one.mp4")]))
    assert table.schema.equals(REVIEW)
    assert table["schema_version"].to_pylist() == [SCHEMA_VERSION]


def test_without_reviews_the_view_is_empty_and_typed(archive):
    kinds = {row["column_name"]: row["column_type"] for row in read(archive, "DESCRIBE reviews")}
    assert read(archive, "FROM reviews") == []
    assert kinds == dict.fromkeys(["uri", "face_id", "label", "note", "reviewer", "content_tag"], "VARCHAR") | {
        "t_start": "DOUBLE", "t_end": "DOUBLE", "reviewed_at": "TIMESTAMP",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"note": "x" * 4001}, "The note has 4,001 characters"),
        ({"reviewer": " "}, "The reviewer needs a name"),
        ({"reviewer": "an\u202ena"}, "none of them invisible"),
    ],
)
def test_what_can_not_be_kept_is_told(change, says):
    with pytest.raises(UserError, match=says):
        review("a", **change)


def test_results_that_can_not_be_written(archive):
    (archive / "reviews").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="The review was not kept"):
        append_reviews(str(archive), [review("/a/one.mp4")])


def test_a_damaged_part_is_named(archive):
    part = Path(append_reviews(str(archive), [review("/a/one.mp4")]))
    part.write_bytes(b"cut short")
    with pytest.raises(UserError, match=rf"{part.name} is damaged or cut short\. Move it out of"):
        read(archive, "FROM reviews")


def test_what_is_not_a_part_is_passed_over(archive):
    append_reviews(str(archive), [review("/a/one.mp4")])
    (archive / "reviews" / ".part-1.parquet.tmp").write_bytes(b"half")
    (archive / "reviews" / "notes.parquet").write_bytes(b"foreign")
    assert len(read(archive, "FROM reviews")) == 1


# --- many at once ---------------------------------------------------------------------------------------


def _append_many(results: str, reviewer: str, count: int) -> None:
    for number in range(count):
        append_reviews(results, [review("/a/one.mp4", float(number), reviewer=reviewer)])


def test_two_who_review_at_once_lose_nothing(archive):
    context = multiprocessing.get_context("forkserver")
    both = [context.Process(target=_append_many, args=(str(archive), name, 20)) for name in ("anna", "ben")]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
        assert process.exitcode == 0
    assert read(archive, "SELECT reviewer, count(DISTINCT t_start) AS n FROM reviews GROUP BY ALL ORDER BY ALL") == [
        {"reviewer": "anna", "n": 20},
        {"reviewer": "ben", "n": 20},
    ]


def test_on_s3(s3, archive):
    remote = upload(s3, archive, "night")
    append_reviews(remote, [review("/a/one.mp4", note=HOSTILE)])
    append_reviews(remote, [review("/a/one.mp4", 5.0, "unsure")])
    assert [row["note"] for row in read(remote, "FROM reviews ORDER BY t_start")] == [HOSTILE, ""]
    assert [row["label"] for row in named(remote, "reviewed", "label=confirmed")] == ["confirmed"]


# --- the latest counts ----------------------------------------------------------------------------------


def test_every_review_is_kept_and_the_latest_counts(archive):
    append_reviews(str(archive), [review("/a/one.mp4", 1.0, "unsure", reviewed_at=NOON + timedelta(hours=1))])
    append_reviews(str(archive), [review("/a/one.mp4", 1.0, "confirmed", reviewer="ben")])
    assert len(read(archive, "FROM reviews")) == 2
    rows = named(archive, "reviewed")
    assert [(row["uri"], row["t_start"], row["label"]) for row in rows] == [
        ("/a/one.mp4", "1.0", "unsure"),
        ("/a/one.mp4", "5.0", ""),
        ("/a/b/two, too.mp4", "1.0", ""),
        ("/a/b/two, too.mp4", "5.0", ""),
        ("s3://x/three.mp4", "1.0", ""),
    ]
    assert len(named(archive, "reviewed", "label=")) == 4
    assert [row["reviewer"] for row in named(archive, "reviewed", "label=unsure")] == ["anna"]


def test_a_file_that_was_replaced_has_no_reviews(archive):
    append_reviews(str(archive), [review("/a/one.mp4")])
    changed = span("/a/one.mp4", content_tag="tag-2", score=0.9, verdict="fake", clips=[clip(1, 0.95)], run=2)
    write_part(archive, [changed], "part-1")
    assert named(archive, "reviewed", "uri=/a/one.mp4")[0]["label"] == ""
    assert named(archive, "labels") == []
    assert len(read(archive, "FROM reviews")) == 1


# --- labels for training --------------------------------------------------------------------------------


def labelled(archive: Path, tmp_path: Path, root: str) -> dict[str, str]:
    """What `deepsweep prepare` makes of the manifest that the query writes: file → label."""
    folder = tmp_path / "data"
    folder.mkdir()
    manifest = folder / "labels.csv"
    asked = ["labels", "--results", str(archive), "-p", f"root={root}", "--output", str(manifest)]
    assert CliRunner().invoke(query, asked).exit_code == EXIT_OK
    return {item.uri.removeprefix("data/"): item.label for item in find_labelled(str(manifest))}


def test_reviews_become_labels_that_prepare_reads(archive, tmp_path):
    append_reviews(
        str(archive),
        [
            review("/a/one.mp4", 1.0, "false_alarm"),
            review("/a/one.mp4", 5.0, "confirmed"),
            review("/a/b/two, too.mp4", 1.0, "false_alarm"),
            review("/a/b/two, too.mp4", 5.0, "false_alarm"),
            review("s3://x/three.mp4", 1.0, "confirmed"),
        ],
    )
    assert labelled(archive, tmp_path, "/a/") == {"one.mp4": "fake", "b/two, too.mp4": "real"}
    assert [row["file"] for row in named(archive, "labels", "root=/a/b")] == ["two, too.mp4"]
    assert named(archive, "labels", "root=s3://x") == [{"file": "three.mp4", "label": "fake"}]
    assert len(named(archive, "labels")) == 2  # below /


@pytest.mark.parametrize("label", ["unsure", None])
def test_a_video_that_is_not_wholly_judged_is_no_label(archive, label):
    append_reviews(str(archive), [review("/a/b/two, too.mp4", 1.0, "false_alarm")])
    if label:
        append_reviews(str(archive), [review("/a/b/two, too.mp4", 5.0, label)])
    assert named(archive, "labels") == []


# --- in other hands -------------------------------------------------------------------------------------


@pytest.mark.parametrize("copy", [False, True])
def test_an_exported_catalog_has_them_in_utc(archive, tmp_path, copy):
    append_reviews(str(archive), [review("/a/one.mp4", note=HOSTILE)])
    out = tmp_path / "out.duckdb"
    export_catalog(str(archive), out, copy=copy)
    append_reviews(str(archive), [review("/a/one.mp4", 5.0)])
    with duckdb.connect(str(out), read_only=True) as connection:
        connection.execute("SET TimeZone = 'America/New_York'")
        rows = ask(connection, "SELECT note, reviewed_at FROM reviews ORDER BY t_start")
    assert rows[0] == {"note": HOSTILE, "reviewed_at": NOON.replace(tzinfo=None)}
    assert len(rows) == (1 if copy else 2)


def test_results_without_reviews_are_exported_with_an_empty_view(archive, tmp_path):
    out = tmp_path / "out.duckdb"
    export_catalog(str(archive), out)
    with duckdb.connect(str(out), read_only=True) as connection:
        assert ask(connection, "FROM reviews") == []


def test_sql_can_not_write_reviews(archive):
    part = append_reviews(str(archive), [review("/a/one.mp4")])
    with closing(open_catalog(str(archive))) as connection, pytest.raises(duckdb.Error):
        connection.execute(f"COPY (SELECT 1) TO '{part}'")
