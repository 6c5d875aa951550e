"""Fixtures of the queries' tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from queries.catalog import open_catalog
from tests.queries.rows import write_part, write_run

Rows = list[dict[str, Any]]
Ask = Callable[..., Rows]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder for RESULTS whose name a glob would misread."""
    return tmp_path / "results [2025]*"


@pytest.fixture
def catalog(results: Path) -> Iterator[Callable[..., duckdb.DuckDBPyConnection]]:
    """catalog(rows, ...): RESULTS with one part per list of rows, opened."""
    opened: list[duckdb.DuckDBPyConnection] = []

    def build(*parts: Rows) -> duckdb.DuckDBPyConnection:
        write_run(results)
        for number, rows in enumerate(parts):
            write_part(results, rows, f"part-{number}")
        opened.append(open_catalog(str(results)))
        return opened[-1]

    yield build
    for connection in opened:
        connection.close()


def ask(connection: duckdb.DuckDBPyConnection, sql: str) -> Rows:
    """Rows of an answer, as dictionaries."""
    return connection.sql(sql).to_arrow_table().to_pylist()
