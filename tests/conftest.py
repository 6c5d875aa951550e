"""What holds for every test: an unexpected ERROR in the log fails it, and properties see the same examples."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.s3 import proxy, s3, s3_endpoint
from tests.scans import SPANS, deepsweep
from tests.tiny_model import train_tiny_model
from tests.zoo import ARCHIVE

__all__ = ["proxy", "s3", "s3_endpoint"]  # fixtures of every test

# The same examples everywhere, and no deadline: a slow machine must not fail a property.
settings.register_profile("deepsweep", derandomize=True, deadline=None)
settings.load_profile("deepsweep")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "logs_errors: the test wants an ERROR to be logged")
    config.addinivalue_line("markers", "ray: the test needs Ray; `make test` runs the others beside these")


class _Kept(logging.Handler):
    """Keeps the records that reach the root logger."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture(autouse=True)
def no_unexpected_errors(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that logs at ERROR or above, unless it is marked `logs_errors`."""
    kept = _Kept()
    logging.getLogger().addHandler(kept)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(kept)
    if kept.records and not request.node.get_closest_marker("logs_errors"):
        lines = [f"{record.name}: {record.getMessage()}" for record in kept.records]
        pytest.fail("logged at ERROR: " + " | ".join(lines))


@pytest.fixture(scope="session")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """RESULTS of one scan of the shipped archive, in spans of SPAN_S, and the events that it printed."""
    results = tmp_path_factory.mktemp("scan") / "results"
    done = deepsweep("scan", ARCHIVE, "--out", results, "--json", *SPANS)
    assert done.returncode == 3, done.stderr
    return results, [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model that is trained on synthetic clips: it tells them apart, and nothing else."""
    return train_tiny_model(tmp_path_factory.mktemp("tiny-model"))
