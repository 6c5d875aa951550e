"""Rows in every format, read back."""

from __future__ import annotations

import base64
import csv
import io
import json
from datetime import datetime
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from queries.formats import FORMATS, write_answer
from queries.run import Answer
from queries.text import escape_controls
from scanner.errors import UserError

HOSTILE = [
    "<script>alert(1)</script>",
    "two\nlines\r",
    'it\'s "quoted", a|pipe',
    "видео 日本",
    "\x1b[31mred\x07",
    "a\u202egpj.exe",
]


def answer(**columns) -> Answer:
    table = pa.table(columns)
    return Answer(table.schema, iter(table.to_batches(max_chunksize=2)))


def written(format_: str, width: int | None = None, **columns) -> str:
    out = io.BytesIO()
    write_answer(answer(**columns), format_, out, terminal_width=width)
    return out.getvalue().decode("utf-8")


@pytest.mark.parametrize("format_", FORMATS)
def test_the_number_of_rows_is_returned(format_):
    for count in (0, 1, 5):
        out = io.BytesIO()
        assert write_answer(answer(n=pa.array(range(count), pa.int64())), format_, out) == count


@pytest.mark.parametrize("format_", [name for name in FORMATS if name != "parquet"])
@pytest.mark.parametrize("days", [106_000_000, 2**31 - 1])  # the year 290000, and infinity
def test_a_date_that_python_does_not_know_is_one_sentence(format_, days):
    with pytest.raises(UserError, match="outside the years 1 to 9999"):
        written(format_, day=pa.array([1, days], pa.int32()).cast(pa.date32()))


def test_csv_reads_back():
    rows = list(csv.DictReader(io.StringIO(written("csv", uri=HOSTILE, n=[1.5, None, 3, 4, 5, 6]), newline="")))
    assert [row["uri"] for row in rows] == HOSTILE
    assert [row["n"] for row in rows] == ["1.5", "", "3.0", "4.0", "5.0", "6.0"]


@pytest.mark.parametrize(
    ("format_", "parse"), [("json", json.loads), ("jsonl", lambda t: [*map(json.loads, t.splitlines())])]
)
def test_json_reads_back(format_, parse):
    rows = parse(written(format_, uri=HOSTILE, n=[1, None, 3, 4, 5, 6], image=[b"\xff\xd8"] * 6))
    assert [row["uri"] for row in rows] == HOSTILE
    assert [row["n"] for row in rows] == [1, None, 3, 4, 5, 6]
    assert base64.b64decode(rows[0]["image"]) == b"\xff\xd8"


def test_json_of_no_rows_is_an_empty_array():
    assert json.loads(written("json", n=pa.array([], pa.int64()))) == []


def test_json_has_no_nan():
    assert json.loads(written("json", n=[float("nan"), float("inf"), 1.0], deep=[[float("nan")], None, []])) == [
        {"n": None, "deep": [None]}, {"n": None, "deep": None}, {"n": 1.0, "deep": []}
    ]  # fmt: skip


def test_json_keeps_both_of_two_columns_with_one_name():
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2]), pa.array([3])], names=["a", "a", "a_2"])
    out = io.BytesIO()
    write_answer(Answer(table.schema, iter(table.to_batches())), "jsonl", out)
    assert sorted(json.loads(out.getvalue()).values()) == [1, 2, 3]


def test_parquet_reads_back(tmp_path):
    columns = {"uri": HOSTILE, "image": [b"x", None, b"", b"y", b"z", b"w"], "t": [[1.0], [], None, [2.0], [], []]}
    with (tmp_path / "out.parquet").open("wb") as out:
        write_answer(answer(**columns), "parquet", out)
    assert pq.read_table(tmp_path / "out.parquet").to_pydict() == columns


@pytest.mark.parametrize("format_", ["table", "csv", "markdown"])
def test_pictures_show_as_their_size(format_):
    assert "12,345 bytes>" in written(format_, image=[bytes(12345)])


def test_float32_shows_the_digits_that_were_meant():
    values = pa.array([0.1], pa.float32())
    nested = pa.array([[{"x": 0.3}]], pa.list_(pa.struct([("x", pa.float32())])))
    assert written("jsonl", x=values, box=nested) == '{"x": 0.1, "box": [{"x": 0.3}]}\n'


def test_other_types_have_a_plain_form():
    row = json.loads(
        written(
            "jsonl",
            n=[Decimal(7)],
            at=[datetime(2025, 3, 1, 2, 3)],
            m=pa.array([[("k", 1)]], pa.map_("string", "int8")),
        )
    )
    assert row == {"n": 7, "at": "2025-03-01T02:03:00", "m": {"k": 1}}


def test_a_table_is_for_people():
    text = written("table", uri=["a", "b"], score=[0.123456, None], n=[1, 20], ok=[True, False], tiny=[1e-7, -0.0])
    lines = [line.split() for line in text.splitlines()]
    assert lines[0] == ["uri", "score", "n", "ok", "tiny"]
    assert lines[2:] == [["a", "0.1235", "1", "true", "1e-07"], ["b", "20", "false", "0"]]


def test_nothing_is_shortened_in_a_pipe():
    name = "s3://archive/" + "x" * 500
    assert name in written("table", uri=[name], error=["because " * 100])


def test_a_table_fits_the_terminal():
    text = written("table", 60, uri=["s3://archive/" + "x" * 100], n=[5])
    assert max(map(len, text.splitlines())) <= 60
    assert "".join(line.split()[0] for line in text.splitlines()[2:]) == "s3://archive/" + "x" * 100


def test_too_many_columns_for_the_terminal_are_shown_below_each_other():
    text = written("table", 40, **{f"column_{i}": ["value"] for i in range(6)})
    assert text.splitlines()[:2] == ["--- 1 ---", "column_0  value"]


def test_markup_in_names_is_text():
    assert "[bold]a[/bold] :smile:" in written("table", uri=["[bold]a[/bold] :smile:"])


@pytest.mark.parametrize("format_", ["table", "csv", "json", "jsonl", "markdown"])
@pytest.mark.parametrize("width", [20, 200])
def test_no_control_character_reaches_a_terminal(format_, width):
    text = written(format_, width, **{"na\x1b[2Jme": HOSTILE, "deep": [[name] for name in HOSTILE]})
    assert all(character.isprintable() or character in "\n" for character in text)


def test_markdown_cells_stay_cells():
    text = written("markdown", uri=["a|b<i>\n[x](y) `c` *d* _e_ snake_case"])
    assert text.splitlines()[2] == r"| a\|b&lt;i>\\n\[x\](y) \`c\` \*d\* \_e\_ snake_case |"
    assert len(text.splitlines()) == 3


@given(st.text())
def test_escaped_text_is_safe_to_print(text):
    escaped = escape_controls(text)
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 or c in "\u202e\u2066\u2028" for c in escaped)
    escaped.encode("utf-8")


@given(st.lists(st.one_of(st.none(), st.text(st.characters(exclude_categories=["Cs"]))), min_size=1))
def test_any_text_survives_json(values):
    column = pa.array(values, pa.string())
    assert [row["v"] for row in json.loads(written("json", v=column))] == values
