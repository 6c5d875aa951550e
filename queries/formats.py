"""Rows as people and programs want them: table, csv, json, jsonl, parquet, markdown."""

from __future__ import annotations

import base64
import csv
import io
import itertools
import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, datetime, time
from decimal import Decimal
from typing import TYPE_CHECKING, Any, BinaryIO

from queries.text import UNSAFE, escape_controls
from scanner.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

    from queries.run import Answer

FORMATS = ("table", "csv", "json", "jsonl", "parquet", "markdown")


#: A column is not folded below this many characters: names and errors in slices are no use to anyone.
_MIN_COLUMN_WIDTH = 16
_MIN_HEADER_WIDTH = 8


def write_answer(answer: Answer, format_: str, out: BinaryIO, *, terminal_width: int | None = None) -> int:
    """Write all rows to out, and return how many there were.

    format_: one of FORMATS. csv and jsonl hold a batch at a time, table and markdown all rows.
    terminal_width: columns of the terminal that out is, None for a file or a pipe. On a terminal no control
    character of the data arrives as it is, and tables fit; elsewhere nothing is shortened or wrapped.
    """
    if format_ == "parquet":
        return _write_parquet(answer, out)
    text = io.TextIOWrapper(out, encoding="utf-8", errors="backslashreplace", newline="", write_through=True)
    try:
        return _WRITERS[format_](answer, text, terminal_width)
    finally:
        text.flush()
        text.detach()  # the caller closes out


# --- values ---------------------------------------------------------------------------------------------


def _rows(answer: Answer, binary: Callable[[bytes], str]) -> Iterator[list[Any]]:
    """Rows of plain values: None, bool, int, float, str, list, dict."""
    convert = [_converter(field.type, binary) for field in answer.schema]
    for batch in answer.batches:
        with python_dates():
            columns = [[f(v) for v in c.to_pylist()] for f, c in zip(convert, batch.columns, strict=True)]
        yield from (list(row) for row in zip(*columns, strict=True))


@contextmanager
def python_dates() -> Iterator[None]:
    """DuckDB's dates reach further than Python's, and to infinity: a UserError where one is met."""
    try:
        yield
    except OverflowError:
        raise UserError(
            "A date of the answer lies outside the years 1 to 9999: cast it to text, as in finished_at::VARCHAR."
        ) from None


def _converter(type_: pa.DataType, binary: Callable[[bytes], str]) -> Callable[[Any], Any]:
    """A function from what Arrow gives for a value of type_ to the plain value."""
    import pyarrow.types as t

    if t.is_list(type_) or t.is_large_list(type_) or t.is_fixed_size_list(type_):
        item = _converter(type_.value_type, binary)
        return lambda v: None if v is None else [item(x) for x in v]
    if t.is_struct(type_):
        fields = [(type_.field(i).name, _converter(type_.field(i).type, binary)) for i in range(type_.num_fields)]
        return lambda v: None if v is None else {name: f(v[name]) for name, f in fields}
    if t.is_map(type_):
        key, item = _converter(type_.key_type, binary), _converter(type_.item_type, binary)
        return lambda v: None if v is None else {str(key(k)): item(x) for k, x in v}
    if t.is_float32(type_):
        return lambda v: None if v is None else _shortest(v)
    return lambda v: _plain(v, binary)


def _shortest(value: float) -> float:
    """A float32 without the digits that widening adds: 0.1, not 0.10000000149011612."""
    import numpy as np

    return float(str(np.float32(value)))


def _plain(value: Any, binary: Callable[[bytes], str]) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, bytes):
        return binary(value)
    if isinstance(value, Decimal):  # HUGEINT, as sum() of integers gives it, is one without fraction
        return int(value) if value == value.to_integral_value() else float(value)
    return value.isoformat() if isinstance(value, date | datetime | time) else str(value)


def _size(value: bytes) -> str:
    return f"<{len(value):,} bytes>"


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


def _json(value: Any) -> str:
    """JSON on one line. Unsafe characters beyond those that JSON escapes itself are escaped, too."""
    text = json.dumps(_finite(value), ensure_ascii=False)
    return UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _finite(value: Any) -> Any:
    """NaN and infinity are not JSON: they become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return {k: _finite(v) for k, v in value.items()} if isinstance(value, dict) else value


def _cell(value: Any) -> str:
    """A value for people: four decimals, "" for NULL, nothing that steers a terminal."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and (value == 0 or 1e-4 <= abs(value) < 1e15):
        return f"{value + 0.0:.4f}".rstrip("0").rstrip(".")  # + 0.0: no minus before a zero
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list | dict):
        return _json(value)
    return escape_controls(str(value))


# --- formats --------------------------------------------------------------------------------------------


def _write_csv(answer: Answer, out: io.TextIOWrapper, terminal_width: int | None) -> int:
    """RFC 4180 with a header, \\n between rows. On a terminal unsafe characters are escaped."""
    clean = escape_controls if terminal_width else str
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([clean(name) for name in answer.schema.names])
    count = 0
    for row in _rows(answer, _size):
        writer.writerow([_csv_cell(value, clean) for value in row])
        count += 1
    return count


def _csv_cell(value: Any, clean: Callable[[str], str]) -> Any:
    if isinstance(value, list | dict):
        return _json(value)
    if isinstance(value, bool):
        return _cell(value)
    return clean(value) if isinstance(value, str) else value


def _write_json(answer: Answer, out: io.TextIOWrapper, terminal_width: int | None) -> int:
    """One array, one object per line."""
    count = 0
    for count, line in enumerate(_objects(answer), 1):
        out.write(f"{'[' if count == 1 else ','}\n{line}")
    out.write("\n]\n" if count else "[]\n")
    return count


def _write_jsonl(answer: Answer, out: io.TextIOWrapper, terminal_width: int | None) -> int:
    """One object per line."""
    count = 0
    for count, line in enumerate(_objects(answer), 1):  # noqa: B007 - the last count is the answer
        out.write(f"{line}\n")
    return count


def _objects(answer: Answer) -> Iterator[str]:
    names = _distinct(answer.schema.names)
    return (_json(dict(zip(names, row, strict=True))) for row in _rows(answer, _base64))


def _distinct(names: list[str]) -> list[str]:
    """SELECT may name two columns alike, an object may not: the second uri becomes uri_2."""
    distinct: list[str] = []
    for name in names:
        candidates = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
        distinct.append(next(c for c in candidates if c not in distinct))
    return distinct


def _write_markdown(answer: Answer, out: io.TextIOWrapper, terminal_width: int | None) -> int:
    """A GitHub table. Names cannot break out of their cell, nor become HTML or a link."""
    rows = [[_markdown_cell(value) for value in row] for row in _rows(answer, _size)]
    out.write(f"| {' | '.join(_markdown_cell(name) for name in answer.schema.names)} |\n")
    out.write(f"|{'|'.join('---:' if _is_number(f.type) else '---' for f in answer.schema)}|\n")
    out.writelines(f"| {' | '.join(row)} |\n" for row in rows)
    return len(rows)


def _markdown_cell(value: Any) -> str:
    text = _cell(value).replace("&", "&amp;").replace("<", "&lt;")
    # An underscore between letters or digits is one; elsewhere it begins or ends emphasis.
    return re.sub(r"[\\|`*\[\]~]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\\g<0>", text)


def _write_table(answer: Answer, out: io.TextIOWrapper, terminal_width: int | None) -> int:
    """Columns side by side, or one under another where the terminal is too narrow for that."""
    rows = [[_cell(value) for value in row] for row in _rows(answer, _size)]
    names = [escape_controls(name) for name in answer.schema.names]
    if terminal_width and _least_width(names, rows) > terminal_width:
        _write_records(names, rows, out)
    else:
        right = [_is_number(field.type) for field in answer.schema]
        _write_columns(names, rows, right, out, terminal_width)
    return len(rows)


def _least_width(names: list[str], rows: list[list[str]]) -> int:
    """Characters that a readable table takes, with two spaces between columns."""
    from rich.cells import cell_len

    widest = [max(map(cell_len, column), default=0) for column in zip(*rows, strict=True)] or [0] * len(names)
    least = [max(min(w, _MIN_COLUMN_WIDTH), min(len(n), _MIN_HEADER_WIDTH)) for w, n in zip(widest, names, strict=True)]
    return sum(least) + 2 * (len(least) - 1)


def _write_records(names: list[str], rows: list[list[str]], out: io.TextIOWrapper) -> None:
    width = max(map(len, names))
    for number, row in enumerate(rows, 1):
        out.write(f"--- {number} ---\n")
        out.writelines(f"{name:<{width}}  {value}".rstrip() + "\n" for name, value in zip(names, row, strict=True))


def _write_columns(
    names: list[str], rows: list[list[str]], right: list[bool], out: io.TextIOWrapper, width: int | None
) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for name, is_right in zip(names, right, strict=True):
        table.add_column(Text(name), justify="right" if is_right else "left", overflow="fold", no_wrap=not width)
    for row in rows:
        table.add_row(*map(Text, row))  # Text: a name with [red] in it is not markup
    lines = io.StringIO()
    console = Console(file=lines, width=width or 1, color_system=None, force_terminal=False)
    if not width:
        console.width = console.measure(table, options=console.options.update(max_width=1_000_000)).maximum
    console.print(table)
    out.writelines(f"{line.rstrip()}\n" for line in lines.getvalue().splitlines())


def _is_number(type_: pa.DataType) -> bool:
    import pyarrow.types as t

    return t.is_integer(type_) or t.is_floating(type_) or t.is_decimal(type_)


def _write_parquet(answer: Answer, out: BinaryIO) -> int:
    import pyarrow.parquet as pq

    count = 0
    with pq.ParquetWriter(out, answer.schema, compression="zstd") as writer:
        for batch in answer.batches:
            writer.write_batch(batch)
            count += batch.num_rows
    return count


_WRITERS = {
    "table": _write_table,
    "csv": _write_csv,
    "json": _write_json,
    "jsonl": _write_jsonl,
    "markdown": _write_markdown,
}
